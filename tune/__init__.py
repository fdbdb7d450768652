"""Sweeps as a script: `python -m tune.sweep`; its code is semantica.jobs.sweep."""

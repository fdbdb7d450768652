"""Sweeps: `python -m tune.sweep`, and the spaces it sweeps."""

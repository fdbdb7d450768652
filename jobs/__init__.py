"""The commands as scripts, for `ray job submit --working-dir . -- python -m jobs.X`; their code is semantica.jobs."""

"""Figures with their command, machine and date. `python -m benchmarks.X` prints a table and writes benchmarks/results/X.json."""

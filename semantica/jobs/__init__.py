"""The commands: `semantica X`, one module per command with its settings. Each parses its words and makes one call.

A module here imports no torch, Ray, transformers or MLflow before its command runs, so that `--help` answers at once.
"""

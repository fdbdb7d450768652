"""Checkpoint + conditioning images -> pictures."""

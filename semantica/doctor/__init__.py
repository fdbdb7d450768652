"""Checks to run before a stage starts: each says what it found and what to do. Nothing here knows Ray."""

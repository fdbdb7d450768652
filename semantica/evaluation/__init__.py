"""Evaluation: protocols as pure functions, from evaluation sets to requests, and from features by name to figures. No Ray."""

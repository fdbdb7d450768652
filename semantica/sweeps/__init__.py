"""Sweeps without Ray: what is swept, what was found on the disk, which trial wins, and the report."""

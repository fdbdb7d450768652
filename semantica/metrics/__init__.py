"""Metrics: features of pictures -> figures with their protocol, picture grids, and the report page. No Ray, no network."""

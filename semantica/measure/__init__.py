"""The mathematics of evaluation: distances, diversity, similarity. No pages."""

"""The mathematics of evaluation: distances, diversity, similarity. Reports are in semantica/report/."""

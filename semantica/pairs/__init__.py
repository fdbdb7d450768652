"""Which two pictures of an episode may teach each other: scores, the band as a view of them, the deterministic draw."""

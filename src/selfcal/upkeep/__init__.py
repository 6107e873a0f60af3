"""A run's upkeep: whether all of it is what it should be, and what it could do without."""

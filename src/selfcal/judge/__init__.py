"""Stage 3: the R-Scorer, a small text model that compares two responses to a sample."""

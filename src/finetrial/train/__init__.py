"""Training of a cohort: one visible loop per kind of training, shared parts beside it."""

"""Training and test data: read, score, select, split; built-in worlds."""

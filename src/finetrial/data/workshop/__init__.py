"""The data workshop: rows of mixed shapes brought to one format, and a linter for training data."""

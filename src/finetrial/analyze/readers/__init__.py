"""Anybody's results -> outcome table, one module per format."""

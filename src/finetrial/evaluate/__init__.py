"""Evaluation: what is measured of the base and of N adapters in one pass."""

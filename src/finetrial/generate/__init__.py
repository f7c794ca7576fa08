"""Sampling completions: many prompts, many samples, many adapters in one batch."""

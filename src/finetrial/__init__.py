"""Clinical trials for LLM fine-tuning recipes: campaigns, seeds, and verdicts that hold."""

__version__ = "0.1.0"

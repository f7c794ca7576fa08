"""Graders: a completion and a task in, a value in [0, 1] or a reason why there is none out."""

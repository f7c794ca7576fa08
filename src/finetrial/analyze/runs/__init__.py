"""Two groups of training runs compared from their logs: significance report and litmus."""

"""What is measured on suites of each kind, how it is stored, and how it becomes outcomes."""

"""Judges: models behind a server that grade, proven before they are used, and what their judgments are worth."""

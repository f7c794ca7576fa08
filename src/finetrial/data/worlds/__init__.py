"""Built-in worlds: seeded, versioned generators of text, the same bytes on every machine."""

"""Statistics of recipes: seeds are replicates, items are crossed with them. Reads outcomes; needs no torch."""

"""The base model, the adapter stack over it, and the rendering of conversations into token streams."""

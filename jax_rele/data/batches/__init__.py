"""Which examples are in which batch, and the loader."""

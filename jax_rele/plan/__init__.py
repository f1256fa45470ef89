"""The cost of every step of a run on accelerators that need not be available."""

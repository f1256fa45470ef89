"""`jax-rele tune`: a search for the numbers of a recipe, on validation pairs alone."""

"""`jax-rele compare`: recipes side by side on the same data, from the same starts, over several seeds."""

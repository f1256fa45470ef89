"""Before anything touches JAX: eight devices on the CPU, so that every test can shard."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)

# The first example of a property often compiles.
hypothesis.settings.register_profile("jax_rele", deadline=None)
hypothesis.settings.load_profile("jax_rele")

"""`python -m jax_rele` is `jax-rele`."""

from jax_rele.cli import command

command()

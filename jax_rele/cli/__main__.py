"""`python -m jax_rele.cli`."""

from jax_rele.cli import command

command()

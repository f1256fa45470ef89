"""What every loss does with its arguments: check their shapes, blank what is masked, spare zeros the logarithm.

A loss returns elements: one number per example, or per example and dimension, or per token. Its mask has the shape of
the elements. A masked element is blanked twice: its inputs before the computation, so that the gradient of a masked NaN
is zero and not NaN, and its value after it.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def check_shapes(loss: str, **arrays: tuple[ArrayLike, str]) -> None:
    """Checks that the shapes agree: in `logits=(logits, "BC"), labels=(labels, "B")` both B are one size.

    Raises:
      AssertionError: at trace time, naming the loss, the argument and the shape that it must have.
    """
    sizes: dict[str, int] = {}
    for name, (array, letters) in arrays.items():
        array = jnp.asarray(array)
        message = f"{loss}: {name} must be [{', '.join(letters)}]"
        chex.assert_rank(array, len(letters), custom_message=message)
        expected = tuple(sizes.setdefault(letter, size) for letter, size in zip(letters, array.shape))
        chex.assert_shape(array, expected, custom_message=f"{message}, with the sizes of the arguments before it")


def check_integers(loss: str, **arrays: ArrayLike) -> None:
    """Raises AssertionError at trace time where an array that holds indices is not of an integer type."""
    for name, array in arrays.items():
        chex.assert_type(jnp.asarray(array), int, custom_message=f"{loss}: {name} must be integers")


def element_mask(where: ArrayLike | None, shape: tuple[int, ...], name: str = "where") -> jax.Array:
    """The mask at the shape of the elements; all True where there is none."""
    if where is None:
        return jnp.ones(shape, bool)
    where = jnp.asarray(where)
    chex.assert_type(where, bool, custom_message=f"{name} must be a mask of booleans")
    return jnp.broadcast_to(where, shape)


def blank(mask: jax.Array, array: ArrayLike) -> jax.Array:
    """The array with zeros in the masked elements; `mask` [*E] covers `array` [*E, ...]."""
    array = jnp.asarray(array)
    return jnp.where(jnp.expand_dims(mask, tuple(range(mask.ndim, array.ndim))), array, jnp.zeros_like(array))


def is_zero(probs: jax.Array) -> jax.Array:
    """Whether a probability is zero to float32. Subnormals count as zero: hardware disagrees on their logarithm."""
    return jnp.abs(probs) < jnp.finfo(jnp.float32).tiny


def times_log(probs: jax.Array, log_probs: jax.Array) -> jax.Array:
    """p · log q, which is 0 where p = 0, whatever q; a NaN p stays NaN."""
    zero = is_zero(probs)
    return jnp.where(zero, 0.0, probs * jnp.where(zero, 0.0, log_probs))


def one_hot(labels: jax.Array, size: int) -> jax.Array:
    """[...] indices -> [..., size] distributions; NaN, so that it is seen, for an index outside [0, size)."""
    labels = labels[..., None]
    return jnp.where((labels >= 0) & (labels < size), jnp.float32(labels == jnp.arange(size)), jnp.nan)

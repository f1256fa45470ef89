"""Rows of tokens packed into fewer ones for the layers of an encoder, and its outputs back in rows of their own.

The rows of a batch are dealt into equal parts, each packed by itself: where a part lies on one device, no device reads
another's rows. Nothing but the layers sees packed rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

Packing = Mapping[str, jax.Array]
"""`source` [S, R, P] int32: of the S parts of a batch, which of its B / S x L tokens each of the P positions of R
packed rows holds, counted row by row; -1 for none. `target` [B, L] int32, its inverse: which of the R x P positions of
its part holds a token; -1 where it is left out, as padding is. A row's tokens lie side by side in one packed row."""


def pack(packing: Packing, *arrays: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Integers of each token, in packed rows.

    Args:
      packing: of the rows.
      arrays: [B, L] or [1, L] int each.

    Returns:
      [S x R, P] of each array, 0 where there is no token; and segments [S x R, P], the number of the row in its part
      from 1 on, 0 where there is no token.
    """
    source, (rows, length) = packing["source"], packing["target"].shape
    parts = len(source)
    numbers = (1 + jnp.arange(rows) % (rows // parts))[:, None]
    both = jnp.stack([jnp.broadcast_to(x, (rows, length)) for x in (*arrays, numbers)], axis=-1)
    packed = _take(both.reshape(parts, -1, len(arrays) + 1), source.reshape(parts, -1))
    *columns, segments = (_by_row(x.reshape(-1, source.shape[2])) for x in jnp.moveaxis(packed, -1, 0))
    return columns, segments


def unpack(packing: Packing, x: jax.Array) -> jax.Array:
    """Vectors of packed tokens [S x R, P, W] -> [B, L, W], zeros for tokens that are left out."""
    source, target = packing["source"], packing["target"]
    parts, width = len(source), x.shape[-1]
    y = _unpack(x.reshape(parts, -1, width), source.reshape(parts, -1), target.reshape(parts, -1))
    return _by_row(y.reshape(*target.shape, width))


@jax.custom_vjp
def _unpack(x: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """[S, R x P, W] -> [S, B / S x L, W]. Its gradient gathers too, as no position holds two tokens."""
    return _take(x, target)


def _unpack_forward(x: jax.Array, source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _take(x, target), source


def _unpack_backward(source: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    return _take(gradient, source), None, None


_unpack.defvjp(_unpack_forward, _unpack_backward)


def _take(x: jax.Array, indices: jax.Array) -> jax.Array:
    """[S, N, W] at [S, M] -> [S, M, W], zeros where an index is negative."""
    y = jax.vmap(lambda rows, numbers: rows.at[numbers].get(mode="clip"))(x, jnp.maximum(indices, 0))
    return jnp.where(indices[..., None] >= 0, y, jnp.zeros((), x.dtype))


def _by_row(x: jax.Array) -> jax.Array:
    return nn.with_logical_constraint(x, ("batch", "length", "embed_activation")[: x.ndim])

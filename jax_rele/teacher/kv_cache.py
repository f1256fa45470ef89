"""Key-value caches that grow: tokens are read behind what was read before, which rows may share.

Every call has one of a few shapes, so that it is compiled once for each of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jax_rele.data.tokens.packing import pad
from jax_rele.models import Decoder
from jax_rele.models.partitioning import use
from jax_rele.types import DecoderOutputs

SMALLEST = 16
"""The least padded length but zero."""

WORTH = 4
"""Batches that a padded length must fill in one call to be worth a compile of its own."""


def bucket(length: int) -> int:
    """The least of 0, 16, 32, ... 128, 160, ... 256, 320, ... 512, 640, ... that is not below `length`."""
    step = max(SMALLEST, 1 << max(length - 1, 0).bit_length() >> 3)
    return -(-length // step) * step


def buckets(lengths: Sequence[int], least: int) -> np.ndarray:
    """A bucket for each length; those of fewer than `least` members move up where the next is at most twice as long.

    Reading a few rows of padding more costs less than another batch, or another compile.
    """
    found = np.array([bucket(length) for length in lengths], np.int64)
    sizes, counts = np.unique(found, return_counts=True)
    for place, (size, larger) in enumerate(itertools.pairwise(sizes)):
        if counts[place] < least and larger <= 2 * size:
            found[found == size] = larger
            counts[place + 1] += counts[place]
    return found


def row_count(rows: int, most: int, parts: int = 1) -> int:
    """Rows of a batch that holds `rows`: a power of four, or `most`; a multiple of `parts`."""
    count = 1
    while count < rows:
        count *= 4
    return -(-min(count, most) // parts) * parts


def row_parts(mesh: jax.sharding.Mesh | None) -> int:
    """Devices of a mesh over which the rows of a batch are divided."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


@contextmanager
def on(mesh: jax.sharding.Mesh | None) -> Iterator[None]:
    """Makes `mesh` that of every trace inside, where there is one."""
    if mesh is None:
        yield
    else:
        with use(mesh):
            yield


def split_rows(tree: Any) -> Any:
    """Arrays with the rows in front, their rows split over the mesh of the trace."""
    return jax.tree.map(lambda x: nn.with_logical_constraint(x, ("batch", *[None] * (x.ndim - 1))), tree)


def split_cache(cache: Any) -> Any:
    """A cache, its rows and heads split over the mesh of the trace."""
    axes = ("layers", "batch", "length", "kv_heads", "head_dim")
    return jax.tree.map(lambda x: nn.with_logical_constraint(x, axes), cache)


def cache_length(cache: Any) -> int:
    """Positions of a cache."""
    return jax.tree.leaves(cache)[0].shape[2]


def new_cache(model: Decoder, rows: int, length: int) -> Any:
    """A cache that nothing was read into. With a length of 0 it is what the first tokens are read behind."""
    config = model.config
    shape = (config.layers, rows, length, config.kv_heads, config.head_dim)
    return {name: jnp.zeros(shape, config.dtype) for name in ("key", "value")}


def read(
    model: Decoder, variables: Any, cache: Any, parents: jax.Array, tokens: jax.Array, starts: jax.Array
) -> tuple[DecoderOutputs, Any]:
    """Reads tokens behind rows of a cache.

    Args:
      model: the decoder.
      variables: `params`, and `lora` where adapters are to be used.
      cache: of Q rows and T positions.
      parents: [B] int, the row of the cache that each row goes on from; several may share one.
      tokens: [B, S] int, padded on the right: what padding writes is hidden until the next tokens overwrite it.
      starts: [B] int, the position of each row's first token.

    Returns:
      The outputs for [B, S] tokens, and a cache of B rows and T + S positions.
    """
    length = tokens.shape[1]

    def grow(x):
        return jnp.pad(x[:, parents], [(0, 0), (0, 0), (0, length), (0, 0), (0, 0)])

    parents, tokens, starts = split_rows((parents, tokens, starts))
    grown = split_cache(jax.tree.map(grow, cache))
    decoder = model.clone(cache_length=cache_length(grown))
    positions = starts[:, None] + jnp.arange(length)
    outputs, changed = decoder.apply({**variables, "cache": grown}, tokens, positions, mutable=["cache"])
    return outputs, split_cache(changed["cache"])


@partial(jax.jit, static_argnames=("model",))
def prefill(
    model: Decoder, variables: Any, cache: Any, parents: jax.Array, tokens: jax.Array, starts: jax.Array
) -> Any:
    """The cache that `read` leaves."""
    return read(model, variables, cache, parents, tokens, starts)[1]


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all rows begin with, less the last token of a row that is no longer than they."""
    first, last = list(min(rows)), list(max(rows))
    most = min(len(first), len(last), min(map(len, rows)) - 1)
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return first[:same]


def shared_base(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all of several rows begin with, where they are enough to be worth a call of their own."""
    base = common_prefix(rows) if len(rows) > 1 else []
    return tuple(base) if len(base) >= SMALLEST else ()


def base_cache(model: Decoder, variables: Any, base: Sequence[int], parts: int) -> Any:
    """The cache of the tokens that all rows begin with, as its row 0; of no positions where there are none."""
    empty = new_cache(model, parts, 0)
    if not base:
        return empty
    zeros = np.zeros(parts, np.int32)
    return prefill(model, variables, empty, zeros, pad([base] * parts, bucket(len(base)), 0), zeros)

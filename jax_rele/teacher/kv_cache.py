"""Key-value caches that grow: tokens are read after a cached prefix, which several rows may share.

Lengths and batches are padded to a few sizes, so that few programs are compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jax_rele.data.tokens.packing import fewer_lengths, pad
from jax_rele.models import Decoder
from jax_rele.models.decoder import CACHE_AXES, cache_shapes
from jax_rele.models.partitioning import use
from jax_rele.types import DecoderOutputs, PyTree

SMALLEST = 16
"""The smallest padded length other than zero."""


def bucket(length: int) -> int:
    """The least of 0, 16, 32, ... 128, 160, ... 256, 320, ... 512, 640, ... that is not below `length`."""
    step = max(SMALLEST, 1 << max(length - 1, 0).bit_length() >> 3)
    return -(-length // step) * step


def buckets(lengths: Sequence[int], least: int) -> np.ndarray:
    """A bucket for each length; those of fewer than `least` members move up, see `packing.fewer_lengths`."""
    return fewer_lengths([bucket(length) for length in lengths], least)


def row_parts(mesh: jax.sharding.Mesh | None) -> int:
    """Devices of a mesh over which the rows of a batch are divided."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


@contextmanager
def use_mesh(mesh: jax.sharding.Mesh | None) -> Iterator[None]:
    """Uses `mesh`, unless None, for every trace inside the context."""
    if mesh is None:
        yield
    else:
        with use(mesh):
            yield


def split_rows(tree: PyTree) -> PyTree:
    """Arrays whose first axis is the rows, with the rows split over the mesh of the trace."""
    return jax.tree.map(lambda x: nn.with_logical_constraint(x, ("batch", *[None] * (x.ndim - 1))), tree)


def split_cache(cache: PyTree) -> PyTree:
    """A cache, its rows and heads split over the mesh of the trace."""
    return {name: nn.with_logical_constraint(x, CACHE_AXES[name]) for name, x in cache.items()}


def cache_length(cache: PyTree) -> int:
    """Positions of a cache."""
    return cache["value"].shape[3]


def new_cache(model: Decoder, rows: int, length: int) -> PyTree:
    """An empty cache. One of length 0 is what the first tokens of a row are read with."""
    shapes = cache_shapes(model.config, rows, length)
    return {name: jnp.zeros(shape, model.config.dtype) for name, shape in shapes.items()}


def read(
    model: Decoder, variables: PyTree, cache: PyTree, parents: jax.Array, tokens: jax.Array, starts: jax.Array
) -> tuple[DecoderOutputs, PyTree]:
    """Runs the decoder on tokens that continue rows of a cache.

    Args:
      model: the decoder.
      variables: `params`, and `lora` where adapters are used.
      cache: of Q rows and T positions.
      parents: [B] int, the row of the cache that each row continues; several may share one.
      tokens: [B, S] int, padded on the right; cache entries of padding stay masked until the next tokens overwrite
        them.
      starts: [B] int, the position of each row's first token.

    Returns:
      The outputs for [B, S] tokens, and a cache of B rows and T + S positions.
    """
    length = tokens.shape[1]
    parents, tokens, starts = split_rows((parents, tokens, starts))
    grown = split_cache({name: _grow(x[:, parents], name, length) for name, x in cache.items()})
    decoder = model.clone(cache_length=cache_length(grown))
    positions = starts[:, None] + jnp.arange(length)
    outputs, changed = decoder.apply({**variables, "cache": grown}, tokens, positions, mutable=["cache"])
    return outputs, split_cache(changed["cache"])


def _grow(x: jax.Array, name: str, length: int) -> jax.Array:
    widths = [(0, 0)] * 5
    widths[4 if name == "key" else 3] = (0, length)
    return jnp.pad(x, widths)


def put_rows(whole: PyTree, part: PyTree, source: jax.Array, row: jax.Array) -> PyTree:
    """A cache whose rows `row` begin with the rows `source` of a shorter cache; a row out of range is dropped."""
    length = cache_length(part)
    return {
        "key": whole["key"].at[:, row, :, :, :length].set(part["key"][:, source], mode="drop"),
        "value": whole["value"].at[:, row, :, :length].set(part["value"][:, source], mode="drop"),
    }


@partial(jax.jit, static_argnames=("model",))
def prefill(
    model: Decoder, variables: PyTree, cache: PyTree, parents: jax.Array, tokens: jax.Array, starts: jax.Array
) -> PyTree:
    """The cache that `read` returns."""
    return read(model, variables, cache, parents, tokens, starts)[1]


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """The longest common prefix that leaves every row at least one token."""
    lists = list(map(list, rows))
    first, last = min(lists), max(lists)
    most = min(len(first), len(last), min(map(len, rows)) - 1)
    same = next((index for index in range(most) if first[index] != last[index]), most)
    return first[:same]


def shared_base(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The common prefix of several rows, or () where it is too short to justify its own call."""
    base = common_prefix(rows) if len(rows) > 1 else []
    return tuple(base) if len(base) >= SMALLEST else ()


def base_cache(model: Decoder, variables: PyTree, base: Sequence[int], parts: int) -> PyTree:
    """The cache of the common prefix `base`, in its row 0; of length 0 where `base` is empty."""
    empty = new_cache(model, parts, 0)
    if not base:
        return empty
    zeros = np.zeros(parts, np.int32)
    return prefill(model, variables, empty, zeros, pad([base] * parts, bucket(len(base)), 0), zeros)

"""Abstract arrays: shapes, types and shardings of states and batches, and the bytes of a chip that they would take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jax_rele.models.partitioning import RULES, shardings
from jax_rele.training.sharding import check_rows
from jax_rele.training.state import TrainState, create_state
from jax_rele.types import Params, PyTree


def init_abstract(make: Callable[[jax.Array], PyTree], mesh: jax.sharding.Mesh) -> PyTree:
    """What `make(rng)` would be on the mesh; its arrays carry logical axis names, as `Module.init` gives them."""
    boxed = jax.eval_shape(make, jax.random.key(0))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.unbox(boxed),
        shardings(boxed, mesh),
    )


def train_state(
    init: Callable[[jax.Array], Params],
    trainable: str,
    frozen: Params,
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """The state at step 0 that `training.init_state` would return."""
    state = init_abstract(lambda rng: create_state({trainable: init(rng)[trainable]}, {}, tx), mesh)
    return dataclasses.replace(state, frozen=frozen)


def array(
    mesh: jax.sharding.Mesh, shape: tuple[int, ...], dtype: DTypeLike, axes: tuple[str | None, ...] = ()
) -> jax.ShapeDtypeStruct:
    """One array, split as its logical axis names say; without names every chip has all of it."""
    spec = nn.logical_to_mesh_axes(axes, RULES) or PartitionSpec()
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))


def rows(mesh: jax.sharding.Mesh, count: int, dtype: DTypeLike, *rest: int) -> jax.ShapeDtypeStruct:
    """[count, *rest], split by rows. Raises UserError where the rows do not divide over the chips."""
    check_rows(count, mesh, "mesh", "change the mesh, or a batch_size to a multiple of it")
    return array(mesh, (count, *rest), dtype, ("batch", *[None] * len(rest)))


def bytes_per_chip(tree: PyTree) -> int:
    """Bytes that one chip holds of the arrays of a tree."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * _bits(x.dtype) // 8 for x in jax.tree.leaves(tree))


def _bits(dtype: jnp.dtype) -> int:
    """Of one number; accelerators keep two 4-bit numbers in a byte."""
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else dtype.itemsize * 8

"""Where arrays live: one mesh, parameters born sharded, batches split by rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.models.partitioning import AXES, RULES, shardings, use
from jax_rele.training.state import TrainState, create_state

BATCH = PartitionSpec(("data", "fsdp"))
"""How every array of a batch is split: by rows."""


def make_mesh(sizes: config.Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh over all devices. Raises UserError where the axes do not multiply to the number of devices."""
    devices = jax.devices() if devices is None else devices
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    known = int(np.prod([size for size in shape if size > 0]))
    if -1 in shape:
        shape[shape.index(-1)] = max(1, len(devices) // known)
    if int(np.prod(shape)) != len(devices):
        named = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, shape))
        raise UserError(f"mesh: {named} does not make {len(devices)} devices; change `mesh` in the config")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def abstract(make: Callable[..., Any], mesh: jax.sharding.Mesh, *args: Any, collection: str) -> Any:
    """What one collection of `make(*args)` looks like on the mesh, as a target to load a checkpoint into.

    Returns:
      `{collection: tree of jax.ShapeDtypeStruct}` with shardings.
    """
    boxed = {collection: jax.eval_shape(make, *args)[collection]}
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.unbox(boxed),
        shardings(boxed, mesh),
    )


def born_sharded(make: Callable[..., Any], mesh: jax.sharding.Mesh, *args: Any) -> Any:
    """Runs `make(*args)` under jit so that each device makes only its own shard; axis names are taken off."""
    with use(mesh):
        out_shardings = shardings(jax.eval_shape(make, *args), mesh)
        return jax.jit(lambda *xs: nn.unbox(make(*xs)), out_shardings=out_shardings)(*args)


def init_state(
    init: Callable[[jax.Array], dict[str, Any]],
    trainable: str,
    frozen: dict[str, Any],
    tx: Any,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> TrainState:
    """A sharded state at step 0.

    Args:
      init: rng -> variable collections with logical axis names, e.g. `lambda rng: model.init(rng, tokens)`.
      trainable: the collection that learns.
      frozen: collections that are only read, already on the mesh.
      tx: the optimizer; its state is sharded like what it belongs to.
      mesh: the devices.
      seed: of the initial values.
    """

    def make(rng):
        return create_state({trainable: init(rng)[trainable]}, {}, tx)

    state = born_sharded(make, mesh, jax.random.key(seed))
    return TrainState(state.step, state.trainable, frozen, state.opt_state)


def place(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """A batch of this process's numpy rows -> global arrays split by rows over the mesh.

    Raises UserError where the rows do not divide evenly over the devices.
    """
    sharding = NamedSharding(mesh, BATCH)
    rows, parts = len(jax.tree.leaves(batch)[0]) * jax.process_count(), mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        raise UserError(
            f"mesh: {rows} rows of a step do not divide over data x fsdp = {parts} devices; change the mesh, or the "
            "batch_size of the stage's optimization to a multiple of it"
        )
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def shard_step(step: Callable[..., Any], mesh: jax.sharding.Mesh, state: TrainState) -> Callable[..., Any]:
    """Compiles `step(state, batch)` for the mesh.

    The state keeps its shardings. The buffers of what learns are given up to the new state; frozen variables are only
    read, so one base serves any number of runs.
    """
    learns = dataclasses.replace(state, frozen={})
    learns_shardings, frozen_shardings = (jax.tree.map(lambda x: x.sharding, tree) for tree in (learns, state.frozen))

    @partial(
        jax.jit,
        in_shardings=(learns_shardings, frozen_shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(learns_shardings, None),
        donate_argnums=0,
    )
    def compiled(learns, frozen, batch):
        state, metrics = step(dataclasses.replace(learns, frozen=frozen), batch)
        return dataclasses.replace(state, frozen={}), metrics

    def run(state, batch):
        with use(mesh):
            learns, metrics = compiled(dataclasses.replace(state, frozen={}), state.frozen, batch)
        return dataclasses.replace(learns, frozen=state.frozen), metrics

    run.compiled = compiled
    return run

"""Sharding: one mesh, parameters initialised sharded, batches split by rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.models.partitioning import AXES, shardings, use
from jax_rele.training.state import Batch, Metrics, Step, TrainState, create_state
from jax_rele.types import Params, PyTree

BATCH = PartitionSpec(("data", "fsdp"))
"""How every array of a batch is split: by rows."""

_FIX = "change the mesh, or the batch_size of the stage's optimization to a multiple of it"


def batch_shards(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """How many equal parts of a batch the devices hold."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH[0])


def check_rows(
    rows: int, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, path: str, fix: str, *, what: str = "rows"
) -> None:
    """Raises UserError where rows that are computed at a time do not divide over the data and fsdp axes of a mesh.

    Args:
      rows: how many.
      mesh: the devices.
      path: of the config, for the message.
      fix: what to change.
      what: what the rows are.
    """
    devices = batch_shards(mesh)
    if rows % devices:
        raise UserError(f"{path}: {rows} {what} do not divide over data x fsdp = {devices} devices; {fix}")


def make_mesh(sizes: config.MeshConfig, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh over all devices. Raises UserError where the axes do not multiply to the number of devices.

    Several slices of TPU pods (on GPUs, what JAX numbers as slices) are along data, then fsdp, then tensor.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    known = int(np.prod([size for size in shape if size > 0]))
    if -1 in shape:
        shape[shape.index(-1)] = max(1, len(devices) // known)
    if int(np.prod(shape)) != len(devices):
        named = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, shape))
        raise UserError(f"mesh: {named} does not make {len(devices)} devices; change `mesh` in the config")
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=devices)
    across = spread(shape, slices)
    within = [size // count for size, count in zip(shape, across)]
    grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, AXES, axis_types=types)


def spread(shape: Sequence[int], slices: int) -> list[int]:
    """How many slices each axis of a mesh of this shape spans, the first axes as many as they can."""
    across = []
    for size in shape:
        across.append(math.gcd(size, slices))
        slices //= across[-1]
    return across


def make_local_mesh(sizes: config.MeshConfig) -> jax.sharding.Mesh:
    """A mesh over this process's own devices, for work that no other takes part in.

    A process that is alone has all of them. Otherwise the tensor and then the fsdp axis keep as much of their size as
    the process's devices can hold.
    """
    shape, local = make_mesh(sizes).shape, jax.local_devices()
    tensor = math.gcd(shape["tensor"], len(local))
    fsdp = math.gcd(shape["fsdp"], len(local) // tensor)
    return make_mesh(config.MeshConfig(data=-1, fsdp=fsdp, tensor=tensor), local)


def abstract(make: Callable[..., PyTree], mesh: jax.sharding.Mesh, *args: PyTree, collection: str) -> PyTree:
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


def init_sharded(make: Callable[..., PyTree], mesh: jax.sharding.Mesh, *args: PyTree) -> PyTree:
    """Runs `make(*args)` under jit so that each device makes only its own shard; axis names are taken off."""
    return _compile_sharded(make, mesh, *args)(*args)


def _compile_sharded(make: Callable[..., PyTree], mesh: jax.sharding.Mesh, *args: PyTree) -> Callable[..., PyTree]:
    """`init_sharded` for arguments like these, compiled once."""
    with use(mesh):
        out_shardings = shardings(jax.eval_shape(make, *args), mesh)
    compiled = jax.jit(lambda *xs: nn.unbox(make(*xs)), out_shardings=out_shardings)

    def run(*args):
        with use(mesh):
            return compiled(*args)

    return run


def init_state(
    init: Callable[[jax.Array], Params],
    trainable: str,
    frozen: Params,
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> TrainState:
    """A sharded state at step 0: `make_init_fn` for one seed."""
    return make_init_fn(init, trainable, frozen, tx, mesh)(seed)


def make_init_fn(
    init: Callable[[jax.Array], Params],
    trainable: str,
    frozen: Params,
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> Callable[[int], TrainState]:
    """Makes `seed -> sharded state at step 0`, which compiles once; the seed is of the initial values and of dropout.

    Args:
      init: rng -> variable collections with logical axis names, e.g. `lambda rng: model.init(rng, tokens)`.
      trainable: the collection that learns.
      frozen: collections that are only read, already on the mesh.
      tx: the optimizer; its state is sharded like what it belongs to.
      mesh: the devices.
    """

    def make(seed):
        return create_state({trainable: init(jax.random.key(seed))[trainable]}, {}, tx, seed)

    init_sharded_state = _compile_sharded(make, mesh, jnp.uint32(0))
    return lambda seed: dataclasses.replace(init_sharded_state(jnp.uint32(seed)), frozen=frozen)


def _parts_of_process(mesh: jax.sharding.Mesh, process: int) -> tuple[list[int], int]:
    """(Indices of the parts of a batch that this process holds, number of parts); ([0], 1) for one process."""
    if len({device.process_index for device in mesh.devices.flat}) == 1:
        return [0], 1
    by_row = mesh.devices.reshape(-1, mesh.shape["tensor"])
    own = [row for row, devices in enumerate(by_row) if process in {device.process_index for device in devices}]
    return own, len(by_row)


def local_row_indices(mesh: jax.sharding.Mesh, rows: int, process: int | None = None) -> np.ndarray:
    """The numbers of the rows of a batch of `rows` that a process's devices hold, ascending; by default this process's.

    Each index along data x fsdp holds an equal run of rows. Processes hold the same ones where the tensor axis spans
    them. Raises UserError where the rows do not divide evenly over several processes' devices.
    """
    own, parts = _parts_of_process(mesh, jax.process_index() if process is None else process)
    if parts > 1:
        check_rows(rows, mesh, "mesh", _FIX, what="rows or groups of a step over several processes")
    return np.arange(rows).reshape(parts, -1)[own].reshape(-1)


def shard_batch(batch: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """This process's numpy rows of a batch (see `local_row_indices`) -> global arrays split by rows over the mesh.

    Raises UserError where the rows do not divide evenly over the devices.
    """
    sharding, (own, parts) = NamedSharding(mesh, BATCH), _parts_of_process(mesh, jax.process_index())

    def put(rows):
        size = len(rows) // len(own)
        check_rows(size * parts, mesh, "mesh", _FIX, what="rows of a step")
        begins = {part: size * number for number, part in enumerate(own)}

        def read(index):
            start, stop, _ = index[0].indices(size * parts)
            begin = begins[start // size] + start % size
            return rows[(slice(begin, begin + stop - start), *index[1:])]

        return jax.make_array_from_callback((size * parts, *rows.shape[1:]), sharding, read)

    return jax.tree.map(lambda rows: put(np.asarray(rows)), batch)


def shard_step(step: Step, mesh: jax.sharding.Mesh, state: TrainState) -> ShardedStep:
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

    return ShardedStep(compiled, mesh)


@dataclasses.dataclass(frozen=True)
class ShardedStep:
    """A compiled step, `(state, batch) -> (state, metrics)`.

    Attributes:
      compiled: the jitted function of (state without frozen variables, frozen variables, batch).
      mesh: the devices.
    """

    compiled: jax.stages.Wrapped
    mesh: jax.sharding.Mesh

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with use(self.mesh):
            learns, metrics = self.compiled(dataclasses.replace(state, frozen={}), state.frozen, batch)
        return dataclasses.replace(learns, frozen=state.frozen), metrics

"""Orbax checkpoints of a run (state and data iterator together) and of finished variables.

With several processes they all call these functions together; each writes and reads its own shards.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from jax_rele.errors import UserError
from jax_rele.io import disk_is_full, handles_are_out, hash_folder, write_error, write_text
from jax_rele.training import distributed
from jax_rele.training.state import TrainState
from jax_rele.types import Params, PyTree

STATE, DATA = "state", "data"
CHECKSUM = "checksum.txt"
"""In the folder of a checkpoint, a hash of its other files: the formats inside do not notice every changed bit."""

_SLICE_BYTES = 2**20
"""Of an array that several devices hold, each writes a slice of at least this size: smaller ones take longer than the
array takes one device."""

T = TypeVar("T")


class Stateful(Protocol):
    """An object whose position can be saved and restored, as Grain's iterators."""

    def get_state(self) -> PyTree: ...

    def set_state(self, state: PyTree) -> None: ...


# Orbax logs every save at INFO, warns of defaults that are meant, and logs errors of its threads before it raises them.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@contextmanager
def open_checkpoints(directory: Path, every: int, keep: int = 2) -> Iterator[ocp.training.Checkpointer]:
    """The checkpoints in `directory/<step>/`; one is due every `every` steps, the last `keep` are kept.

    A checkpoint is written under a temporary name and renamed, so a killed run leaves only whole ones.

    Raises:
      UserError: the folder cannot be written.
    """
    with _writing(directory):
        checkpoints = ocp.training.Checkpointer(
            directory.resolve(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(every),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
            context=_context(),
        )
    try:
        yield checkpoints
    except BaseException:
        with suppress(Exception):  # it would raise once more what made a save fail
            checkpoints.close()
        raise
    with _writing(directory):
        checkpoints.close()


def _context() -> ocp.Context:
    saving = ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=_SLICE_BYTES)
    return ocp.Context(array_options=ocp.options.ArrayOptions(saving=saving))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises UserError for errors of the file system, which Orbax and TensorStore raise as several classes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or disk_is_full(error) or handles_are_out(error):
            raise write_error(path, error) from error
        raise


def _trainable_state(state: TrainState) -> Params:
    # Frozen variables come from another stage: a LoRA checkpoint holds adapters, not the base.
    return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}


def _abstract(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save(
    checkpoints: ocp.training.Checkpointer, step: int, state: TrainState, iterator: Stateful, *, force: bool = False
) -> None:
    """Saves the trainable state and the data iterator's position, if the step is due or with `force`.

    The iterator's state must be the same in every process, as that of `data.batches.loader.batches` is: it is saved
    once, so that any number of processes can resume from it.
    """
    with _writing(Path(str(checkpoints.directory))):
        checkpoints.save_checkpointables(
            step, {STATE: _trainable_state(state), DATA: iterator.get_state()}, force=force
        )
    _write_checksum(Path(str(checkpoints.directory)) / str(step))


def restore(checkpoints: ocp.training.Checkpointer, state: TrainState, iterator: Stateful) -> TrainState:
    """The latest checkpoint in the shardings of `state`; `iterator` is moved to where it stood.

    Returns `state` itself where there is none. Raises UserError for a checkpoint that cannot be read.
    """
    step = distributed.on_main(lambda: checkpoints.latest and checkpoints.latest.step)
    if step is None:
        return state
    path = Path(str(checkpoints.directory)) / str(step)
    target = {STATE: _abstract(_trainable_state(state)), DATA: iterator.get_state()}
    damaged = f"{path}: damaged checkpoint; delete this folder to resume from the one before"
    _check(path, damaged)
    loaded = _read(lambda: checkpoints.load_checkpointables(step, target), damaged)
    iterator.set_state(loaded[DATA])
    return dataclasses.replace(state, **loaded[STATE])


def save_variables(path: Path, variables: PyTree) -> None:
    """Writes variable collections as one Orbax checkpoint, replacing what is there.

    Raises UserError where it cannot be written.
    """
    with _writing(path), _context():
        ocp.save(path.resolve(), variables, overwrite=True)
    _write_checksum(path)


def load_variables(path: Path, abstract: PyTree) -> PyTree:
    """Reads variable collections into the shapes, dtypes and shardings of `abstract`.

    Where those shardings are over this process's devices alone, it reads by itself and waits for no other.

    Raises UserError where the checkpoint is missing, damaged or of another shape.
    """
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; run the stage that writes it")
    damaged = f"{path}: damaged checkpoint or one of another model; delete the folder of its stage and run that again"
    _check(path, damaged)
    return _read(lambda: _load(path.resolve(), abstract), damaged)


def _write_checksum(path: Path) -> None:
    """Of a checkpoint that all processes have written; one that is not there was not due."""
    if distributed.is_main() and path.is_dir():
        write_text(path / CHECKSUM, hash_folder(path, CHECKSUM))


def _check(path: Path, message: str) -> None:
    """Raises UserError where process 0 finds another content than was written; without a checksum all is accepted."""
    file = path / CHECKSUM
    if distributed.is_main() and file.is_file() and file.read_text("utf-8") != hash_folder(path, CHECKSUM):
        raise UserError(f"{message} (its files are not those that were written)")


def clear(directory: Path) -> None:
    """Deletes a run's checkpoints once what they led to is saved."""
    distributed.barrier(f"delete {directory}")
    if distributed.is_main():
        shutil.rmtree(directory, ignore_errors=True)


def _load(path: Path, abstract: PyTree) -> PyTree:
    process = jax.process_index()
    alone = all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(abstract))
    if jax.process_count() == 1 or not alone:
        return ocp.load(path, abstract)
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process_{process}"
    )
    with ocp.Context(multiprocessing_options=options):
        return ocp.load(path, abstract)


def _read(load: Callable[[], T], message: str) -> T:
    """Runs `load`; any failure is a UserError with `message`, and nothing else is printed."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        loaded = load()
    except Exception as error:
        # The hook stays off: the other readers of the same checkpoint fail after this one, some as the process ends.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")
        if handles_are_out(error):  # nothing is damaged
            raise write_error(message.partition(": ")[0], error) from None
        raise UserError(f"{message} ({_one_line(error)})") from None
    sys.unraisablehook = hook
    return loaded


def _one_line(error: Exception, limit: int = 60) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}" + ("…" if len(text) > limit else "")

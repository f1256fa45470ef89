"""The training loop: resume, step, log, save."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grain
import jax

from jax_rele.config import OptimizationConfig
from jax_rele.errors import Preempted
from jax_rele.training import checkpoint, distributed, preemption
from jax_rele.training.metric_log import MetricLog
from jax_rele.training.sharding import shard_batch
from jax_rele.training.state import Batch, Step, TrainState


def train(
    step: Step,
    state: TrainState,
    batches: grain.DatasetIterator,
    *,
    config: OptimizationConfig,
    mesh: jax.sharding.Mesh,
    directory: Path,
    title: str,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    check: Callable[[dict[str, float]], str] = lambda row: "",
) -> TrainState:
    """Trains for `config.steps` steps, resuming from the last checkpoint in `directory` where there is one.

    Writes `checkpoints/` (model, optimizer and iterator together), `metrics.jsonl` and `tensorboard/`. All
    processes of a run call this; process 0 writes the latter two. After SIGTERM it saves a checkpoint and raises, where
    `preemption.end_on_sigterm` is in force.

    Args:
      step: a compiled training step, see `sharding.shard_step`.
      state: the state at step 0, on the mesh; its buffers are donated.
      batches: a Grain iterator over this process's numpy rows of every batch, see `data.batches.loader.batches`.
      config: how long, how often to save and log.
      mesh: where batches go.
      directory: the folder of this training run.
      title: what the progress bar and errors call it.
      evaluate: measures a state, e.g. on held-out rows; its figures are logged as `eval/NAME`.
      evaluate_every: steps between two measurements; the last step is measured too. 0 for none.
      check: a warning for a line of the log after the warm-up, e.g. `collapse_check`; the first one is printed.

    Returns:
      The state after the last step.

    Raises:
      DivergedError: the loss or gradient is not finite (earlier checkpoints stay).
      UserError: the checkpoint to resume from is damaged.
      Preempted: SIGTERM was received.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (
        preemption.deferred(),
        checkpoint.open_checkpoints(directory / "checkpoints", config.checkpoint_every) as checkpoints,
    ):
        state = checkpoint.restore(checkpoints, state, batches)
        start = int(state.step)
        with MetricLog(directory, start, config, title, check) as log:
            pending = None
            prefetcher = _Prefetcher(batches, mesh)
            for number in range(start + 1, config.steps + 1):
                batch, pairs, waited = prefetcher.take()
                state, metrics = step(state, batch)
                if number < config.steps:
                    prefetcher.fetch()
                # Metrics are read one step late, so that the device never waits for the host.
                if pending is not None:
                    log.record(*pending)
                pending = (number, metrics, pairs * distributed.process_count(), waited)
                last = number == config.steps
                measure = None
                if evaluate is not None and evaluate_every and (last or number % evaluate_every == 0):
                    measure = partial(evaluate, state)
                is_preempted = not last and preemption.is_due(number, str(directory))
                save = checkpoints.should_save(number) or last or is_preempted
                if measure is not None or save:
                    # Logged before it is saved, so that a run that resumes from the checkpoint has the line.
                    log.record(*pending, measure)
                    pending = None
                if save:
                    checkpoint.save(checkpoints, number, state, prefetcher, force=is_preempted)
                if is_preempted:
                    raise Preempted(f"{title}: stopped by SIGTERM, step {number} is saved; the same command resumes")
    return state


class _Prefetcher:
    """Sends the next batch to the devices while they compute; its state is that of the last batch of `take`."""

    def __init__(self, batches: grain.DatasetIterator, mesh: jax.sharding.Mesh):
        self.batches, self.mesh = batches, mesh
        self.state, self.waited = batches.get_state(), 0.0
        self.fetched: tuple[Batch, int, object] | None = None

    def fetch(self) -> None:
        begin = time.perf_counter()
        rows = next(self.batches)
        self.waited += time.perf_counter() - begin
        self.fetched = shard_batch(rows, self.mesh), _rows(rows), self.batches.get_state()

    def take(self) -> tuple[Batch, int, float]:
        """The batch, how many pairs it holds, and the seconds spent waiting for input since the last one."""
        if self.fetched is None:
            self.fetch()
        assert self.fetched is not None
        batch, pairs, self.state = self.fetched
        waited, self.fetched, self.waited = self.waited, None, 0.0
        return batch, pairs, waited

    def get_state(self) -> object:
        return self.state

    def set_state(self, state: object) -> None:
        self.batches.set_state(state)
        self.state, self.fetched = state, None


def _rows(batch: Batch) -> int:
    """Pairs of a batch, less its padding."""
    if "mask" in batch:
        return int(batch["mask"].sum())
    if "segments" in batch.get("inputs", {}):  # packed: numbered from 1 in each row
        return int(batch["inputs"]["segments"].max(axis=1).sum())
    return len(jax.tree.leaves(batch)[0])

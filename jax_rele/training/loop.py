"""The one training loop: resume, step, log, save, and stop when the loss is no longer a number."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from jax_rele import losses
from jax_rele.config import OptimizationConfig
from jax_rele.errors import UserError
from jax_rele.progress import make_progress
from jax_rele.training import checkpoint, distributed
from jax_rele.training.optimizer import learning_rate
from jax_rele.training.sharding import place
from jax_rele.training.state import TrainState


def train(
    step: Callable[..., tuple[TrainState, dict[str, Any]]],
    state: TrainState,
    batches: Iterator[Any],
    *,
    config: OptimizationConfig,
    mesh: jax.sharding.Mesh,
    directory: Path,
    title: str,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    alarm: Callable[[dict[str, float]], str] = lambda row: "",
) -> TrainState:
    """Trains for `config.steps` steps, going on from the last checkpoint in `directory` where there is one.

    Writes `checkpoints/` (model, optimizer and iterator together), `metrics.jsonl` and `tensorboard/`. Several
    processes call this together; process 0 writes the latter two.

    Args:
      step: a compiled training step, see `sharding.shard_step`.
      state: the state at step 0, on the mesh; its buffers are given up.
      batches: a Grain iterator over this process's numpy rows of every batch, see `data.loader.batches`.
      config: how long, how often to save and log.
      mesh: where batches go.
      directory: the folder of this training run.
      title: what the progress bar and errors call it.
      evaluate: measures a state, e.g. on held-out rows; its figures are logged as `eval/NAME`.
      evaluate_every: steps between two measurements; the last step is measured too. 0 for none.
      alarm: what to tell of a line of the log after the warm-up, e.g. `collapse.alarm`; the first such text is printed.

    Returns:
      The state after the last step.

    Raises:
      UserError: the loss or gradient is not finite (earlier checkpoints stay), or the checkpoint to go on from is
        damaged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with checkpoint.open_checkpoints(directory / "checkpoints", config.checkpoint_every) as checkpoints:
        state = checkpoint.restore(checkpoints, state, batches)
        start = int(state.step)
        with _Log(directory, start, config, title, alarm) as log:
            pending = None
            ahead = _Ahead(batches, mesh)
            for number in range(start + 1, config.steps + 1):
                batch, pairs, waited = ahead.take()
                state, metrics = step(state, batch)
                if number < config.steps:
                    ahead.fetch()
                # Metrics are read one step late, so that the device never waits for the host.
                if pending is not None:
                    log.record(*pending)
                pending = (number, metrics, pairs * distributed.process_count(), waited)
                last = number == config.steps
                measure = evaluate_every and (last or number % evaluate_every == 0)
                save = checkpoints.should_save(number) or last
                if measure or save:
                    # Logged before it is saved, so that a run that goes on from the checkpoint has the line.
                    log.record(*pending, partial(evaluate, state) if measure else None)
                    pending = None
                if save:
                    checkpoint.save(checkpoints, number, state, ahead)
    return state


class _Ahead:
    """The next batch on its way to the devices while they compute; its state is that of the batches taken."""

    def __init__(self, batches: Iterator[Any], mesh: jax.sharding.Mesh):
        self.batches, self.mesh = batches, mesh
        self.state, self.fetched, self.waited = batches.get_state(), None, 0.0

    def fetch(self) -> None:
        begin = time.perf_counter()
        rows = next(self.batches)
        self.waited += time.perf_counter() - begin
        self.fetched = place(rows, self.mesh), _rows(rows), self.batches.get_state()

    def take(self) -> tuple[Any, int, float]:
        """The batch, how many pairs it holds, and the seconds spent waiting for input since the last one."""
        if self.fetched is None:
            self.fetch()
        batch, pairs, self.state = self.fetched
        waited, self.fetched, self.waited = self.waited, None, 0.0
        return batch, pairs, waited

    def get_state(self) -> Any:
        return self.state


def _rows(batch: Any) -> int:
    """Pairs of a batch, less its padding."""
    if "mask" in batch:
        return int(batch["mask"].sum())
    if "segments" in batch.get("inputs", {}):  # packed: numbered from 1 in each row
        return int(batch["inputs"]["segments"].max(axis=1).sum())
    return len(jax.tree.leaves(batch)[0])


class _Log:
    """Progress bar, JSONL and TensorBoard behind one `record`; sums terms over the steps between two lines."""

    def __init__(
        self,
        directory: Path,
        start: int,
        config: OptimizationConfig,
        title: str,
        alarm: Callable[[dict[str, float]], str],
    ):
        self.config, self.title, self.directory, self.alarm = config, title, directory, alarm
        self.alarmed = False
        self.rate = learning_rate(config)
        self.path = directory / "metrics.jsonl"
        # Every process sees the same figures.
        self.writes = distributed.is_main()
        # Lines after the checkpoint that the run goes on from will be written again.
        if self.writes:
            lines = self.path.read_text("utf-8").splitlines() if start and self.path.exists() else []
            kept = [line for line in lines if _step_of(line) <= start]
            self.path.write_text("".join(line + "\n" for line in kept), "utf-8")
            self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)
        self.totals: dict[str, tuple[float, float]] = {}
        self.loss = self.steps = self.pairs = self.waited = 0
        self.clock = time.perf_counter()
        self.progress = make_progress(title, "loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} pairs/s")
        self.bar = self.progress.add_task(title, total=config.steps, completed=start, loss=math.nan, rate=0.0)

    def __enter__(self):
        if self.writes:
            self.file = self.path.open("a", encoding="utf-8")
            self.progress.start()
        return self

    def __exit__(self, *_):
        if self.writes:
            self.progress.stop()
            self.file.close()
            self.board.close()

    def record(
        self,
        step: int,
        metrics: dict[str, Any],
        pairs: int,
        waited: float,
        measure: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        metrics = jax.tree.map(float, jax.device_get(metrics))
        loss, norm = metrics["loss"], metrics["grad_norm"]
        terms = {f"term/{name}": total for name, total in metrics["terms"].items()} | metrics.get("watched", {})
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise UserError(
                f"{self.title}: loss {loss}, gradient norm {norm} at step {step}; lower optimization.learning_rate "
                f"({self.config.learning_rate:g}) or check the data. Checkpoints before it are kept in {self.directory}"
            )
        self.totals = losses.add_totals(self.totals, terms) if self.totals else terms
        self.loss, self.steps, self.pairs = self.loss + loss, self.steps + 1, self.pairs + pairs
        self.waited += waited
        self.progress.advance(self.bar)
        if step % self.config.log_every and step != self.config.steps and measure is None:
            return
        now = time.perf_counter()
        row = {
            "step": step,
            "loss": self.loss / self.steps,
            "grad_norm": norm,
            "learning_rate": float(self.rate(step)),
            # A term of which no element was there has no mean.
            **{name: value for name, value in losses.means(self.totals).items() if math.isfinite(value)},
            **{f"gradient/{name}": value for name, value in metrics.get("term_gradients", {}).items()},
            "pairs_per_second": self.pairs / (now - self.clock),
            # At most this share of the time the devices had nothing to do for want of input.
            "input_wait": self.waited / (now - self.clock),
        }
        if measure is not None:
            row |= {f"eval/{name}": value for name, value in measure().items()}
        if self.writes:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
            for key, value in row.items():
                if key != "step":
                    self.board.add_scalar(key, value, step)
        if not self.alarmed and step > self.config.warmup_fraction * self.config.steps and (told := self.alarm(row)):
            self.alarmed = True
            if self.writes:
                self.progress.console.print(f"{self.title}: {told}", markup=False, highlight=False, soft_wrap=True)
        self.progress.update(self.bar, loss=row["loss"], rate=row["pairs_per_second"])
        self.totals, self.loss, self.steps, self.pairs, self.waited = {}, 0, 0, 0, 0
        self.clock = time.perf_counter()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # half a line, from the moment the run was killed

"""The log of a training: terms summed between lines, throughput, and a stop when the loss is no longer a number."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jax_rele import losses
from jax_rele.config import OptimizationConfig
from jax_rele.errors import UserError
from jax_rele.losses.combine import Totals
from jax_rele.progress import make_progress
from jax_rele.training import distributed
from jax_rele.training.optimizer import learning_rate
from jax_rele.training.state import Metrics


class DivergedError(UserError):
    """The loss or the gradient of a training is no finite number."""


class MetricLog:
    """Writes a training's figures to a progress bar, JSONL and TensorBoard; process 0 alone writes.

    Args:
      directory: of `metrics.jsonl` and `tensorboard/`.
      start: the step that the run resumes from; later lines are removed, as they will be written again.
      config: how often to log, and the learning rate.
      title: of the progress bar and of errors.
      check: see `train`.
    """

    def __init__(
        self,
        directory: Path,
        start: int,
        config: OptimizationConfig,
        title: str,
        check: Callable[[dict[str, float]], str],
    ):
        self.config, self.title, self.directory, self.check = config, title, directory, check
        self.warned = False
        self.rate = learning_rate(config)
        self.path = directory / "metrics.jsonl"
        # Every process sees the same figures.
        self.writes = distributed.is_main()
        if self.writes:
            lines = self.path.read_text("utf-8").splitlines() if start and self.path.exists() else []
            before = [line for line in lines if _step_of(line) <= start]
            self.path.write_text("".join(line + "\n" for line in before), "utf-8")
            self.board = _Board(directory / "tensorboard", start + 1)
        self.totals: Totals = {}
        self.loss, self.waited, self.steps, self.pairs = 0.0, 0.0, 0, 0
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
        metrics: Metrics,
        pairs: int,
        waited: float,
        measure: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Adds a step; writes a line where one is due, or where `measure` is to be logged with it.

        Args:
          step: its number.
          metrics: as the step returned them; terms are summed over the steps between two lines.
          pairs: of its batch, over all processes.
          waited: seconds spent waiting for input.
          measure: figures of the state to log beside it.

        Raises:
          DivergedError: the loss or the gradient norm is not finite.
        """
        metrics = jax.tree.map(float, jax.device_get(metrics))
        loss, norm = metrics["loss"], metrics["grad_norm"]
        terms = {f"term/{name}": total for name, total in metrics["terms"].items()} | metrics.get("extra", {})
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise DivergedError(
                f"{self.title}: loss {loss}, gradient norm {norm} at step {step}; lower optimization.learning_rate "
                f"({self.config.learning_rate:g}) or check the data. Earlier checkpoints are in {self.directory}"
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
            # A term without any element has no mean.
            **{name: value for name, value in losses.means(self.totals).items() if math.isfinite(value)},
            **{f"gradient/{name}": value for name, value in metrics.get("term_gradients", {}).items()},
            "pairs_per_second": self.pairs / (now - self.clock),
            # At most this fraction of the time the devices waited for input.
            "input_wait": self.waited / (now - self.clock),
        }
        if measure is not None:
            row |= {f"eval/{name}": value for name, value in measure().items()}
        if self.writes:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
            self.board.write({key: value for key, value in row.items() if key != "step"}, step)
        if not self.warned and step > self.config.warmup_fraction * self.config.steps and (warning := self.check(row)):
            self.warned = True
            if self.writes:
                self.progress.console.print(f"{self.title}: {warning}", markup=False, highlight=False, soft_wrap=True)
        self.progress.update(self.bar, loss=row["loss"], rate=row["pairs_per_second"])
        self.totals, self.loss, self.waited, self.steps, self.pairs = {}, 0.0, 0.0, 0, 0
        self.clock = time.perf_counter()


class _Board:
    """A file of TensorBoard, written at once.

    `tensorboardX.SummaryWriter` has a thread that waits by the clock of the day: where that jumps the thread ends, and
    the training waits for it for ever.
    """

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.events = EventsWriter(str(folder / "events"))
        # TensorBoard forgets what an earlier attempt wrote of these steps.
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        self.events.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.events.write_event(event)

    def close(self) -> None:
        self.events.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # an incomplete line: the run was killed while it was written

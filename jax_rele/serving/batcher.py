"""Rows of several requests in one batch: one thread per bundle runs the graphs, bounded by tokens.

There is no timer. A batch holds what came in while the previous one ran: the row that has waited longest, with the rows
nearest to it in length, as many as fit in a number of tokens, padding included. A long request may be split over
batches. Rows that wait are bounded by number; what is beyond is refused at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np

from jax_rele.deployment.scorer import ROUND

Rows = Sequence[Sequence[int]]
Run = Callable[[str, Rows, Rows | None], Mapping[str, np.ndarray]]
"""Graph, rows of token ids and their types -> outputs, whose first axis is the rows in order."""

PER_TOKEN = ("evidence_logits", "token_embeddings")
"""Outputs whose second axis is a row's tokens."""


class Overloaded(Exception):
    """More rows would wait than may."""


class Closed(Exception):
    """Nothing more is taken."""


@dataclass(frozen=True)
class Outcome:
    """What became of N rows.

    Attributes:
      outputs: by name, in the order of the rows; what is one per token is padded with zeros to the longest row.
      queue_seconds: until the last row was taken into a batch.
      infer_seconds: of all batches that held a row.
    """

    outputs: dict[str, np.ndarray]
    queue_seconds: float
    infer_seconds: float


@dataclass(eq=False)
class _Job:
    graph: str
    rows: Rows
    types: Rows | None
    future: Future[Outcome] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)
    outputs: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    started: float = 0.0
    infer_seconds: float = 0.0


_Entry = tuple[_Job, int]


class Batcher:
    """Runs the graphs of a bundle in a thread of its own, for callers in any thread.

    Args:
      run: see `Run`; `Scorer.run` is one.
      batch_tokens: most tokens of a batch, padding included; a single row may hold more.
      queue_rows: most rows that wait.
      on_batch: is told the number of rows and of tokens, padding included, and the seconds of each batch.
    """

    def __init__(
        self,
        run: Run,
        *,
        batch_tokens: int,
        queue_rows: int,
        on_batch: Callable[[int, int, float], object] = lambda rows, tokens, seconds: None,
    ):
        self._run, self._on_batch = run, on_batch
        self._batch_tokens, self._queue_rows = batch_tokens, queue_rows
        self._waiting: list[_Entry] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of rows that wait."""
        return len(self._waiting)

    def submit(self, graph: str, rows: Rows, types: Rows | None = None) -> Future[Outcome]:
        """Queues rows of token ids for a graph; cancelling the future drops those that still wait.

        Raises:
          ValueError: there is no row, or one is empty.
          Overloaded: they would be more rows than may wait.
          Closed: `close` was called.
        """
        if not rows or not all(rows):
            raise ValueError("a request needs at least one row, and a row at least one token")
        job = _Job(graph, rows, types)
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) + len(rows) > self._queue_rows:
                self._waiting = [entry for entry in self._waiting if not entry[0].future.cancelled()]
            if len(self._waiting) + len(rows) > self._queue_rows:
                raise Overloaded
            self._waiting.extend((job, index) for index in range(len(rows)))
            self._changed.notify()
        return job.future

    def close(self, timeout: float | None = None) -> None:
        """Takes nothing more, finishes what was taken, and ends the thread; waits for it at most so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while batch := self._take():
            self._run_batch(batch)

    def _take(self) -> list[_Entry]:
        """The rows of the next batch; none where nothing waits and nothing will."""
        with self._changed:
            while True:
                self._waiting = [entry for entry in self._waiting if not entry[0].future.done()]
                if self._waiting:
                    break
                if self._closed:
                    return []
                self._changed.wait()
            oldest, index = self._waiting[0]
            length = len(oldest.rows[index])
            same = [entry for entry in self._waiting if entry[0].graph == oldest.graph]
            # Stable, so that of rows of one length the oldest go first.
            same.sort(key=lambda entry: abs(len(entry[0].rows[entry[1]]) - length))
            batch: list[_Entry] = []
            longest = 0
            for entry in same:
                longest = max(longest, padded(len(entry[0].rows[entry[1]])))
                if batch and longest * (len(batch) + 1) > self._batch_tokens:
                    break
                batch.append(entry)
            chosen = set(batch)
            self._waiting = [entry for entry in self._waiting if entry not in chosen]
            return batch

    def _run_batch(self, batch: list[_Entry]) -> None:
        jobs = list(dict.fromkeys(job for job, _ in batch))
        rows = [job.rows[index] for job, index in batch]
        types = None
        if any(job.types is not None for job in jobs):
            types = [job.types[index] if job.types else [0] * len(job.rows[index]) for job, index in batch]
        start = time.perf_counter()
        try:
            outputs = self._run(jobs[0].graph, rows, types)
            seconds = time.perf_counter() - start
            for number, (job, index) in enumerate(batch):
                # Copies, as a view would keep the whole batch in memory while a long request waits for its rest.
                job.outputs[index] = {
                    name: (value[number, : len(rows[number])] if name in PER_TOKEN else value[number]).copy()
                    for name, value in outputs.items()
                }
            self._on_batch(len(rows), len(rows) * padded(max(map(len, rows))), seconds)
            for job in jobs:
                job.started = start
                job.infer_seconds += seconds
                if len(job.outputs) == len(job.rows):
                    _settle(job, _result(job))
        except Exception as error:  # of the graph: the callers are told, the thread goes on
            for job in jobs:
                _settle(job, error)


def padded(length: int) -> int:
    """The tokens of a row with its padding, where no longer row is in the batch."""
    return -(-length // ROUND) * ROUND


def _result(job: _Job) -> Outcome:
    parts = [job.outputs[index] for index in range(len(job.rows))]
    outputs = {name: _stack([part[name] for part in parts], name in PER_TOKEN) for name in parts[0]}
    return Outcome(outputs, job.started - job.arrived, job.infer_seconds)


def _settle(job: _Job, outcome: Outcome | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
    except InvalidStateError:  # cancelled, or failed in an earlier batch
        pass


def _stack(values: Sequence[np.ndarray], per_token: bool) -> np.ndarray:
    if not per_token:
        return np.stack(values)
    whole = np.zeros((len(values), max(map(len, values)), *values[0].shape[1:]), values[0].dtype)
    for row, value in zip(whole, values):
        row[: len(value)] = value
    return whole

"""The rows of all shards of a source, parsed in their order, a chunk at a time."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from jax_rele.data.columns import MappedFields, check_columns
from jax_rele.data.pairs.facts import Parsing
from jax_rele.data.pairs.parsing import ParsedRows, parse_rows
from jax_rele.data.pairs.workers import Workers, cores, start_workers
from jax_rele.data.rows import Quarantined, RowError
from jax_rele.data.sources.readers import Chunk, Row, in_chunks
from jax_rele.data.sources.shards import SAMPLE_FIELDS, Shard, no_valid_row, with_sample_names
from jax_rele.types import ReadOptions

_ROWS_WITHOUT_WORKERS = 20_000
"""Rows that are parsed before other processes are started: a process takes a second to start."""


def read_source(
    shards: Sequence[Shard],
    path: str,
    reading: ReadOptions,
    *,
    label_names: Sequence[str],
    label_map: Mapping[str, str],
    with_split: bool,
    seed: int,
    processes: int | None = None,
) -> Generator[tuple[int, ParsedRows]]:
    """The rows of the shards of `path`, in order, as (index of the shard, some of its rows).

    The rows of files are parsed by several processes, all but the first ones; the result is the same for any number.

    Args:
      shards, path, reading, label_names, label_map, with_split: as for `parse_shards`, whose errors these are.
      seed: of the splits.
      processes: how many parse rows; None for as many as there are cores, 1 for this one alone.
    """
    reading, label_map = with_sample_names(path, reading, label_map, label_names)
    source = _Source(path, shards, reading, MappedFields(reading, SAMPLE_FIELDS))
    count = cores() if processes is None else processes
    pending: deque[tuple[int, Future[ParsedRows]]] = deque()

    def results(most: int) -> Iterator[tuple[int, ParsedRows]]:
        """Of the first chunks, until at most so many are pending."""
        while len(pending) > most:
            index, future = pending.popleft()
            parsed = future.result()
            source.check(index, parsed)
            yield index, parsed

    with ExitStack() as stack:
        workers: Workers | None = None
        try:
            for index, shard in enumerate(shards):
                parsing = Parsing(reading, label_map, tuple(label_names), with_split, seed, shard.split)
                for chunk in shard.chunks() if shard.chunks else map(_as_chunk, in_chunks(shard.rows())):
                    if (
                        count > 1
                        and source.n_rows >= _ROWS_WITHOUT_WORKERS
                        and shard.chunks
                        and not source.mapped.unseen
                    ):
                        workers = workers or stack.enter_context(start_workers(count))
                        pending.append((index, workers.submit(chunk, parsing)))
                        yield from results(2 * count)
                        continue
                    yield from results(0)
                    with _without_garbage_collection():
                        rows = chunk()
                        source.check_mapping(index, rows)
                        parsed = parse_rows(rows, parsing)
                    source.check(index, parsed)
                    yield index, parsed
        except Exception:
            yield from results(0)  # what is wrong with rows before an error comes first
            raise
        yield from results(0)
    source.finish()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Of the many objects of rows none refers to itself: looking for such ones takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _as_chunk(rows: list[Row]) -> Chunk:
    return partial(list, rows)


@dataclass
class _Source:
    """What has been read of a source, to find out whether it has the columns that it needs."""

    path: str
    shards: Sequence[Shard]
    reading: ReadOptions
    mapped: MappedFields
    checked: set[int] = field(default_factory=set)
    n_good: int = 0
    n_bad: int = 0
    first_bad: Quarantined | None = None
    columns: dict[str, None] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return self.n_good + self.n_bad

    def check_mapping(self, index: int, rows: Sequence[Row]) -> None:
        """Looks for the mapped columns in rows of a shard. Raises UserError where they are missing."""
        shard = self.shards[index]
        for _, row, _ in rows if self.mapped.unseen else ():
            if isinstance(row, RowError):
                continue
            if shard.uniform and index not in self.checked:
                check_columns(row, self.reading, shard.name)
                self.checked.add(index)
            self.mapped.read(row)
            if shard.uniform and index == len(self.shards) - 1:  # no other columns will come
                self.mapped.check(self.path)
            if not self.mapped.unseen:
                return

    def check(self, index: int, parsed: ParsedRows) -> None:
        """Notes what rows of a shard were. Raises UserError where the shard lacks a column that every pair needs."""
        shard = self.shards[index]
        if shard.uniform and index not in self.checked and parsed.first_columns is not None:
            check_columns(parsed.first_columns, self.reading, shard.name)
            self.checked.add(index)
        if parsed.bad and self.first_bad is None:
            self.first_bad = Quarantined(shard.name, *parsed.bad[0])
        self.n_good += parsed.pairs.num_rows
        self.n_bad += len(parsed.bad)
        if not self.n_good:
            for columns in parsed.columns:
                if len(self.columns) < 100:
                    self.columns.update(dict.fromkeys(columns))

    def finish(self) -> None:
        """Raises UserError where no row was valid, or none had a column that is mapped."""
        if not self.n_good:
            check = partial(check_columns, self.columns, self.reading) if self.columns else None
            names = f"{self.reading.name_of('fields')} and labels by {self.reading.name_of('aliases')}"
            raise no_valid_row(self.path, self.shards, names, self.first_bad, self.n_bad, check)
        self.mapped.check(self.path)

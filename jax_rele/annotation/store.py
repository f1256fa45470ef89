"""Answers on disk: appended when they arrive, found by the hash of the request, shared by several worker processes.

A store is a folder:

    segments/ID.jsonl   the lines of one worker: a JSON object each, with a checksum
    workers/ID          locked while that worker runs; how much of the budget it may spend (see `budget`)
    claims              byte ranges that are locked while a call is in flight

A line is written by one `write`, so that a killed process loses none, and the file is synced each second, so that a
power failure loses the last second at most. A torn or damaged line is recognised by its checksum and skipped. Of a
request only the hash is stored.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
import zlib
from contextlib import suppress
from dataclasses import asdict, replace
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jax_rele.annotation.types import ModelAnswer
from jax_rele.errors import UserError
from jax_rele.io import refuse_placeholder

SYNC_SECONDS = 1.0

Fields: TypeAlias = dict[str, Any]
"""A line of a segment: the fields of a `ModelAnswer`, or those of a call without an answer."""


class IndexEntry(NamedTuple):
    """The position of an answer, and what is counted without reading it."""

    segment: int
    offset: int
    length: int
    cost: float
    input_tokens: int
    output_tokens: int
    failed: bool


class _Segment:
    """A worker's file, as far as it has been read."""

    def __init__(self, path: Path) -> None:
        refuse_placeholder(path)
        self.name = path.stem
        self.file = os.open(path, os.O_RDONLY)
        self.read = 0
        self.spent = 0.0


class Store:
    """Answers by key, of which only the positions are in memory; use as a context manager.

    A killed worker can leave a second answer to a key: the one that counts is the smaller as (failure, text), so an
    answer before a failure, whoever wrote it; both were charged. A process opens one writing store on a folder at a
    time, since claims belong to the process.

    Attributes:
      damaged: lines that were skipped, torn ends of files included.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.damaged = 0
        self._index: dict[str, IndexEntry] = {}
        self._more: dict[str, list[float]] = {}
        self._unanswered: dict[str, int] = {}
        self._segments: list[_Segment] = []
        self._known: set[str] = set()
        self._live: list[int] = []
        self._id = ""
        self._worker = self._out = self._claims = -1
        self._claimed: set[str] = set()
        self._synced = time.monotonic()
        try:
            (self.folder / "segments").mkdir(parents=True, exist_ok=True)
            (self.folder / "workers").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot hold answers ({error.strerror}); choose another folder") from None
        self.refresh()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Syncs what this worker wrote, and releases its claims."""
        if self._out >= 0:
            os.fsync(self._out)
        for file in (self._claims, self._out, *(segment.file for segment in self._segments)):
            if file >= 0:
                os.close(file)
        if self._worker >= 0:
            (self.folder / "workers" / self._id).unlink(missing_ok=True)
            os.close(self._worker)
        self._segments, self._live, self._claimed = [], [], set()
        self._claims = self._out = self._worker = -1

    # ---- reading

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    def entry(self, key: str) -> IndexEntry | None:
        """Counts of an answer, with its cost as in `get`."""
        entry = self._index.get(key)
        return entry and entry._replace(cost=self.cost(key))

    def cost(self, key: str) -> float:
        """Cost of all calls for a key, those without an answer or with a second one included."""
        entry = self._index.get(key)
        return fsum([*([entry.cost] if entry else []), *self._more.get(key, ())])

    def unanswered(self, key: str) -> int:
        """Calls for a key that ended without an answer and may have been charged."""
        return self._unanswered.get(key, 0)

    def get(self, key: str) -> ModelAnswer | None:
        """The answer to a key, with pair and endpoint of the task that was asked first."""
        entry = self._index.get(key)
        if entry is None:
            return None
        fields = self._fields(entry)
        return replace(
            ModelAnswer(**{name: fields[name] for name in ModelAnswer.__dataclass_fields__}), cost=self.cost(key)
        )

    def _fields(self, entry: IndexEntry) -> Fields:
        fields = _decode(os.pread(self._segments[entry.segment].file, entry.length, entry.offset))
        assert fields is not None  # only undamaged lines are indexed
        return fields

    def refresh(self) -> None:
        """Reads what other workers appended since the last time."""
        names = os.listdir(self.folder / "segments")
        if len(names) > len(self._known):
            for name in sorted(set(names) - self._known):
                self._known.add(name)
                self._segments.append(_Segment(self.folder / "segments" / name))
                self._live.append(len(self._segments) - 1)
        for number in list(self._live):
            segment = self._segments[number]
            # Checked before reading, since nothing follows what an ended worker wrote.
            ended = not self.lives(segment.name)
            self._read(number, ended)
            if ended:
                self._live.remove(number)

    def lives(self, worker: str) -> bool:
        """Whether a worker's process runs."""
        try:
            file = os.open(self.folder / "workers" / worker, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def _read(self, number: int, ended: bool) -> None:
        segment = self._segments[number]
        if os.fstat(segment.file).st_size == segment.read:
            return
        while chunk := os.pread(segment.file, 1 << 22, segment.read):
            end = chunk.rfind(b"\n") + 1
            if not end:
                if len(chunk) < 1 << 22:
                    break
                raise UserError(f"{self.folder}/segments/{segment.name}.jsonl: a line without end; move the file away")
            for line in chunk[: end - 1].split(b"\n"):
                self._take(number, segment.read, line + b"\n")
                segment.read += len(line) + 1
        self.damaged += ended and os.fstat(segment.file).st_size > segment.read

    def _take(self, number: int, offset: int, line: bytes) -> None:
        fields = _decode(line)
        if fields is None:
            self.damaged += 1
            return
        key, cost = fields["key"], fields["cost"]
        self._segments[number].spent += cost
        if "unanswered" in fields:
            self._unanswered[key] = self._unanswered.get(key, 0) + 1
            self._more.setdefault(key, []).append(cost)
            return
        entry = IndexEntry(
            number, offset, len(line), cost, fields["input_tokens"], fields["output_tokens"], bool(fields["failure"])
        )
        other = self._index.get(key)
        if other is not None:
            first = self._fields(other)
            if (first["failure"], first["text"]) <= (fields["failure"], fields["text"]):
                entry, other = other, entry
            self._more.setdefault(key, []).append(other.cost)
        self._index[key] = entry

    # ---- writing

    def open_worker(self) -> str:
        """Registers this process as a worker and returns its id."""
        if not self._id:
            self._id = uuid.uuid4().hex
            path = self.folder / "workers" / self._id
            # Locked before it gets its name, so that no other process takes it for an ended one.
            self._worker = os.open(path.with_suffix(".new"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(self._worker, fcntl.LOCK_EX)
            os.pwrite(self._worker, b"0", 0)
            os.rename(path.with_suffix(".new"), path)
        return self._id

    def add(self, answer: ModelAnswer) -> None:
        """Appends an answer; it is on disk, for any process, when this returns.

        Raises:
          UserError: it cannot be written, e.g. because the disk is full.
        """
        self._append(asdict(answer))

    def add_unanswered(self, key: str, reason: str, cost: float) -> None:
        """Appends that a call ended without an answer and may have been charged, at most `cost`."""
        self._append({"key": key, "unanswered": reason, "cost": cost})

    def _append(self, fields: Fields) -> None:
        line = _encode(fields)
        if self._out < 0:
            name = f"{self.open_worker()}.jsonl"
            path = self.folder / "segments" / name
            self._out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)
            self._known.add(name)
            self._segments.append(_Segment(path))
            self._own = len(self._segments) - 1
        segment = self._segments[self._own]
        try:
            written = os.write(self._out, line)
            if written != len(line):
                # A torn line is removed, or the next one would be read as its end.
                os.ftruncate(self._out, segment.read)
                raise OSError(0, "the disk is full")
            now = time.monotonic()
            if now - self._synced > SYNC_SECONDS:
                os.fsync(self._out)
                self._synced = now
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write an answer ({error.strerror}); make room and rerun") from None
        self._take(self._own, segment.read, line)
        segment.read += len(line)

    # ---- sharing the work

    def claim(self, key: str) -> bool:
        """Whether this process is to make the call for a key: no other one makes it, and it has no answer.

        A claim ends with `release`, `close` or the process. The store is searched after the claim, and an answer is
        appended before its claim is released, so that no two running processes make the same call.
        """
        if key in self._claimed or key in self._index:
            return False
        if self._claims < 0:
            self._claims = os.open(self.folder / "claims", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:14], 16))
        except (BlockingIOError, PermissionError):
            return False
        self._claimed.add(key)
        self.refresh()
        if key in self._index:
            self.release(key)
            return False
        return True

    def release(self, key: str) -> None:
        self._claimed.remove(key)
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, int(key[:14], 16))

    # ---- costs, for `budget`

    @property
    def spent(self) -> float:
        """Cost of what this worker stored."""
        return self._segments[self._own].spent if self._out >= 0 else 0.0

    def others(self) -> float:
        """The allowances of the other running workers, and the cost of what ended ones stored; reads what is new."""
        live = {}
        for path in (self.folder / "workers").iterdir():
            if path.name != self._id and not path.suffix:
                if not self.lives(path.name):
                    path.unlink(missing_ok=True)
                    continue
                # A worker that ends at this moment counts as ended.
                with suppress(FileNotFoundError):
                    live[path.name] = float(path.read_text())
        self.refresh()
        ended = [segment.spent for segment in self._segments if segment.name not in live and segment.name != self._id]
        return fsum([*live.values(), *ended])

    def allow(self, amount: float) -> None:
        """Publishes how much this worker may spend."""
        self.open_worker()
        os.pwrite(self._worker, f"{amount!r:40}".encode(), 0)


def _encode(fields: Fields) -> bytes:
    rest = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()[1:]
    return b'{"check":"%08x",%b\n' % (zlib.crc32(rest), rest)


def _decode(line: bytes) -> Fields | None:
    """Fields of a line; None where it is damaged."""
    rest = line[20:-1]
    if line[:20] != b'{"check":"%08x",' % zlib.crc32(rest):
        return None
    return json.loads(b"{" + rest)

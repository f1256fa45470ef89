"""Answers on disk: appended when they arrive, found by what was asked, shared by several worker processes.

A store is a folder:

    segments/ID.jsonl   what one worker appended: a JSON object a line, behind a checksum of the line
    workers/ID          locked while that worker lives; how much of the budget it may spend (see `budget`)
    claims              byte ranges that are locked while a call is under way

A line is written by one `write`, so that a killed process loses none that it had, and the file is synced each second,
so that a machine that loses its power loses the last second. A torn or damaged line is known by its checksum and left
out. Nothing of a request is stored but its hash, and no header at all.
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
from typing import Any, NamedTuple

from jax_rele.annotation.types import ModelAnswer
from jax_rele.errors import UserError

SYNC_SECONDS = 1.0


class IndexEntry(NamedTuple):
    """Where an answer is, and what is counted without reading it."""

    segment: int
    offset: int
    length: int
    cost: float
    input_tokens: int
    output_tokens: int
    failed: bool


class _Segment:
    """A file of another worker, or of this one, as far as it has been read."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.file = os.open(path, os.O_RDONLY)
        self.read = 0
        self.spent = 0.0


class Store:
    """Answers by key, in memory only where they are; use as a context manager.

    Two answers to one key can come of a killed worker: the one that counts is the smaller as (failure, text), an answer
    before a failure, whoever wrote it and whenever; both were paid for. A process opens one writing store on a folder
    at a time: its claims are the process's.

    Attributes:
      damaged: lines that were left out; the torn end of a killed worker's file is one.
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
        """Ends this worker: what it wrote is synced, what it claimed is free for others."""
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
        """Counts of an answer, its cost as in `get`."""
        entry = self._index.get(key)
        return entry and entry._replace(cost=self.cost(key))

    def cost(self, key: str) -> float:
        """Of all calls for a key, those that brought no answer or a second one included."""
        entry = self._index.get(key)
        return fsum([*([entry.cost] if entry else []), *self._more.get(key, ())])

    def unanswered(self, key: str) -> int:
        """Calls for a key that brought nothing and may have been charged."""
        return self._unanswered.get(key, 0)

    def get(self, key: str) -> ModelAnswer | None:
        """The answer to a key, with the names of the task that asked first."""
        entry = self._index.get(key)
        if entry is None:
            return None
        fields = _decode(self._line(entry))
        return replace(
            ModelAnswer(**{name: fields[name] for name in ModelAnswer.__dataclass_fields__}), cost=self.cost(key)
        )

    def _line(self, entry: IndexEntry) -> bytes:
        return os.pread(self._segments[entry.segment].file, entry.length, entry.offset)

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
            # Asked before reading: what a dead worker wrote is all there.
            ended = not self.lives(segment.name)
            self._read(number, ended)
            if ended:
                self._live.remove(number)

    def lives(self, worker: str) -> bool:
        """Whether another worker's process runs."""
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
            there = _decode(self._line(other))
            if (there["failure"], there["text"]) <= (fields["failure"], fields["text"]):
                entry, other = other, entry
            self._more.setdefault(key, []).append(other.cost)
        self._index[key] = entry

    # ---- writing

    def open_worker(self) -> str:
        """Makes this process a worker that others can see; its id."""
        if not self._id:
            self._id = uuid.uuid4().hex
            path = self.folder / "workers" / self._id
            # Locked before it has its name, so that nobody takes it for a dead one.
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
        """Appends that a call brought nothing and may have been charged, at most `cost`."""
        self._append({"key": key, "unanswered": reason, "cost": cost})

    def _append(self, fields: dict[str, Any]) -> None:
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
                # The rest of a torn line is never written: the next one would be read as its end.
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
        """Whether this process is to make the call for a key: no other makes it, and none has its answer.

        A claim ends with `release`, `close` or the process. A key is looked for in the store after it is claimed, and
        an answer is appended before its claim is released: so no two processes that live make one call.
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

    # ---- money, for `budget`

    @property
    def spent(self) -> float:
        """By this worker."""
        return self._segments[self._own].spent if self._out >= 0 else 0.0

    def others(self) -> float:
        """Cost of what other workers stored, and all that those which live may yet spend; reads what is new."""
        live = {}
        for path in (self.folder / "workers").iterdir():
            if path.name != self._id and not path.suffix:
                if not self.lives(path.name):
                    path.unlink(missing_ok=True)
                    continue
                # One that ends just now counts as dead.
                with suppress(FileNotFoundError):
                    live[path.name] = float(path.read_text())
        self.refresh()
        dead = [segment.spent for segment in self._segments if segment.name not in live and segment.name != self._id]
        return fsum([*live.values(), *dead])

    def allow(self, amount: float) -> None:
        """Tells the other workers how much this one may spend."""
        self.open_worker()
        os.pwrite(self._worker, f"{amount!r:40}".encode(), 0)


def _encode(fields: dict[str, Any]) -> bytes:
    rest = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()[1:]
    return b'{"check":"%08x",%b\n' % (zlib.crc32(rest), rest)


def _decode(line: bytes) -> dict[str, Any] | None:
    """Fields of a line; none where it is damaged."""
    rest = line[20:-1]
    if line[:20] != b'{"check":"%08x",' % zlib.crc32(rest):
        return None
    return json.loads(b"{" + rest)

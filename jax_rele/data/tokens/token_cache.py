"""Arrays on disk, a row per example: written once and whole, memory-mapped, and found again by a hash of their content.

Rows of tokens are kept without their padding, in the smallest integers that hold them; a batch pads them to the length
that it needs. Millions of rows thus take the memory of the batches that are read of them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jax_rele.errors import UserError
from jax_rele.io import hash_values

_VERSION = 2
"""Raise it when what is written changes its form or meaning: what older code wrote is then made again."""

_CONTENTS = "columns.json"


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths.

    Attributes:
      values: all rows, one after the other.
      offsets: [N + 1] int64, where each row begins.
      fill: what a row is padded with.
      length: of the longest row that there can be.
      dtype: of the rows that are read.
    """

    values: np.ndarray
    offsets: np.ndarray
    fill: int
    length: int
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Of each row."""
        return self.offsets[1:][rows] - self.offsets[:-1][rows]

    def padded(self, rows: np.ndarray, length: int | None = None) -> np.ndarray:
        """[*rows.shape, length] of the rows of these numbers, cut or filled up; at the full length without one."""
        length = self.length if length is None else length
        begins = self.offsets[:-1][rows]
        indices = begins[..., None] + np.arange(length)
        present = np.arange(length) < (self.offsets[1:][rows] - begins)[..., None]
        if not len(self.values):
            return np.full(indices.shape, self.fill, self.dtype)
        values = self.values[np.where(present, indices, 0)]
        return np.where(present, values, np.array(self.fill, values.dtype)).astype(self.dtype)


@dataclass(frozen=True)
class RaggedSpec:
    """A ragged column to be written: what its rows are padded with, their greatest length, and the type when read."""

    fill: int
    length: int
    dtype: np.dtype


Columns = dict[str, Any]
"""A nested dict of arrays and `Ragged`s with the same number of rows."""


def take_rows(columns: Columns, rows: np.ndarray, length_of: Callable[[int], int] | None = None) -> dict[str, Any]:
    """The rows of these numbers, as arrays [*rows.shape, ...].

    Args:
      columns: where to read.
      rows: row numbers.
      length_of: the full length of a ragged column -> the length to pad to; None for the full one.
    """
    read = {}
    for name, column in columns.items():
        if isinstance(column, Mapping):
            read[name] = take_rows(column, rows, length_of)
        elif isinstance(column, Ragged):
            read[name] = column.padded(rows, length_of(column.length) if length_of else None)
        else:
            read[name] = np.asarray(column[rows])
    return read


def load_or_build(
    root: Path,
    kind: str,
    depends_on: Any,
    make: Callable[[], Iterable[Mapping[str, Any]]],
    ragged: Mapping[str, RaggedSpec],
) -> Columns:
    """The columns that `make` yields in chunks; those that were written before for the same content are read instead.

    They are written to a folder of their own, which takes its name when it is whole: a process that is killed, or a
    disk that is full, leaves nothing that is taken for them. Processes that want the same at once wait for the first
    one to have written it where the file system has locks, and otherwise each writes its own and one is kept.

    Args:
      root: the cache.
      kind: what the columns are, the beginning of the folder's name.
      depends_on: everything that decides their content, as plain data; its hash is the rest of the name.
      make: yields nested dicts of arrays [n, ...], the rows in order; of a ragged column, n lists of integers.
      ragged: dotted name -> the ragged column.

    Raises:
      UserError: the disk is full, or the folder cannot be written.
    """
    specs = {name: [spec.fill, spec.length, np.dtype(spec.dtype).str] for name, spec in ragged.items()}
    folder = root / f"{kind}-{hash_values([_VERSION, depends_on, specs])}"
    try:
        return _open(folder)
    except (OSError, ValueError, KeyError):
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _build_lock(root / f".{folder.name}.lock"):
            with suppress(OSError, ValueError, KeyError):
                return _open(folder)
            temporary = root / f".{folder.name}.{uuid.uuid4().hex}"
            try:
                temporary.mkdir()
                _write(temporary, make(), ragged)
                _put(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return _open(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space" if full else f"cannot be written: {error.strerror or error}"
        raise UserError(f"{root}: {what}, or set cache_dir to another place") from None


def _put(temporary: Path, folder: Path) -> None:
    """Gives a whole folder its name; what is there under it and cannot be read makes room."""
    for _ in range(3):
        try:
            os.rename(temporary, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(OSError, ValueError, KeyError):
            _open(folder)
            return  # another process was first
        with suppress(OSError):  # another process may be doing the same
            damaged = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
            os.rename(folder, damaged)
            shutil.rmtree(damaged, ignore_errors=True)
    raise OSError(errno.EBUSY, f"{folder.name} is in the way; delete it")


@contextmanager
def _build_lock(path: Path):
    """One process at a time, where the file system has locks."""
    with path.open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _write(folder: Path, chunks: Iterable[Mapping[str, Any]], ragged: Mapping[str, RaggedSpec]) -> None:
    columns: dict[str, _Column] = {}
    count = 0
    try:
        for chunk in chunks:
            arrays = {name: x if name in ragged else np.asarray(x) for name, x in _flat(chunk).items()}
            sizes = {len(array) for array in arrays.values()}
            if len(sizes) != 1 or (columns and set(columns) != set(arrays)):
                raise ValueError(f"every chunk must hold the same columns of one length, got {sorted(arrays)}")
            for name, array in arrays.items():
                if name not in columns:
                    columns[name] = _Column(folder / f"{len(columns)}", array, ragged.get(name))
                columns[name].append(array)
            count += sizes.pop()
        contents = {name: column.close() for name, column in columns.items()}
    finally:
        for column in columns.values():
            column.abandon()
    with (folder / _CONTENTS).open("w", encoding="utf-8") as file:
        json.dump({"rows": count, "columns": contents}, file)
        file.flush()
        os.fsync(file.fileno())


class _Column:
    """A column while it is written: `N.bin`, and `N.offsets` where it is ragged."""

    def __init__(self, stem: Path, first: np.ndarray | Sequence[Sequence[int]], spec: RaggedSpec | None):
        self.spec = spec
        self.dtype, self.shape = (
            (first.dtype, first.shape[1:]) if spec is None else (np.dtype(spec.dtype), (spec.length,))
        )
        self.stored = self.dtype if spec is None else np.dtype(np.uint8)
        self.files = [stem.with_suffix(".bin").open("wb")]
        if spec is not None:
            self.files.append(stem.with_suffix(".offsets").open("wb"))
            self.end = 0
            self.files[1].write(np.zeros(1, np.int64).tobytes())

    def append(self, rows: np.ndarray | Sequence[Sequence[int]]) -> None:
        if self.spec is None:
            if rows.dtype != self.dtype or rows.shape[1:] != self.shape:
                raise ValueError(f"rows of {rows.dtype}{list(rows.shape[1:])} in a column of {self.dtype}{self.shape}")
            self.files[0].write(np.ascontiguousarray(rows).tobytes())
            return
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        if lengths.max(initial=0) > self.spec.length:
            raise ValueError(f"a row of {lengths.max()} tokens in a column of at most {self.spec.length}")
        values = np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
        self._widen(values)
        self.files[0].write(values.astype(self.stored).tobytes())
        offsets = self.end + np.cumsum(lengths, dtype=np.int64)
        self.end = int(offsets[-1]) if len(offsets) else self.end
        self.files[1].write(offsets.tobytes())

    def _widen(self, values: np.ndarray) -> None:
        """Rewrites what there is in larger integers where a value does not fit."""
        needed = (
            np.result_type(self.stored, *(np.min_scalar_type(x) for x in (values.min(), values.max())))
            if len(values)
            else self.stored
        )
        if needed == self.stored:
            return
        path = Path(self.files[0].name)
        self.files[0].close()
        wider = path.with_suffix(".wider")
        with path.open("rb") as old, wider.open("wb") as new:
            while block := old.read(1 << 20):
                new.write(np.frombuffer(block, self.stored).astype(needed).tobytes())
        os.replace(wider, path)
        self.files[0] = path.open("ab")
        self.stored = needed

    def close(self) -> dict[str, Any]:
        sizes = []
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())
            sizes.append(file.tell())
            file.close()
        return {
            "file": Path(self.files[0].name).stem,
            "dtype": self.dtype.str,
            "stored": self.stored.str,
            "shape": list(self.shape),
            "fill": None if self.spec is None else self.spec.fill,
            "bytes": sizes,
        }

    def abandon(self) -> None:
        for file in self.files:
            with suppress(OSError):
                file.close()


def _open(folder: Path) -> Columns:
    """Raises OSError, ValueError or KeyError where the folder is not whole."""
    contents = json.loads((folder / _CONTENTS).read_text("utf-8"))
    columns: Columns = {}
    for name, column in contents["columns"].items():
        parent_columns = columns
        *parents, leaf = name.split(".")
        for parent in parents:
            parent_columns = parent_columns.setdefault(parent, {})
        parent_columns[leaf] = _open_column(folder / column["file"], column, contents["rows"])
    return columns


def _open_column(stem: Path, column: Mapping[str, Any], count: int) -> np.ndarray | Ragged:
    suffixes = (".bin", ".offsets")[: len(column["bytes"])]
    for suffix, size in zip(suffixes, column["bytes"]):
        if stem.with_suffix(suffix).stat().st_size != size:
            raise ValueError(f"{stem}: not whole")
    if column["fill"] is None:
        return _mapped(stem.with_suffix(".bin"), column["dtype"], (count, *column["shape"]))
    offsets = _mapped(stem.with_suffix(".offsets"), np.int64, (count + 1,))
    return Ragged(
        values=_mapped(stem.with_suffix(".bin"), column["stored"], (int(offsets[-1]),)),
        offsets=offsets,
        fill=column["fill"],
        length=column["shape"][0],
        dtype=np.dtype(column["dtype"]),
    )


def _mapped(path: Path, dtype: Any, shape: Sequence[int]) -> np.ndarray:
    if not np.prod(shape):
        return np.zeros(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, "r", shape=tuple(shape))

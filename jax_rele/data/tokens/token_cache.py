"""Arrays on disk, a row per example: written once and whole, memory-mapped, and found again by a hash of their content.

Rows of tokens are kept without their padding, in the smallest integers that hold them; a batch pads them to the length
that it needs. Millions of rows thus take the memory of the batches that are read of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from numpy.typing import DTypeLike

from jax_rele.io import FREE_CACHE, atomic_folder, hash_values, lock, write_error
from jax_rele.types import Params, PyTree

_VERSION = 5
"""To be raised when the form or meaning of what is written changes."""

_CONTENTS = "columns.json"
_NOT_WHOLE = (OSError, ValueError, KeyError)


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
    dtype: DTypeLike


Columns = dict[str, PyTree]
"""A nested dict of arrays and `Ragged`s with the same number of rows."""


def take_rows(
    columns: Mapping[str, PyTree], rows: np.ndarray, length_of: Callable[[int], int] | None = None
) -> dict[str, PyTree]:
    """The rows of these numbers, as arrays [*rows.shape, ...].

    Args:
      columns: where to read.
      rows: row numbers.
      length_of: the full length of a ragged column -> the length to pad to; None for the full one.
    """

    def read(column: PyTree) -> PyTree:
        if isinstance(column, Mapping):
            return take_rows(column, rows, length_of)
        if isinstance(column, Ragged):
            return column.padded(rows, length_of(column.length) if length_of else None)
        return np.asarray(column[rows])

    return {name: read(column) for name, column in columns.items()}


def load_or_build(
    root: Path,
    kind: str,
    depends_on: object,
    make: Callable[[], Iterable[Mapping[str, PyTree]]],
    ragged: Mapping[str, RaggedSpec],
) -> Columns:
    """The columns that `make` yields in chunks; those that were written before for the same content are read instead.

    They are written to a folder of their own, which takes its name when it is whole. Processes that want the same at
    once wait for the first one; where the file system has no locks each writes its own, and one is kept.

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
    with suppress(*_NOT_WHOLE):
        return _open(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock(root / f".{folder.name}.lock"):
            with suppress(*_NOT_WHOLE):
                return _open(folder)
            shutil.rmtree(folder, ignore_errors=True)
            with atomic_folder(folder) as temporary:
                _write(temporary, make(), ragged)
            return _open(folder)
    except OSError as error:
        with suppress(*_NOT_WHOLE):
            return _open(folder)  # where the file system has no locks, another process may have been first
        raise write_error(root, error, FREE_CACHE) from None


def _write(folder: Path, chunks: Iterable[Mapping[str, PyTree]], ragged: Mapping[str, RaggedSpec]) -> None:
    columns: dict[str, _Column] = {}
    count = 0
    with ExitStack() as stack:
        for chunk in chunks:
            arrays = {name: x if name in ragged else np.asarray(x) for name, x in flatten_dict(chunk, sep=".").items()}
            sizes = {len(array) for array in arrays.values()}
            if len(sizes) != 1 or (columns and set(columns) != set(arrays)):
                raise ValueError(f"every chunk must hold the same columns of one length, got {sorted(arrays)}")
            for name, array in arrays.items():
                if name not in columns:
                    columns[name] = _Column(folder / f"{len(columns)}", array, ragged.get(name))
                    stack.callback(columns[name].close)
                columns[name].append(array)
            count += sizes.pop()
    contents = {"rows": count, "columns": {name: column.description() for name, column in columns.items()}}
    (folder / _CONTENTS).write_text(json.dumps(contents), "utf-8")


class _Column:
    """A column while it is written: `N.bin`, and `N.offsets` where it is ragged."""

    def __init__(self, stem: Path, first: PyTree, spec: RaggedSpec | None):
        self.spec = spec
        self.dtype: np.dtype = first.dtype if spec is None else np.dtype(spec.dtype)
        self.shape: tuple[int, ...] = first.shape[1:] if spec is None else (spec.length,)
        self.stored = self.dtype if spec is None else np.dtype(np.uint8)
        self.files = [stem.with_suffix(".bin").open("wb")]
        if spec is not None:
            self.files.append(stem.with_suffix(".offsets").open("wb"))
            self.end = 0
            self.files[1].write(np.zeros(1, np.int64).tobytes())

    def append(self, rows: PyTree) -> None:
        """Adds an array, or lists of integers to a ragged column."""
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
        limits = (values.min(), values.max()) if len(values) else ()
        needed = np.result_type(self.stored, *map(np.min_scalar_type, limits))
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

    def close(self) -> None:
        for file in self.files:
            file.close()

    def description(self) -> dict[str, object]:
        paths = [Path(file.name) for file in self.files]
        return {
            "file": paths[0].stem,
            "dtype": self.dtype.str,
            "stored": self.stored.str,
            "shape": list(self.shape),
            "fill": None if self.spec is None else self.spec.fill,
            "bytes": [path.stat().st_size for path in paths],
        }


def _open(folder: Path) -> Columns:
    """Raises OSError, ValueError or KeyError where the folder is not whole."""
    contents = json.loads((folder / _CONTENTS).read_text("utf-8"))
    columns: dict[str, PyTree] = {}
    for name, column in contents["columns"].items():
        parent_columns = columns
        *parents, leaf = name.split(".")
        for parent in parents:
            parent_columns = parent_columns.setdefault(parent, {})
        parent_columns[leaf] = _open_column(folder / column["file"], column, contents["rows"])
    return columns


def _open_column(stem: Path, column: Params, count: int) -> np.ndarray | Ragged:
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


def _mapped(path: Path, dtype: DTypeLike, shape: Sequence[int]) -> np.ndarray:
    if not np.prod(shape):
        return np.zeros(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, "r", shape=tuple(shape))

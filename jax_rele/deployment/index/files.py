"""The files of an index, and the vectors' forms on disk.

index.json               what the index holds, and the SHA-256 of every other file; written last, so it decides
items-N.parquet          the items, row for row beside
vectors-N.npy            their vectors: float32, float16, or int8 with a scale per dimension in
scale-N.npy
graph-N.faiss            links of the HNSW graph, without vectors
delta-items-N.parquet    new and changed items since the last build or compaction, beside
delta-vectors-N.npy      their float32 vectors
deleted-N.npy            rows of the first table that are deleted, or replaced by the delta
quarantine.parquet       rows that are no items

N counts the changes. A change writes files of a new number, then index.json, and removes the old ones at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pydantic

from jax_rele.data.parquet import read_table, write_table
from jax_rele.deployment.bundle import Files, Manifest, Record, read_record, write_record
from jax_rele.deployment.index.items import ITEMS
from jax_rele.errors import UserError
from jax_rele.io import atomic_path, hash_file, refuse_placeholder

INDEX = "index.json"
FORMAT = 1
VECTORS = ("float32", "float16", "int8")
Storage = Literal["float32", "float16", "int8"]


Count = Annotated[int, pydantic.Field(ge=0, lt=2**40)]


class IndexManifest(Record):
    """What an index holds.

    Attributes:
      format: version of the index's form.
      bundle: `Manifest.identity` of the model that made the vectors.
      bundle_path: where its bundle was.
      vectors: how they are stored.
      kind: `exact`, or `hnsw`, a graph.
      width: of a vector.
      number: of the last change.
      items: items that a search can return.
      rows, delta_rows, deleted: rows of the two tables, and how many of the first are hidden.
      ef_search: how many neighbours a search of the graph keeps in view.
      recall: recall@10 of the graph against exact search when it was built; 1 for `exact`.
      content: a hash of the items, model and options of a build; empty after a change.
      files: SHA-256 of each file.
    """

    format: Literal[1] = 1
    bundle: str
    bundle_path: str
    vectors: Storage
    kind: Literal["exact", "hnsw"]
    width: Annotated[int, pydantic.Field(gt=0)]
    number: Count = 0
    items: Annotated[int, pydantic.Field(ge=1, lt=2**40)]
    rows: Annotated[int, pydantic.Field(ge=1, lt=2**40)]
    delta_rows: Count = 0
    deleted: Count = 0
    ef_search: Count = 0
    recall: Annotated[float, pydantic.Field(ge=0, le=1)] = 1.0
    content: str = ""
    files: Files = pydantic.Field(default_factory=dict)

    def file(self, stem: str, suffix: str) -> str | None:
        """The name of the file of a kind, if the index has one."""
        return next((name for name in self.files if name.rpartition("-")[0] == stem and name.endswith(suffix)), None)


def read_index_manifest(folder: str | Path, *, check: bool = True) -> IndexManifest:
    """Reads an index's description and checks that its files are there and whole.

    Raises:
      UserError: the folder is no index, is of another version, lacks a file, or a file was changed.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"{folder}: no index ({INDEX} is missing); `jax-rele index DIR ITEMS --output {folder}` builds one"
        )
    manifest = read_record(path, IndexManifest, "index", "build it again")
    for stem, suffix in (("items", ".parquet"), ("vectors", ".npy")):
        if manifest.file(stem, suffix) is None:
            raise UserError(f"{path}: damaged: the index has no {stem}; build it again")
    for name, expected in manifest.files.items() if check else ():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: the index lacks this file; build it again")
        if hash_file(folder / name) != expected:
            refuse_placeholder(folder / name)
            raise UserError(f"{folder / name}: was changed since the index was written; build it again")
    return manifest


def check_model(folder: str | Path, index: IndexManifest, bundle: Manifest, bundle_path: str | Path) -> None:
    """Raises UserError where an index belongs to another model."""
    if index.bundle != bundle.identity:
        raise UserError(
            f"{folder}: the index was built with another model than {bundle_path}; give the bundle that built it, or "
            "build the index again"
        )


def commit(folder: Path, manifest: IndexManifest, writers: dict[str, Callable[[Path], None]]) -> IndexManifest:
    """Makes one change of an index: new files, then its description, then old files go.

    Args:
      folder: of the index.
      manifest: as it will be; the files it names stay.
      writers: for the new files by name, what writes them.
    """
    hashes = {}
    try:
        for name, write in writers.items():
            write(folder / name)
            hashes[name] = hash_file(folder / name)
        manifest = manifest.model_copy(update={"files": {**manifest.files, **hashes}})
        write_record(folder / INDEX, manifest)
    except UserError:
        for name in hashes:  # they would fill the disk
            (folder / name).unlink(missing_ok=True)
        raise
    for file in folder.iterdir():
        stem = file.name.rpartition("-")[0]
        if stem in _STEMS and file.name not in manifest.files:
            file.unlink(missing_ok=True)
    return manifest


_STEMS = ("items", "vectors", "scale", "graph", "delta-items", "delta-vectors", "deleted")


def array_writer(array: np.ndarray) -> Callable[[Path], None]:
    """What writes an array."""
    return lambda path: write_array(path, array)


def table_writer(table: pa.Table) -> Callable[[Path], None]:
    """What writes a table of items."""
    return lambda path: write_table(path, {name: table.column(name) for name in ITEMS.names}, ITEMS)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an array whole or not at all. Raises UserError where it cannot be written."""
    array = np.ascontiguousarray(array)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # np.save hides the reason why a file cannot be written.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def read_array(path: Path) -> np.ndarray:
    """Reads an array. Raises UserError for a damaged one."""
    refuse_placeholder(path)
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]:.100}); build the index again") from None


def read_items_table(path: Path) -> pa.Table:
    """Reads a table of items. Raises UserError for a damaged one."""
    return read_table(path, ITEMS)


def store(vectors: np.ndarray, kind: str, scale: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """[N, E] float32 vectors as they are stored, and with int8 the [E] scale.

    A scale that is given is used where all vectors fit it, so that what was int8 before stays as it is.
    """
    if kind != "int8":
        return vectors.astype(kind), None
    most = np.abs(vectors).max(axis=0, initial=0.0)
    if scale is None or (most > scale * 127.5).any():
        scale = np.where(most > 0, most / 127, 1).astype(np.float32)
    return np.clip(np.rint(vectors / scale), -127, 127).astype(np.int8), scale


def restore(stored: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """[N, E] float32 vectors of what is stored."""
    vectors = stored.astype(np.float32, copy=False)
    return vectors if scale is None else vectors * scale


def check_rows(path: Path, expected: Sequence[int], got: Sequence[int]) -> None:
    """Raises UserError where files of an index do not fit each other."""
    if tuple(expected) != tuple(got):
        raise UserError(f"{path}: damaged: {list(got)} in place of {list(expected)}; build the index again")

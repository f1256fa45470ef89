"""What an index holds, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jax_rele.deployment.index.files import INDEX, IndexManifest, check_rows, read_array, read_items_table, restore
from jax_rele.errors import UserError


@dataclass(frozen=True)
class Contents:
    """What an index holds.

    Attributes:
      table: the rows of the first table, then those of the delta.
      vectors: [rows, E] float32.
      scale: [E] of int8.
      is_visible: [rows] bool, false for rows that are deleted or replaced.
    """

    table: pa.Table
    vectors: np.ndarray
    scale: np.ndarray | None
    is_visible: np.ndarray


def read_contents(folder: Path, manifest: IndexManifest) -> Contents:
    """Reads an index whose files were checked. Raises UserError where they do not fit each other."""

    def array(stem: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        path = folder / _file(folder, manifest, stem, ".npy")
        values = read_array(path)
        check_rows(path, shape, values.shape)
        if values.dtype != kind or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            raise UserError(f"{path}: damaged: holds no finite numbers of the type {kind}; build the index again")
        return values

    def table(stem: str, rows: int) -> pa.Table:
        path = folder / _file(folder, manifest, stem, ".parquet")
        items = read_items_table(path)
        check_rows(path, (rows,), (items.num_rows,))
        return items

    rows, delta_rows, width = manifest.rows, manifest.delta_rows, manifest.width
    tables = [table("items", rows)]
    scale = array("scale", (width,), "float32") if manifest.vectors == "int8" else None
    vectors = restore(array("vectors", (rows, width), manifest.vectors), scale)
    is_visible = np.ones(rows + delta_rows, bool)
    if manifest.deleted:
        hidden = array("deleted", (manifest.deleted,), "int64")
        if hidden.min() < 0 or hidden.max() >= rows:
            raise UserError(f"{folder}: damaged: deleted rows that there are not; build the index again")
        is_visible[hidden] = False
    if delta_rows:
        tables.append(table("delta-items", delta_rows))
        vectors = np.concatenate([vectors, array("delta-vectors", (delta_rows, width), "float32")])
    check_rows(folder / INDEX, (manifest.items,), (int(is_visible.sum()),))
    return Contents(pa.concat_tables(tables), vectors, scale, is_visible)


def _file(folder: Path, manifest: IndexManifest, stem: str, suffix: str) -> str:
    name = manifest.file(stem, suffix)
    if name is None:
        raise UserError(f"{folder / INDEX}: damaged: the index has no {stem}; build it again")
    return name

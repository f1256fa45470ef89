"""What an index holds, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jax_rele.deployment.index.files import IndexManifest, check_rows, read_array, read_items_table, restore


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

    def array(stem: str) -> np.ndarray | None:
        name = manifest.file(stem, ".npy")
        return None if name is None else read_array(folder / name)

    tables = [read_items_table(folder / str(manifest.file("items", ".parquet")))]
    scale = array("scale")
    stored = array("vectors")
    assert stored is not None
    vectors = restore(stored, scale)
    check_rows(folder, (manifest.rows, manifest.width, manifest.rows), (*vectors.shape, tables[0].num_rows))
    hidden = array("deleted")
    is_visible = np.ones(manifest.rows + manifest.delta_rows, bool)
    if hidden is not None:
        is_visible[hidden] = False
    if manifest.delta_rows:
        tables.append(read_items_table(folder / str(manifest.file("delta-items", ".parquet"))))
        delta = array("delta-vectors")
        assert delta is not None
        check_rows(folder, (manifest.delta_rows, manifest.width), delta.shape)
        check_rows(folder, (manifest.delta_rows,), (tables[1].num_rows,))
        vectors = np.concatenate([vectors, delta])
    return Contents(pa.concat_tables(tables), vectors, scale, is_visible)

"""Changing an index: new items are a delta beside it, old ones are hidden, and compaction makes them one again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jax_rele.deployment.bundle import Manifest, read_manifest
from jax_rele.deployment.index.build import PART, Change, encode_texts, loaded_bundle, write_base
from jax_rele.deployment.index.contents import read_contents
from jax_rele.deployment.index.files import (
    IndexManifest,
    array_writer,
    check_model,
    commit,
    read_index_manifest,
    table_writer,
)
from jax_rele.deployment.index.items import items_table, table_items, text_hash
from jax_rele.deployment.scorer import Scorer
from jax_rele.errors import UserError
from jax_rele.io import lock
from jax_rele.types import Item


def update_index(
    bundle: str | Path | Scorer,
    output: str | Path,
    items: Sequence[Item],
    *,
    delete_others: bool = False,
    spared: Collection[str] = (),
) -> Change:
    """Adds items and replaces those whose id the index has. A text that the index knows is not encoded again.

    Args:
      bundle: folder of the bundle that built the index, or that bundle loaded.
      output: folder of the index.
      items: at least one, of distinct ids.
      delete_others: whether items that are not among them are deleted,
      spared: but for these ids.

    Raises:
      UserError: there is no index, it is damaged, or of another model.
    """
    scorer, path = loaded_bundle(bundle)
    with _changing(output):
        state = _State.read(Path(output), scorer.manifest, path)
        texts = [scorer.item_text(item) for item in items]
        hashes = [text_hash(text) for text in texts]
        known = state.rows_of_texts()
        new = {text: None for text, hashed in zip(texts, hashes) if hashed not in known}
        encoded = np.zeros((0, state.manifest.width), np.float32)
        if new:
            chunks = [list(new)[start : start + PART] for start in range(0, len(new), PART)]
            encoded = np.concatenate([encode_texts(scorer, chunk) for chunk in chunks])
        position = {text: index for index, text in enumerate(new)}
        current = state.rows_of_ids()
        changed, arrays, n_new, n_changed = [], [], 0, 0
        table = items_table(items, hashes)
        old = {item.id: item for item in table_items(state.take([current[i.id] for i in items if i.id in current]))}
        for index, item in enumerate(items):
            if item.id in old and old[item.id] == item:
                continue
            n_new += item.id not in current
            n_changed += item.id in current
            changed.append(index)
            is_new = hashes[index] not in known
            arrays.append(encoded[position[texts[index]]] if is_new else state.vectors[known[hashes[index]]])
        gone = set(current) - {item.id for item in items} - set(spared) if delete_others else set()
        if not changed and not gone:
            return Change(state.manifest, len(new))
        replaced = {current[items[index].id] for index in changed if items[index].id in current}
        state.hide(replaced | {current[name] for name in gone})
        if changed:
            state.append(table.take(pa.array(changed, pa.int64())), np.stack(arrays))
        return Change(state.write(), len(new), n_new, n_changed, len(gone))


def delete_items(bundle: str | Path | Scorer, output: str | Path, ids: Iterable[str]) -> Change:
    """Deletes items by id; ids that the index does not have are counted.

    Raises:
      UserError: there is no index, it is damaged, or of another model; or nothing would be left.
    """
    manifest, path = _bundle_manifest(bundle)
    with _changing(output):
        state = _State.read(Path(output), manifest, path)
        current = state.rows_of_ids()
        ids = set(ids)
        gone = ids & set(current)
        if len(gone) == len(current):
            raise UserError(f"{output}: the ids name every item of the index; delete the folder instead")
        if gone:
            state.hide({current[name] for name in gone})
        written = state.write() if gone else state.manifest
        return Change(written, n_deleted=len(gone), n_missing=len(ids - gone))


def compact_index(bundle: str | Path | Scorer, output: str | Path) -> Change:
    """Merges changes into the index proper, in the order of a fresh build: old items first, then new ones.

    Raises:
      UserError: there is no index, it is damaged, or of another model.
    """
    scorer, path = loaded_bundle(bundle)
    with _changing(output):
        state = _State.read(Path(output), scorer.manifest, path)
        if not state.manifest.delta_rows and not state.manifest.deleted:
            return Change(state.manifest)
        rows = np.flatnonzero(state.is_visible)
        table = state.take(rows)
        manifest = state.manifest.model_copy(
            update={
                "items": len(rows),
                "rows": len(rows),
                "delta_rows": 0,
                "deleted": 0,
                "number": state.manifest.number + 1,
                "content": "",
                "files": {},
            }
        )
        return Change(write_base(Path(output), manifest, table, state.vectors[rows], scorer, state.scale))


@dataclass
class _State:
    """An index in memory while it is changed: rows of both tables, one after the other."""

    folder: Path
    manifest: IndexManifest
    table: pa.Table
    vectors: np.ndarray
    scale: np.ndarray | None
    is_visible: np.ndarray

    @classmethod
    def read(cls, folder: Path, bundle: Manifest, path: str | Path) -> _State:
        manifest = read_index_manifest(folder)
        check_model(folder, manifest, bundle, path)
        contents = read_contents(folder, manifest)
        return cls(folder, manifest, contents.table, contents.vectors, contents.scale, contents.is_visible)

    def rows_of_ids(self) -> dict[str, int]:
        ids = self.table.column("id").to_pylist()
        return {ids[row]: int(row) for row in np.flatnonzero(self.is_visible)}

    def rows_of_texts(self) -> dict[str, int]:
        return {hashed: row for row, hashed in enumerate(self.table.column("text_hash").to_pylist())}

    def take(self, rows: Sequence[int] | np.ndarray) -> pa.Table:
        return self.table.take(pa.array(rows, pa.int64()))

    def hide(self, rows: set[int]) -> None:
        self.is_visible[list(rows)] = False

    def append(self, table: pa.Table, vectors: np.ndarray) -> None:
        self.table = pa.concat_tables([self.table, table])
        self.vectors = np.concatenate([self.vectors, vectors])
        self.is_visible = np.concatenate([self.is_visible, np.ones(len(vectors), bool)])

    def write(self) -> IndexManifest:
        """Writes the delta, without what is hidden of it, and which rows of the first table are hidden."""
        base, number = self.manifest.rows, self.manifest.number + 1
        delta = base + np.flatnonzero(self.is_visible[base:])
        deleted = np.flatnonzero(~self.is_visible[:base])
        files = {
            name: sha
            for name, sha in self.manifest.files.items()
            if name.rpartition("-")[0] not in ("delta-items", "delta-vectors", "deleted")
        }
        manifest = self.manifest.model_copy(
            update={
                "number": number,
                "content": "",
                "items": int(self.is_visible.sum()),
                "delta_rows": len(delta),
                "deleted": len(deleted),
                "files": files,
            }
        )
        writers: dict[str, Callable[[Path], None]] = {}
        if len(delta):
            writers[f"delta-items-{number}.parquet"] = table_writer(self.take(delta))
            writers[f"delta-vectors-{number}.npy"] = array_writer(self.vectors[delta])
        if len(deleted):
            writers[f"deleted-{number}.npy"] = array_writer(deleted)
        return commit(self.folder, manifest, writers)


def _changing(output: str | Path) -> AbstractContextManager[bool]:
    read_index_manifest(output, check=False)
    return lock(
        Path(output) / ".lock", lambda: UserError(f"{output}: another process changes this index; run again after it")
    )


def _bundle_manifest(bundle: str | Path | Scorer) -> tuple[Manifest, str | Path]:
    return (bundle.manifest, "the bundle") if isinstance(bundle, Scorer) else (read_manifest(bundle), bundle)

"""Building and changing an index. A killed build goes on where it was; several processes may share one.

Items are cut into parts of 1,024. Vectors of a part are one file, written whole or not at all, in a folder whose name
is a hash of items, model and options: the same build finds what it has done, another one never takes it for its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jax_rele import extras
from jax_rele.data.parquet import write_quarantine
from jax_rele.data.rows import Quarantined
from jax_rele.deployment.bundle import Manifest, read_manifest
from jax_rele.deployment.index import graph
from jax_rele.deployment.index.files import (
    INDEX,
    VECTORS,
    IndexManifest,
    array_writer,
    check_model,
    check_rows,
    commit,
    read_array,
    read_index_manifest,
    read_items_table,
    restore,
    store,
    table_writer,
    write_array,
)
from jax_rele.deployment.index.items import items_table, table_items, text_hash
from jax_rele.deployment.scorer import Scorer, load_bundle
from jax_rele.errors import UserError
from jax_rele.io import hash_values, lock, write_error
from jax_rele.progress import make_progress
from jax_rele.types import ITEM_FIELDS, Item

PART = 1024
"""Items of a part."""

EXACT_BELOW = 100_000
"""Indexes of fewer items are exact by default."""

QUARANTINE = "quarantine.parquet"


@dataclass(frozen=True)
class Change:
    """What a build or a change did.

    Attributes:
      manifest: of the index; None while other processes still work on it.
      n_encoded: items whose vectors were computed now.
      n_new, n_changed, n_deleted: items of an update.
      n_missing: of a build, parts that other processes have not finished; of a deletion, unknown ids.
    """

    manifest: IndexManifest | None
    n_encoded: int = 0
    n_new: int = 0
    n_changed: int = 0
    n_deleted: int = 0
    n_missing: int = 0


def build_index(
    bundle: str | Path | Scorer,
    items: Sequence[Item],
    output: str | Path,
    *,
    vectors: str = "float32",
    kind: str | None = None,
    process: tuple[int, int] | None = None,
    part: int = PART,
    bundle_path: str | Path | None = None,
) -> Change:
    """Builds an index of items; the same call resumes a build that was stopped.

    Args:
      bundle: folder of a two-tower's bundle, or the bundle loaded.
      items: at least one, of distinct ids.
      output: folder of the index. What index it holds is replaced when the new one is whole.
      vectors: how they are stored: `float32`, `float16`, or `int8` with a scale per dimension.
      kind: `exact` or `hnsw`; by default exact below 100,000 items.
      process: (n, m), the n-th of m processes, from 1: computes every m-th part, and puts the index together where no
        part is missing then. None computes every missing part.
      part: items of a part.
      bundle_path: of a loaded bundle, to be noted in the index.

    Raises:
      UserError: the bundle has no vectors to index, an option is wrong, or the disk is full.
      ValueError: there are no items, or an id occurs twice.
    """
    scorer, path = _scorer(bundle, bundle_path)
    check_bundle(scorer.manifest, path)
    if vectors not in VECTORS:
        raise UserError(f"--vectors: {vectors!r} is none of {', '.join(VECTORS)}")
    number, processes = process or (1, 1)
    if not 1 <= number <= processes:
        raise UserError(f"--shard {number}/{processes}: write N/M with N from 1 to M")
    if not items or len({item.id for item in items}) != len(items):
        raise ValueError("build_index needs at least one item, and every id once")
    kind = kind or ("exact" if len(items) < EXACT_BELOW else "hnsw")
    texts = [scorer.item_text(item) for item in items]
    table = items_table(items, map(text_hash, texts))
    content = _content(scorer.manifest, table, vectors, kind, part)
    output = Path(output)
    _make_folder(output)
    if (output / INDEX).is_file():
        current = _readable(output)
        if current is not None and current.content == content:
            return Change(current)
    building = output / f"building-{content}"
    building.mkdir(exist_ok=True)
    starts = list(range(0, len(items), part))
    todo = [index for index in range(len(starts)) if process is None or index % processes == number - 1]
    n_encoded = 0
    with make_progress("index", "parts") as progress:
        task = progress.add_task("index", total=len(todo))
        for index in todo:
            chosen = texts[starts[index] : starts[index] + part]
            if not _part_path(building, index).exists():
                array = _encode(scorer, chosen)
                try:
                    write_array(_part_path(building, index), array)
                except UserError:
                    if building.is_dir():
                        raise
                    break  # another process has put the index together
                n_encoded += len(chosen)
            progress.advance(task)
    with lock(output / ".lock"):
        missing = sum(not _part_path(building, index).exists() for index in range(len(starts)))
        if missing:
            finished = None
            if not building.exists() and (current := _readable(output)) is not None and current.content == content:
                finished, missing = current, 0
            return Change(finished, n_encoded, n_missing=missing)
        parts = [read_array(_part_path(building, index)) for index in range(len(starts))]
        for index, array in enumerate(parts):
            expected = (min(part, len(items) - starts[index]), scorer.manifest.embedding_width)
            check_rows(_part_path(building, index), expected, array.shape)
        manifest = IndexManifest(
            bundle=scorer.manifest.identity,
            bundle_path=str(path),
            vectors=vectors,  # type: ignore[arg-type]  # one of VECTORS
            kind=kind,  # type: ignore[arg-type]
            width=scorer.manifest.embedding_width,
            number=_next_number(output),
            items=len(items),
            rows=len(items),
            content=content,
        )
        manifest = _write_base(output, manifest, table, np.concatenate(parts), scorer)
        for folder in output.glob("building-*"):
            shutil.rmtree(folder, ignore_errors=True)
    return Change(manifest, n_encoded)


def update_index(
    bundle: str | Path | Scorer, output: str | Path, items: Sequence[Item], *, delete_others: bool = False
) -> Change:
    """Adds items and replaces those whose id the index has. A text that the index knows is not encoded again.

    Args:
      bundle: folder of the bundle that built the index, or that bundle loaded.
      output: folder of the index.
      items: at least one, of distinct ids.
      delete_others: whether items that are not among them are deleted.

    Raises:
      UserError: there is no index, it is damaged, or of another model.
    """
    scorer, path = _scorer(bundle, None)
    with _changing(output):
        state = _State.read(Path(output), scorer.manifest, path)
        texts = [scorer.item_text(item) for item in items]
        hashes = [text_hash(text) for text in texts]
        known = state.rows_of_texts()
        new = {text: None for text, hashed in zip(texts, hashes) if hashed not in known}
        encoded = np.zeros((0, state.manifest.width), np.float32)
        if new:
            chunks = [list(new)[start : start + PART] for start in range(0, len(new), PART)]
            encoded = np.concatenate([_encode(scorer, chunk) for chunk in chunks])
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
        gone = set(current) - {item.id for item in items} if delete_others else set()
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
    scorer, path = _scorer(bundle, None)
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
        return Change(_write_base(Path(output), manifest, table, state.vectors[rows], scorer, state.scale))


def check_bundle(manifest: Manifest, path: str | Path) -> None:
    """Raises UserError where a bundle's student has no single vectors to index."""
    if manifest.model != "two_tower":
        raise UserError(f"{path}: a cross-encoder has no vectors of items; index the bundle of a two_tower")
    if manifest.head == "maxsim":
        raise UserError(
            f"{path}: the head maxsim compares one vector per token, and an index holds one per item; train the "
            "two_tower with the head cosine or mlp"
        )


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


def _write_base(
    folder: Path,
    manifest: IndexManifest,
    table: pa.Table,
    vectors: np.ndarray,
    scorer: Scorer,
    scale: np.ndarray | None = None,
) -> IndexManifest:
    """Writes an index without changes, and its graph where it has one."""
    number = manifest.number
    stored, scale = store(vectors, manifest.vectors, scale)
    writers = {f"items-{number}.parquet": table_writer(table), f"vectors-{number}.npy": array_writer(stored)}
    if scale is not None:
        writers[f"scale-{number}.npy"] = array_writer(scale)
    if manifest.kind == "hnsw":
        extras.require("deploy", "indexes", "faiss")
        restored = restore(stored, scale)
        # Titles as queries lie where queries do, which items do not.
        rows = np.linspace(0, len(restored) - 1, min(len(restored), graph.QUERIES)).astype(int)
        titles = table.column("title").take(pa.array(rows)).to_pylist()
        links = graph.build(restored)
        ef_search, recall = graph.choose_ef(links, restored, scorer.embed(titles, "query"))
        manifest = manifest.model_copy(update={"ef_search": ef_search, "recall": recall})
        writers[f"graph-{number}.faiss"] = graph.writer(links)
    return commit(folder, manifest, writers)


def _encode(scorer: Scorer, texts: Sequence[str]) -> np.ndarray:
    """[N, E] vectors of items' texts; equal texts are encoded once."""
    index = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return scorer.embed(list(index), "item")[[index[text] for text in texts]]


def _content(bundle: Manifest, table: pa.Table, *options: object) -> str:
    columns = [table.column(name).to_pylist() for name in ("id", *ITEM_FIELDS, "attributes")]
    return hash_values([bundle.identity, list(options), columns])


def _part_path(building: Path, index: int) -> Path:
    return building / f"part-{index:05d}.npy"


def _readable(folder: Path) -> IndexManifest | None:
    try:
        return read_index_manifest(folder)
    except UserError:
        return None


def _next_number(folder: Path) -> int:
    """Of the files of a new build: those of an index that can be read are not written over."""
    try:
        return read_index_manifest(folder, check=False).number + 1
    except UserError:
        return 0


def _make_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; give a folder for the index")
    if output.is_dir():
        others = [file.name for file in output.iterdir() if file.name not in (INDEX, ".lock", QUARANTINE)]
        others = [name for name in others if not name.startswith("building-")]
        if others and not (output / INDEX).is_file() and not any(output.glob("building-*")):
            raise UserError(f"{output}: holds {sorted(others)[0]}, which is of no index; give a new folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(output, error) from None


def _changing(output: str | Path) -> AbstractContextManager[bool]:
    read_index_manifest(output, check=False)
    return lock(
        Path(output) / ".lock", lambda: UserError(f"{output}: another process changes this index; run again after it")
    )


def _scorer(bundle: str | Path | Scorer, path: str | Path | None) -> tuple[Scorer, str | Path]:
    if isinstance(bundle, Scorer):
        return bundle, path or "the bundle"
    return load_bundle(bundle), Path(bundle).resolve()


def _bundle_manifest(bundle: str | Path | Scorer) -> tuple[Manifest, str | Path]:
    return (bundle.manifest, "the bundle") if isinstance(bundle, Scorer) else (read_manifest(bundle), bundle)


def write_bad_rows(output: Path, bad: Sequence[Quarantined]) -> Path | None:
    """Writes the rows that are no items beside the index, or removes such a file of earlier; returns where they are."""
    path = output / QUARANTINE
    if not bad:
        path.unlink(missing_ok=True)
        return None
    write_quarantine(path, bad)
    return path

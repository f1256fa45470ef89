"""Building an index. A killed build goes on where it was; several processes may share one.

Items are cut into parts of 1,024. Vectors of a part are one file, written whole or not at all, in a folder whose name
is a hash of items, model and options: the same build finds what it has done, another one never takes it for its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jax_rele import extras
from jax_rele.data.parquet import write_quarantine
from jax_rele.data.rows import Quarantined
from jax_rele.deployment.bundle import Manifest
from jax_rele.deployment.index import graph
from jax_rele.deployment.index.files import (
    INDEX,
    VECTORS,
    IndexManifest,
    array_writer,
    check_rows,
    commit,
    read_array,
    read_index_manifest,
    restore,
    store,
    table_writer,
    write_array,
)
from jax_rele.deployment.index.items import items_table, text_hash
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
    scorer, path = loaded_bundle(bundle, bundle_path)
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
                array = encode_texts(scorer, chosen)
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
        manifest = write_base(output, manifest, table, np.concatenate(parts), scorer)
        for folder in output.glob("building-*"):
            shutil.rmtree(folder, ignore_errors=True)
    return Change(manifest, n_encoded)


def check_bundle(manifest: Manifest, path: str | Path) -> None:
    """Raises UserError where a bundle's student has no single vectors to index."""
    if manifest.model != "two_tower":
        raise UserError(f"{path}: a cross-encoder has no vectors of items; index the bundle of a two_tower")
    if manifest.head == "maxsim":
        raise UserError(
            f"{path}: the head maxsim compares one vector per token, and an index holds one per item; train the "
            "two_tower with the head cosine or mlp"
        )


def write_base(
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


def encode_texts(scorer: Scorer, texts: Sequence[str]) -> np.ndarray:
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


def loaded_bundle(bundle: str | Path | Scorer, path: str | Path | None = None) -> tuple[Scorer, str | Path]:
    """A bundle's student, and where the bundle is."""
    if isinstance(bundle, Scorer):
        return bundle, path or "the bundle"
    return load_bundle(bundle), Path(bundle).resolve()


def write_bad_rows(output: Path, bad: Sequence[Quarantined]) -> Path | None:
    """Writes the rows that are no items beside the index, or removes such a file of earlier; returns where they are."""
    path = output / QUARANTINE
    if not bad:
        path.unlink(missing_ok=True)
        return None
    write_quarantine(path, bad)
    return path

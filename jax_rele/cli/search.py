"""index and search: vectors of items, and the items for a query."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jax_rele.cli.options import MAX_UNKNOWN, check_fraction, named_values
from jax_rele.config import TextLossConfig
from jax_rele.data.rows import RowError, id_text
from jax_rele.data.sources.readers import text_lines
from jax_rele.data.tokens.text_loss import TextLoss, check_text_loss, summarize
from jax_rele.deployment.bundle import read_manifest
from jax_rele.deployment.index import (
    Result,
    build_index,
    compact_index,
    delete_items,
    open_index,
    read_items,
    search_texts,
    update_index,
)
from jax_rele.deployment.index.build import Change, check_bundle, write_bad_rows
from jax_rele.deployment.index.files import check_model
from jax_rele.deployment.scorer import Scorer, load_bundle
from jax_rele.errors import UserError
from jax_rele.io import check_output_file, check_output_folder
from jax_rele.types import Item, ReadOptions


def index(
    bundle: Path,
    items: str | None,
    output: Path,
    *,
    vectors: str | None = None,
    kind: str | None = None,
    reading: ReadOptions = ReadOptions(),
    shard: str | None = None,
    update: bool = False,
    sync: bool = False,
    delete: Path | None = None,
    compact: bool = False,
    export: Path | None = None,
    max_unknown: float | None = None,
) -> None:
    """Builds or changes an index, and writes it as a table on request.

    `max_unknown` is the largest fraction of the items' characters that the student's tokenizer may not know.

    Raises:
      UserError: options that do not go together, bad input, text in another language than the student's, or a bundle
        that cannot be indexed.
    """
    check_fraction("--max-unknown", max_unknown)
    changes = [name for name, chosen in (("--update", update), ("--sync", sync)) if chosen]
    if len(changes) > 1:
        raise UserError("--update and --sync: --sync updates too; give one of them")
    build = items is not None and not changes
    if changes and items is None:
        raise UserError(f"{changes[0]}: needs the file of items: jax-rele index DIR ITEMS --output {output}")
    if not build and (vectors or kind or shard):
        raise UserError("--vectors, --exact, --hnsw and --shard are chosen when an index is built from ITEMS")
    if build and (delete or compact):
        raise UserError("--delete and --compact change an index; to build one from ITEMS leave them out")
    if items is None and not (delete or compact or export):
        raise UserError("nothing to do: give ITEMS to build an index, or --delete, --compact or --export")
    if export is not None:
        check_output_file(export)
    if items is not None or delete or compact:
        check_output_folder(output)
    check_bundle(read_manifest(bundle), bundle)
    if items is not None:
        read = read_items(items, reading)
        scorer = load_bundle(bundle)
        every_item = read.items
        read = read.without(scorer.unreadable(every_item), items)
        loss = _text_loss(scorer, every_item)
        _check_known(loss, items, MAX_UNKNOWN if max_unknown is None else max_unknown)
        if len(read.items) < len(every_item):
            loss = replace(loss, merged_pairs=_text_loss(scorer, read.items).merged_pairs)
        if build:
            _check_nothing_is_lost(output, {item.id for item in read.items}, items)
            change = build_index(
                scorer,
                read.items,
                output,
                vectors=vectors or "float32",
                kind=kind,
                process=None if shard is None else _process(shard),
                bundle_path=bundle.resolve(),
            )
        else:
            change = update_index(scorer, output, read.items, delete_others=sync, spared=read.bad_ids)
        if read.n_replaced:
            print(f"{items}: {read.n_replaced} rows repeat an id with other content; the last row of an id counts")
        if (path := write_bad_rows(output, read.bad)) is not None:
            print(f"{path}: {len(read.bad)} bad rows set aside, the first is {read.bad[0].named(items)}")
            if not build and read.bad_ids:
                print(f"{output}: {len(read.bad_ids)} items of bad rows stay as they are, where they are there")
        remedies = "index by a student that knows the language", "index by one with a longer student.item_length"
        check_text_loss(str(output), loss, TextLossConfig(max_unknown=1.0), remedies=remedies)
        print(
            f"{output}: {loss.unknown_characters} of {loss.characters} characters unknown; {loss.cut_items} items cut"
        )
        if not build:
            print(
                f"{output}: {change.n_new} new, {change.n_changed} changed, {change.n_deleted} deleted; "
                f"{change.n_encoded} texts encoded"
            )
        elif change.manifest is None:
            print(
                f"{output}: {change.n_encoded} items encoded; {change.n_missing} parts are other processes' to finish"
            )
            return
        elif not change.n_encoded:
            print(f"{output}: every item was encoded before")
        _print_state(output, change)
    if delete is not None:
        change = delete_items(bundle, output, _read_ids(delete))
        unknown = f"; {change.n_missing} ids are not in the index" if change.n_missing else ""
        print(f"{output}: {change.n_deleted} deleted{unknown}")
    if compact:
        _print_state(output, compact_index(bundle, output))
    if export is not None:
        from jax_rele.deployment.index.loaders import export_items

        opened = open_index(output)
        check_model(output, opened.manifest, read_manifest(bundle), bundle)
        print(f"{export}: {export_items(opened, export)} items")


def search(
    folder: Path,
    query: str,
    *,
    k: int,
    filters: Sequence[str] = (),
    rerank: Path | None = None,
    candidates: int | None = None,
    bundle: Path | None = None,
    json: bool = False,
) -> None:
    """Prints the best items of an index for a query.

    Raises:
      UserError: bad options, a damaged index, or one of another model.
    """
    if k < 1:
        raise UserError(f"-k {k}: must be at least 1")
    chosen = [(name, value) for each in filters for name, value in named_values([each], "--filter").items()]
    opened = open_index(folder)
    path = bundle or Path(opened.manifest.bundle_path)
    if bundle is None and not path.is_dir():
        raise UserError(f"{folder}: its bundle is no longer at {path}; give --bundle DIR")
    check_model(folder, opened.manifest, read_manifest(path), path)
    if rerank is not None and read_manifest(rerank).model != "cross_encoder":
        raise UserError(f"--rerank {rerank}: is no cross-encoder; give the bundle of one")
    if candidates is not None and rerank is None:
        raise UserError("--candidates: is for --rerank")
    reranker = None if rerank is None else load_bundle(rerank)
    scorer = load_bundle(path)
    (results,) = search_texts(opened, scorer, [query], k, chosen, reranker=reranker, candidates=candidates or 0)
    if json:
        for rank, result in enumerate(results, 1):
            print(json_module.dumps(_as_dict(rank, result), ensure_ascii=False))
        return
    if not results:
        print("no item matches the filters")
        return
    judge = (reranker or scorer).manifest
    tiers = judge.tiers
    table = Table()
    for name in ("", "score", *(["tier"] if tiers else []), "id", "brand", "title"):
        table.add_column(name, overflow="fold")
    for rank, result in enumerate(results, 1):
        tier = judge.tier_of(result.score) or ""
        texts = [result.item.id, result.item.brand, result.item.title]
        table.add_row(str(rank), f"{result.score:.4f}", *([tier] if tiers else []), *map(escape, texts))
    Console().print(table)


def _as_dict(rank: int, result: Result) -> dict:
    item = {name: value for name, value in vars(result.item).items() if value}
    if result.item.attributes:
        item["attributes"] = dict(result.item.attributes)
    return {"rank": rank, "score": result.score, "inner_product": result.inner_product, "item": item}


def _check_known(loss: TextLoss, items: str, most: float) -> None:
    """Raises UserError where the student's tokenizer does not know enough of the items."""
    if loss.unknown_fraction > most:
        raise UserError(
            f"{items}: {loss.unknown_fraction:.1%} of the characters are unknown to the student's tokenizer, more than "
            f"--max-unknown {most:g}; index the items by a student that knows the language"
        )


def _text_loss(scorer: Scorer, items: Sequence[Item]) -> TextLoss:
    """What of the items' texts is not in their vectors."""
    losses: list[np.ndarray] = []
    for start in range(0, len(items), 4096):
        scorer.text_loss([("", item) for item in items[start : start + 4096]], losses)
    return summarize(losses)


def _print_state(output: Path, change: Change) -> None:
    manifest = change.manifest
    assert manifest is not None
    search_kind = "exact search"
    if manifest.kind == "hnsw":
        search_kind = f"HNSW, recall@10 {manifest.recall:.3f} with efSearch {manifest.ef_search}"
    merged = f"; {manifest.delta_rows + manifest.deleted} changes that --compact merges"
    print(
        f"{output}: {manifest.items} items, {manifest.width} x {manifest.vectors}, {search_kind}"
        f"{merged if manifest.delta_rows + manifest.deleted else ''}"
    )


def _read_ids(path: Path) -> list[str]:
    try:
        ids = [id_text(line, "id") for line in text_lines(path) if line.strip()]
    except RowError as error:
        raise UserError(f"{path}: {error}") from None
    if not ids:
        raise UserError(f"{path}: names no item; write one id a line")
    return ids


def _check_nothing_is_lost(output: Path, ids: set[str], items: str | os.PathLike) -> None:
    """Raises UserError where a build would drop items of an index that is there."""
    try:
        contents = open_index(output).contents
    except UserError:
        return  # there is none, or it is damaged and built anew
    present = contents.table.column("id").filter(pa.array(contents.is_visible)).to_pylist()
    if lost := len(set(present) - ids):
        raise UserError(
            f"{output}: holds an index with {lost} items that {items} lacks; --update adds and replaces items, --sync "
            "also "
            "deletes the others; for another index give a new folder"
        )


def _process(text: str) -> tuple[int, int]:
    number, slash, processes = text.partition("/")
    if not slash or not number.isdecimal() or not processes.isdecimal():
        raise UserError(f"--shard {text}: write N/M, e.g. 1/4")
    return int(number), int(processes)

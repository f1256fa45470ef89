"""prepare: read and check the pairs, split them by query, and make unlabelled candidates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jax_rele.config import Config, local_name
from jax_rele.data import PairTable, candidates, ingest, new_files, no_labels, source_hash
from jax_rele.data.parquet import write_pair_tables
from jax_rele.errors import UserError
from jax_rele.names import SPLITS
from jax_rele.runs import layout
from jax_rele.text import locale_key
from jax_rele.types import Item, Pair


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the content of the data."""
    return {f"data.path {local_name(config.data.path)}": source_hash(config.data)}


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the pairs with their splits, the unlabelled pairs and the quarantine.

    Memory holds a few numbers per row of the data; and, where `data.candidates` asks for pairs, the distinct queries
    and items of the training split.
    """
    data, labels, folder = config.data, config.labels, (run_dir / layout.PAIRS).parent
    # What is written becomes the stage's only when all of it is there: nothing of a run that fails stays.
    with new_files(folder) as new_folder:
        ingested = ingest(data, labels, config.seed, config.cache, new_folder)
        in_train = ingested.splits == SPLITS.index("train")
        labelled = {split: int((ingested.labelled & (ingested.splits == i)).sum()) for i, split in enumerate(SPLITS)}
        if not any(labelled.values()):
            raise no_labels(data, config.cache)
        for split, count in labelled.items():
            if not count:
                remedy = "change data.splits" if data.splits.fold is None else "ask for fewer folds"
                raise UserError(f"{data.path}: no labelled pair falls into the {split} split; {remedy} or add pairs")
        train = ingested.pairs.select(in_train)
        crossed = _candidates(config, train) if data.candidates.per_query else []
        unlabelled = ingested.pairs.select(in_train & ~ingested.labelled)
        write_pair_tables(new_folder / Path(layout.UNLABELLED).name, unlabelled.tables(), crossed)
    return {"pairs": labelled, "unlabelled": len(unlabelled) + len(crossed), **ingested.counts}


def _candidates(config: Config, train: PairTable) -> list[Pair]:
    """Unlabelled pairs within each locale: a shopper is shown the items of one."""
    options = config.data.candidates
    by_locale: dict[str, list[Pair]] = defaultdict(list)
    for pair in _judged(train):
        by_locale[locale_key(pair.locale)].append(pair)
    crossed: dict[str, Pair] = {}
    for judged in sorted(by_locale.values(), key=lambda judged: min(pair.locale for pair in judged)):
        items = list({id(pair.item): pair.item for pair in judged}.values())
        of_locale = candidates(
            judged,
            items,
            options.per_query,
            config.seed,
            bm25=options.bm25,
            same_category=options.same_category,
            same_brand=options.same_brand,
        )
        for pair in of_locale:  # one text may be a query in two locales
            crossed.setdefault(pair.pair_id, pair)
    return list(crossed.values())


def _judged(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs; equal texts and items are one object."""
    queries: dict[str, str] = {}
    items: dict[Item, Item] = {}
    return [
        replace(pair, query=queries.setdefault(pair.query, pair.query), item=items.setdefault(pair.item, pair.item))
        for pair in pairs
    ]

"""The training data of the bundled bases, and the held-out data that they must never see.

    python scripts/build_bundled/corpus.py FOLDER        prints the counts and the check

FOLDER holds `esci/esci_pairs.jsonl`, judgements of the Amazon ESCI data set with product texts, and
`queryner/queryner.jsonl`, ESCI queries with human tags (QueryNER). Judgements of the locale `us` are used.

Held out are the queries of the validation and test splits of the bundled sample, and QueryNER's own test queries.
Queries are the same where their words differ in case, spaces, accents and plurals alone
(`jax_rele.rationale.words.key`). The products of held-out pairs are held out too.

The first rows of the sample were chosen such that its labels are nearly balanced; the others have the labels as they
come. The bases are measured on the held-out pairs of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax_rele import config
from jax_rele.data import RowError, ingest, parse_row, read_pairs
from jax_rele.errors import UserError
from jax_rele.rationale.words import key
from jax_rele.types import Item, Pair

ESCI, QUERYNER = Path("esci/esci_pairs.jsonl"), Path("queryner/queryner.jsonl")
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
LOCALE = "us"
ONE_SIDED = ("Grandi9",)
"""Values of a row's `source` whose every judgement is Exact: their pairs are read without the label."""

BALANCED_ROWS = 477
"""The number of the sample's first rows, whose labels are nearly balanced."""


@dataclass(frozen=True)
class Corpus:
    """Training data and held-out data; no query and no product is in both.

    Attributes:
      judged: training pairs; the label is None where it is not used.
      queries: tagged training queries, each with an empty item.
      held_out: those of `demo` on which the bases are measured, with the texts of the folder; all have a label.
      held_out_queries: tagged queries, each with an empty item.
      demo: the pairs of the validation and test splits of the sample.
      apart: the keys of all queries that are held out.
    """

    judged: list[Pair]
    queries: list[Pair]
    held_out: list[Pair]
    held_out_queries: list[Pair]
    demo: list[Pair]
    apart: frozenset[str]

    def allowed(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The pairs whose query is not held out; queries that are cut from texts can be."""
        return [pair for pair in pairs if key(pair.query) not in self.apart]


def load(folder: Path) -> Corpus:
    """Reads a folder and splits it.

    Raises:
      UserError: a file is missing or has no usable row, or no training data are left.
    """
    sample = _sample()
    balanced = {pair.pair_id for pair in sample[:BALANCED_ROWS]}
    demo = [pair for pair in sample if pair.split != "train"]
    measured = {pair.pair_id for pair in demo} - balanced
    judged = _judged(folder)
    held_out = [pair for pair in judged if pair.label is not None and pair.pair_id in measured]
    queries, held_out_queries = _tagged(folder)
    apart = frozenset(key(pair.query) for pair in (*demo, *held_out, *held_out_queries))
    products = {pair.item.id for pair in (*demo, *held_out)}
    corpus = Corpus(
        judged=[pair for pair in judged if key(pair.query) not in apart and pair.item.id not in products],
        queries=[pair for pair in queries if key(pair.query) not in apart],
        held_out=held_out,
        held_out_queries=held_out_queries,
        demo=demo,
        apart=apart,
    )
    for name in ("judged", "queries", "held_out", "held_out_queries"):
        if not getattr(corpus, name):
            raise UserError(f"{folder}: too few rows: none is left for {name}; give the whole folder")
    check(corpus)
    return corpus


def check(corpus: Corpus) -> dict[str, int]:
    """The counts of a corpus. Raises UserError where held-out queries or products are in the training data."""
    learnt = [*corpus.judged, *corpus.queries]
    queries = {key(pair.query) for pair in learnt}
    products = {pair.item.id for pair in corpus.judged}
    leaks = {
        "demo_queries_learnt": len({key(pair.query) for pair in corpus.demo} & queries),
        "demo_products_learnt": len({pair.item.id for pair in corpus.demo} & products),
        "held_out_queries_learnt": len({key(p.query) for p in (*corpus.held_out, *corpus.held_out_queries)} & queries),
        "held_out_products_learnt": len({pair.item.id for pair in corpus.held_out} & products),
    }
    if any(leaks.values()):
        raise UserError(f"held-out texts are in the training data: {leaks}")
    return {
        "judged": len(corpus.judged),
        "judged_with_label": sum(pair.label is not None for pair in corpus.judged),
        "products": len(products),
        "tagged_queries": len(corpus.queries),
        "demo": len(corpus.demo),
        "held_out": len(corpus.held_out),
        "held_out_queries": len(corpus.held_out_queries),
        **leaks,
    }


def _sample() -> list[Pair]:
    """The bundled sample as the demo splits it, in the order of its rows."""
    demo = config.load(DEMO)
    with tempfile.TemporaryDirectory() as folder:
        ingested = ingest(demo.data, demo.labels, demo.seed, Path(folder), Path(folder))
        return list(ingested.pairs)


def _judged(folder: Path) -> list[Pair]:
    path = folder / ESCI
    sources = {str(row.get("pair_id")): row.get("source") for row in _rows(path)}
    demo = config.load(DEMO)
    pairs, _ = read_pairs(path, label_names=demo.labels.names, reading=demo.data.reading, label_map=demo.labels.aliases)
    pairs = [pair for pair in pairs if pair.locale == LOCALE]
    return [replace(pair, label=None) if sources.get(pair.pair_id) in ONE_SIDED else pair for pair in pairs]


def _tagged(folder: Path) -> tuple[list[Pair], list[Pair]]:
    """QueryNER's queries, each once: the training queries, and those of its test split."""
    path = folder / QUERYNER
    parts: tuple[dict[str, Pair], dict[str, Pair]] = {}, {}
    for number, row in enumerate(_rows(path), 1):
        tags = {"tokens": row.get("tokens"), "labels": row.get("labels")}
        raw_row = {"query": row.get("query"), "item": {"title": "-"}, "query_tags": tags}
        try:
            pair = parse_row(raw_row, label_map={}, label_names=())
        except RowError as error:
            raise UserError(f"{path}: line {number}: {error}; fix or remove it") from None
        pair = replace(pair, pair_id=f"q-{number}", item=Item("", ""))
        parts[row.get("split") == "test"].setdefault(key(pair.query), pair)
    return list(parts[0].values()), list(parts[1].values())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one for each line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder that holds {ESCI} and {QUERYNER}")
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"{path}: line {number} is not JSON; fix or remove it") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; fix or remove it")
        yield row


def check_positive(arguments: argparse.Namespace, zero: Sequence[str] = ()) -> None:
    """Raises UserError for a number that is not positive; those named in `zero` may be 0."""
    for name, value in vars(arguments).items():
        if isinstance(value, (int, float)) and (value < 0 or (value == 0 and name not in zero)):
            raise UserError(f"--{name.replace('_', '-')} {value}: give a positive number")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(check(load(arguments.folder)), indent=2))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

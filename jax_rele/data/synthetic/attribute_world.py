"""A generated catalogue with known attributes, hidden rules for the label, and a teacher whose noise is a number.

    python -m jax_rele.data.synthetic.attribute_world worlds/attribute [--labels 1000] [--unlabelled 8000] [--noise 0.1]
                                                                       [--words chinese]

writes pairs.jsonl, the teacher's signals.jsonl (docs/signals.md), and world.json with the words and the rule.

It isolates what each axis of a teacher's knowledge adds from how good a teacher is. An item has a value on each of six
dimensions, and every value has several synonyms, words that mean nothing outside this world (or, on request, Chinese
ones). A query asks for two to four values in one synonym each, an item's title states all six of its own, half of the
time in another synonym than the query's: whoever judges a pair must know which words are synonyms, and of what. The
hidden rule: another category than the query's is `Complement` where the two belong together and `Irrelevant` otherwise;
in the category asked for, no mismatch is `Exact`, one is `Substitute`, more are `Irrelevant`.

Values follow a Zipf law, and the frequency of a query another one by how common its values are. The rarer half of the
queries, those typed once, is the tail. Labels are collected as queries are typed, so they are mostly of the head; the
teacher's signals, validation and test are of queries drawn evenly.

Of one seed, what is drawn for a pair does not depend on the number of pairs: fewer labels are the first of more, the
unlabelled, validation and test pairs stay the same, and a noisier teacher errs wherever a less noisy one does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jax_rele.data.synthetic.catalogue import (
    DIMENSIONS,
    HELD_OUT,
    ITEMS,
    LABELS,
    Table,
    make_table,
    make_world,
    rng_of,
    rule,
)
from jax_rele.data.synthetic.chinese_words import CHINESE
from jax_rele.errors import UserError
from jax_rele.io import write_error, write_json, write_text
from jax_rele.rationale import render
from jax_rele.types import VERDICTS, Comparison, Pair, Rationale

SOFTNESS = 0.05
"""The chance that the teacher gives each of its comparisons of being wrong, which makes its label a distribution."""

WORDS = {"meaningless": None, "chinese": CHINESE}
"""The words of a world by name."""

EMBEDDING = 32
"""Width of the rationale embeddings."""


@dataclass(frozen=True)
class Opinions:
    """The oracle teacher's judgements of a table's pairs.

    Attributes:
      verdicts: [N, D] its verdicts, as indices in `VERDICTS`.
      label_probs: [N, C] the label distribution that follows from them.
      rationales: N rationales: the words that the texts use, its verdicts, and the label that follows.
      embedding: [N, R] unit vectors: a bag of the rationale's words, each with a random vector.
    """

    verdicts: np.ndarray
    label_probs: np.ndarray
    rationales: list[Rationale] = field(repr=False)
    embedding: np.ndarray


def soft_rule(verdicts: np.ndarray, complementary: np.ndarray, softness: float = SOFTNESS) -> np.ndarray:
    """The rule's label distribution where every match or mismatch is wrong with probability `softness`. [N, C]."""
    mismatch = np.array([softness, 1.0 - softness, 0.0])[verdicts]
    # Distribution of the number of mismatches beside the category's: none, one, more.
    none, one, more = np.ones(len(verdicts)), np.zeros(len(verdicts)), np.zeros(len(verdicts))
    for p in mismatch[:, 1:].T:
        none, one, more = none * (1 - p), one * (1 - p) + none * p, more + one * p
    other = mismatch[:, 0]
    irrelevant = (1 - other) * more + other * ~complementary
    return np.stack([(1 - other) * none, (1 - other) * one, other * complementary, irrelevant], axis=1)


def judge(table: Table, noise: float = 0.0) -> Opinions:
    """The oracle teacher's judgements: each verdict is turned into another one with probability `noise`.

    Label, distribution, rationale and embedding follow from the verdicts that it gives, so it errs consistently. It
    always knows which words speak of which dimension.
    """
    world, rows = table.world, np.arange(len(table.query))
    u = rng_of(world.seed, f"noise {table.name}").random((len(rows), 2, len(DIMENSIONS)))
    turned = (table.verdicts + 1 + (u[:, 1] * 2).astype(int)) % len(VERDICTS)
    verdicts = np.where(u[:, 0] < noise, turned, table.verdicts)
    labels = rule(verdicts, table.complementary)
    query_values, asked = world.query_values[table.query], world.asked[table.query]

    rng = rng_of(world.seed, "embedding")
    embedding = rng.normal(size=(len(LABELS), EMBEDDING))[labels]
    in_query, in_title = [], []
    for d, words in enumerate(world.words):
        vectors, of_verdicts = rng.normal(size=(*words.shape, EMBEDDING)), rng.normal(size=(len(VERDICTS), EMBEDDING))
        embedding += of_verdicts[verdicts[:, d]] + vectors[table.values[:, d], table.synonyms[:, d]]
        embedding += np.where(query_values[:, d, None] < 0, 0.0, vectors[query_values[:, d], asked[:, d]])
        in_query.append(np.where(query_values[:, d] < 0, "", words[query_values[:, d], asked[:, d]]))
        in_title.append(words[table.values[:, d], table.synonyms[:, d]])
    rationales = [
        Rationale(
            tuple(
                Comparison(
                    dimension,
                    (str(in_query[d][row]),) if in_query[d][row] else (),
                    (str(in_title[d][row]),),
                    VERDICTS[verdicts[row, d]],
                )
                for d, dimension in enumerate(DIMENSIONS)
            ),
            LABELS[labels[row]],
        )
        for row in rows
    ]
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return Opinions(verdicts, soft_rule(verdicts, table.complementary), rationales, embedding)


def write(
    folder: Path, *, seed: int, labels: int, unlabelled: int, noise: float, words: str = "meaningless"
) -> dict[str, int]:
    """Writes pairs.jsonl, signals.jsonl and world.json, with one of `WORDS`. Returns the number of pairs of each table.

    Raises:
      UserError: there are not as many pairs, or the folder cannot be written.
    """
    world = make_world(seed, WORDS[words])
    counts = {"labelled": labels, "unlabelled": unlabelled}
    counts |= {split: queries * ITEMS[split] for split, queries in HELD_OUT.items()}
    tables = [make_table(world, name, count) for name, count in counts.items()]
    about = {
        **{"seed": seed, "noise": noise, "pairs": counts, "tail_queries": "those of query_frequency 1"},
        "words": {dimension: each.tolist() for dimension, each in zip(DIMENSIONS, world.words)},
        "fillers": world.fillers.tolist(),
        "complements": {
            str(each[0]): str(world.words[0][other, 0]) for each, other in zip(world.words[0], world.complements)
        },
        "rule": "another category: Complement where it is the query's complement, else Irrelevant; the same category: "
        "Exact without a mismatch, Substitute with one, Irrelevant with more",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None
    write_text(folder / "pairs.jsonl", _json_lines(_pair_row(pair) for table in tables for pair in table.pairs))
    write_text(folder / "signals.jsonl", _json_lines(row for table in tables for row in _signal_rows(table, noise)))
    write_json(folder / "world.json", about, indent=1)
    return counts


def _pair_row(pair: Pair) -> dict:
    row = {"pair_id": pair.pair_id, "query": pair.query, "item": {"id": pair.item.id, "title": pair.item.title}}
    row |= {} if pair.label is None else {"label": pair.label}
    return {**row, "split": pair.split, "query_frequency": pair.query_frequency}


def _signal_rows(table: Table, noise: float) -> Iterator[dict]:
    opinions = judge(table, noise)
    probs, vectors = opinions.label_probs.round(6).tolist(), opinions.embedding.round(4).tolist()
    for i, (pair, rationale) in enumerate(zip(table.pairs, opinions.rationales)):
        row = {"pair_id": pair.pair_id, "label_probs": probs[i], "rationale": render(rationale)}
        yield {**row, "rationale_embedding": vectors[i]}


def _json_lines(rows: Iterator[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a world. Returns the exit status: 0, or 2 for a user's mistake."""
    program = "python -m jax_rele.data.synthetic.attribute_world"
    parser = _Parser(prog=program, description="Writes a generated catalogue and its teacher.")
    parser.add_argument("folder", type=Path, metavar="OUTPUT_FOLDER", help="folder to write; files in it are replaced")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (%(default)s)")
    parser.add_argument("--labels", type=int, default=1000, help="labelled training pairs (%(default)s)")
    parser.add_argument("--unlabelled", type=int, default=8000, help="training pairs without a label (%(default)s)")
    parser.add_argument(
        "--noise", type=float, default=0.1, help="chance that a verdict of the teacher is another one (%(default)s)"
    )
    parser.add_argument(
        "--words", choices=sorted(WORDS), default="meaningless", help="of queries and titles (%(default)s)"
    )
    try:
        arguments = parser.parse_args(argv)
        for name, low in (("seed", 0), ("labels", 1), ("unlabelled", 0)):
            if getattr(arguments, name) < low:
                raise UserError(f"--{name} must be at least {low}, got {getattr(arguments, name)}")
        if not 0.0 <= arguments.noise <= 1.0:
            raise UserError(f"--noise must lie in [0, 1], got {arguments.noise}")
        counts = write(**vars(arguments))
    except UserError as error:
        print(f"attribute_world: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.folder}: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + " pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())

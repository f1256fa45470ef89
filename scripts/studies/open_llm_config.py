"""The config of the study open_llm.sh for a file of pairs: python open_llm_config.py TEACHER ENCODER PAIRS OUT

Reads which labels, how many labelled pairs and how many queries the file has; writes OUT/open_llm.yaml, and prints the
numbers of pairs that fit the file as shell variables. In the environment: LABELS (best first), FOLDS, LABELLED,
TEACHER_LABELLED.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import yaml

from jax_rele.data.sources.shards import read_rows
from jax_rele.errors import UserError
from jax_rele.text import text_key

BASE = Path(__file__).resolve().parents[2] / "configs" / "open_llm.yaml"

SCHEMAS: tuple[dict[str, object], ...] = (
    {
        "names": ["Exact", "Substitute", "Complement", "Irrelevant"],
        "gains": [1.0, 0.1, 0.01, 0.0],
        "positive": ["Exact"],
        "aliases": {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"},
    },
    {"names": ["Exact", "Partial", "Irrelevant"], "gains": [1.0, 0.5, 0.0], "positive": ["Exact"]},
)
"""Of ESCI and of WANDS."""


def label_schema(labels: Collection[str], ordered: str = "") -> Mapping[str, object]:
    """The section `labels` for the labels of a file.

    Args:
      labels: those that occur.
      ordered: all of them, best first, apart by blanks; empty for labels of ESCI or WANDS, or numbers.

    Raises:
      UserError: their order is not known.
    """
    names = ordered.split()
    if not names:
        for schema in SCHEMAS:
            if set(labels) <= {*schema["names"], *schema.get("aliases", ())}:  # type: ignore[misc]  # lists of strings
                return schema
        try:
            names = sorted(labels, key=float, reverse=True)
        except ValueError:
            raise UserError(
                f"LABELS: the order of the labels {', '.join(sorted(labels))} is not known; name them all, best first: "
                'LABELS="Good Fair Bad" open_llm.sh ...'
            ) from None
    if missing := set(labels) - set(names):
        raise UserError(f"LABELS: the file has {', '.join(sorted(missing))} too; name all labels, best first")
    if len(names) < 2:
        raise UserError(f"{', '.join(names) or 'no label'}: a study needs pairs of at least two labels")
    gains = [round(1 - rank / (len(names) - 1), 4) for rank in range(len(names))]
    return {"names": names, "gains": gains, "positive": names[:1]}


def main(teacher: str, encoder: str, pairs: str, out: str) -> None:
    """Writes the config; prints shell variables."""
    labels: dict[str, int] = {}
    queries, without = set(), 0
    for _, row in read_rows(pairs):
        if isinstance(row, Mapping) and row.get("label") not in (None, ""):
            label = str(row["label"])
            labels[label] = labels.get(label, 0) + 1
            queries.add(text_key(str(row.get("query", ""))))
        else:
            without += 1
    if labels and without:
        print(f"{pairs}: {without} rows without a label, or that cannot be read, are not counted", file=sys.stderr)
    if not labels:
        raise UserError(f"{pairs}: no row has a label; name the file's columns as docs/data.md does")
    (folds,) = _numbers("FOLDS", "5", least=2)
    config = yaml.safe_load(BASE.read_text("utf-8"))
    splits = config["data"].get("splits", {"train": 0.6, "validation": 0.2})
    fraction = (1 - 1 / folds) * splits["train"] / (splits["train"] + splits["validation"])
    # Splits are by query, so a fold can have fewer pairs than the mean.
    labelled = int(0.9 * fraction * sum(labels.values()))
    train_queries = max(1, int(0.9 * fraction * len(queries)))
    asked = _numbers("TEACHER_LABELLED", "0 5000 20000", least=0)
    per_query = min(40, math.ceil(max([*asked, 1]) / (0.9 * train_queries)))
    config["labels"] = dict(label_schema(labels, os.environ.get("LABELS", "")))
    config["data"] |= {"path": str(Path(pairs).resolve()), "candidates": {"per_query": per_query}}
    config["teacher"]["init"], config["student"]["init"] = _absolute(teacher), _absolute(encoder)
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "open_llm.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")
    numbers = _numbers("LABELLED", "300 1000", least=1)
    for name, fitting, requested in (
        ("labelled", [n for n in numbers if n <= labelled], numbers),
        # Candidates are drawn for every training query, except where the catalogue has no more items for one.
        ("teacher_labelled", [n for n in asked if n <= 0.9 * per_query * train_queries], asked),
    ):
        if left := [n for n in requested if n not in fitting]:
            print(f"{name}: {' '.join(map(str, left))} is more than a fold has, left out", file=sys.stderr)
        print(f"{name}={shlex.quote(' '.join(map(str, fitting)))}")


def _numbers(name: str, default: str, least: int) -> list[int]:
    """The whole numbers of a variable of the environment."""
    text = os.environ.get(name, default)
    try:
        numbers = [int(word) for word in text.split()]
        if min(numbers, default=least) >= least and (name != "FOLDS" or len(numbers) == 1):
            return numbers
    except ValueError:
        pass
    kind = "one whole number" if name == "FOLDS" else "whole numbers"
    raise UserError(f"{name}: {text!r} is not {kind} of at least {least}")


def _absolute(init: str) -> str:
    """Paths hold in the study's folder too."""
    kind, colon, name = init.rpartition(":")
    return f"{kind}{colon}{Path(name).resolve()}" if Path(name).exists() else init


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage: {Path(sys.argv[0]).name} TEACHER ENCODER PAIRS OUT")
    try:
        main(*sys.argv[1:])
    except (UserError, OSError) as error:
        sys.exit(f"open_llm.sh: {error}")

"""Which kind of the main answer's errors the other perspectives of a teacher correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jax_rele.evaluation.ratios import ratio
from jax_rele.evaluation.summary import cell, markdown_table

KINDS = ("too_lenient", "too_strict", "right")
"""What the main answer's label is beside people's: a better grade, a worse one, the same."""


def corrections(
    decided: Mapping[str, np.ndarray],
    main: str,
    labels: np.ndarray,
    gains: Sequence[float],
    *,
    queries: Sequence[str],
    n_bootstrap: int,
    seed: int,
) -> dict[str, dict[str, dict[str, object]]]:
    """For each perspective how often its label is right, by what the main answer's label is.

    Args:
      decided: {perspective: [N] indices of labels}.
      main: the name of the main answer among them.
      labels: [N] indices of people's labels.
      gains: of each label; of two with one gain the first is the better grade.
      queries: N queries, which are resampled as a whole.
      n_bootstrap, seed: of the intervals.

    Returns:
      {perspective: {kind: {"pairs": that the main answer judges so, "value", "ci95"}}} with the kinds of `KINDS`,
      without the main answer; the value is the fraction of these pairs on which the perspective is right, None without
      pairs.
    """
    rank = np.argsort(np.argsort(-np.asarray(gains, np.float64), kind="stable"))
    theirs, ours = rank[labels], rank[decided[main]]
    rows = dict(zip(KINDS, (ours < theirs, ours > theirs, ours == theirs)))

    def figures(right: np.ndarray, among: np.ndarray) -> dict[str, object]:
        numbers = np.flatnonzero(among)
        clusters = [queries[number] for number in numbers.tolist()]
        return {
            "pairs": len(numbers),
            **ratio(right[numbers], np.ones(len(numbers)), clusters, n_bootstrap, seed),
        }

    return {
        name: {kind: figures(each == labels, among) for kind, among in rows.items()}
        for name, each in decided.items()
        if name != main
    }


def correction_table(figures: Mapping[str, Mapping[str, Mapping]]) -> str:
    """What `corrections` returned as a Markdown table; empty without perspectives."""
    if not figures:
        return ""
    pairs = next(iter(figures.values()))
    titles = {"too_lenient": "too lenient", "too_strict": "too strict", "right": "right"}
    head = ["right, where the main answer is", *(f"{titles[kind]} ({pairs[kind]['pairs']} pairs)" for kind in KINDS)]
    rows = [[name, *(cell(kinds[kind]) for kind in KINDS)] for name, kinds in figures.items()]
    return "\n" + "\n".join(markdown_table([head, *rows])) + "\n"

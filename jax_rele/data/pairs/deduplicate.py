"""Which row is selected where a query and item are judged more than once."""

from __future__ import annotations

from typing import Literal

import numpy as np

SELECTED, DUPLICATE, CONFLICT = range(3)
"""The statuses of a row."""

UNLABELLED = -1


def resolve(
    keys: np.ndarray,
    labels: np.ndarray,
    ranks: np.ndarray,
    contents: np.ndarray,
    conflicts: Literal["majority", "first", "last", "drop"],
) -> tuple[np.ndarray, np.ndarray]:
    """Selects one of the rows that judge the same query and item.

    Where labels differ, `conflicts` says which one wins: the one that most rows give (of equals the lower grade), that
    of the first or the last labelled row, or none. Rows without label have no vote, and are selected only where no row
    has one. Of the rows with the winning label the one with the smallest rank is kept, of equals that with the smallest
    content, of equals the first. So with `majority` and `drop` the order of the rows does not matter.

    Args:
      keys: [N] what is judged: equal for the same normalised query, item id and locale.
      labels: [N] indices in the label schema, best first; `UNLABELLED` for none.
      ranks: [N] rank of each row's `pair_id` in their order, equal for equal ones.
      contents: [N] a hash of the rest of the row.
      conflicts: the rule.

    Returns:
      [N] `SELECTED`, `DUPLICATE` (a row is kept that agrees, or that has a label where this one has none) or `CONFLICT`
      (another label is kept, or none); and [N] the row that is kept instead of each, -1 for none.
    """
    statuses, replacements = np.full(len(labels), SELECTED, np.int8), np.arange(len(labels))
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[inverse] > 1)
    if not len(rows):
        return statuses, replacements
    _, group = np.unique(inverse[rows], return_inverse=True)
    label = labels[rows].astype(np.int64)
    winner, differ = _winners(group, label, conflicts)

    # The best row of each group comes first: of those with the winning label, or of those without any.
    loses = label != winner[group]
    order = np.lexsort((rows, contents[rows], ranks[rows], loses, group))
    best = rows[order[np.searchsorted(group[order], np.arange(len(winner)))]]
    replacements[rows] = best[group]
    outvoted = loses & (label != UNLABELLED)
    statuses[rows] = np.where(rows == replacements[rows], SELECTED, np.where(outvoted, CONFLICT, DUPLICATE))
    if conflicts == "drop":
        dropped = rows[differ[group]]
        statuses[dropped], replacements[dropped] = CONFLICT, -1
    return statuses, replacements


def _winners(group: np.ndarray, label: np.ndarray, conflicts: str) -> tuple[np.ndarray, np.ndarray]:
    """[G] the label that wins in each group, `UNLABELLED` where there is none; [G] bool whether labels differ."""
    n_groups = group.max() + 1
    winner = np.full(n_groups, UNLABELLED)
    voters = np.flatnonzero(label != UNLABELLED)
    width = label.max() + 2
    votes, counts = np.unique(group[voters] * width + label[voters], return_counts=True)
    their_group, their_label = np.divmod(votes, width)
    differ = np.bincount(their_group, minlength=n_groups) > 1
    if conflicts in ("first", "last"):
        # Of several assignments to one index the last one counts.
        in_order = voters if conflicts == "last" else voters[::-1]
        winner[group[in_order]] = label[in_order]
    else:
        in_order = np.lexsort((their_label, counts, their_group))
        winner[their_group[in_order]] = their_label[in_order]
    return winner, differ

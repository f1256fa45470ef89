"""One row is kept of those that judge the same thing, whatever their order."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data.pairs.deduplicate import CONFLICT, DUPLICATE, SELECTED, UNLABELLED, resolve

RULES = ("majority", "first", "last", "drop")
rows = st.tuples(st.integers(0, 4), st.integers(UNLABELLED, 3), st.integers(0, 5), st.integers(0, 3))
tables = st.lists(rows, max_size=20)


def run(table, rule):
    keys, labels, ranks, contents = np.array(table, np.int64).reshape(-1, 4).T
    statuses, replacements = resolve(keys.astype(np.uint64), labels.astype(np.int16), ranks, contents, rule)
    return statuses.tolist(), replacements.tolist()


def expected(table, rule):
    """Row by row, by the words of the rule."""
    statuses, replacements = [SELECTED] * len(table), list(range(len(table)))
    for judgement in {row[0] for row in table}:
        group = [i for i, row in enumerate(table) if row[0] == judgement]
        given_labels = [table[i][1] for i in group if table[i][1] != UNLABELLED]
        if len(set(given_labels)) > 1 and rule == "drop":
            for i in group:
                statuses[i], replacements[i] = CONFLICT, -1
            continue
        winner = UNLABELLED
        if given_labels:
            votes = Counter(given_labels)
            majority = max(votes, key=lambda label: (votes[label], label))
            winner = {"first": given_labels[0], "last": given_labels[-1]}.get(rule, majority)
        best = min((i for i in group if table[i][1] == winner), key=lambda i: (*table[i][2:], i))
        for i in group:
            replacements[i] = best
            if i != best:
                statuses[i] = DUPLICATE if table[i][1] in (winner, UNLABELLED) else CONFLICT
    return statuses, replacements


@given(tables, st.sampled_from(RULES))
def test_the_rule(table, rule):
    assert run(table, rule) == expected(table, rule)


@given(tables, st.sampled_from(["majority", "drop"]), st.randoms())
def test_the_order_of_rows_does_not_matter(table, rule, shuffler):
    statuses, _ = run(table, rule)
    shuffled = shuffler.sample(table, len(table))
    again, _ = run(shuffled, rule)
    assert sorted(zip(table, statuses)) == sorted(zip(shuffled, again))


@pytest.mark.parametrize(
    ("rule", "labels", "selected"),
    [
        ("majority", [0, 1, 1], 1),
        ("majority", [0, 1, UNLABELLED], 1),  # of equals the lower grade
        ("first", [UNLABELLED, 2, 1, 1], 1),
        ("last", [1, 1, 0, UNLABELLED], 2),
        ("drop", [1, 1], 0),
        ("majority", [UNLABELLED, UNLABELLED], 0),
    ],
)
def test_examples(rule, labels, selected):
    statuses, _ = run([(7, label, rank, 0) for rank, label in enumerate(labels)], rule)
    assert [i for i, status in enumerate(statuses) if status == SELECTED] == [selected]

"""What a student is taught: each pair's own signals, and no label that nobody gave."""

import numpy as np
import pytest

from jax_rele.config import Config
from jax_rele.errors import UserError
from jax_rele.stages.distill import groups_of, targets
from jax_rele.types import Item, Pair, Signals

CONFIG = Config.model_validate({"distill": {"group_size": 2}})
PAIRS = [
    Pair("a", "q1", Item("1", "t"), label="Substitute"),
    Pair("b", "q1", Item("2", "t")),
    Pair("c", "q2", Item("3", "t"), label="Irrelevant"),
    Pair("d", "q3", Item("4", "t")),
    Pair("e", "q1", Item("5", "t")),
]
RNG = np.random.default_rng(0)
IDS = ("e", "c", "a", "d", "b")
SIGNALS = Signals(
    IDS,
    RNG.dirichlet(np.ones(4), 5).astype(np.float32),
    RNG.dirichlet(np.ones(3), (5, 7)).astype(np.float32),
    ((),) * 5,
    ("",) * 5,
)


def test_every_pair_gets_its_own_signals_and_label():
    SIGNALS.verdict_probs[1] = np.nan
    made = targets(CONFIG, PAIRS, SIGNALS)
    assert made["labels_mask"].tolist() == [True, False, True, False, False]
    assert made["labels"][[0, 2]].tolist() == [1, 3]
    for row, pair in enumerate(PAIRS):
        place = IDS.index(pair.pair_id)
        np.testing.assert_array_equal(made["label_probs"][row], SIGNALS.label_probs[place])
        if pair.pair_id != "c":
            np.testing.assert_array_equal(made["verdict_probs"][row], SIGNALS.verdict_probs[place])
    assert made["verdict_probs_mask"].all(axis=1).tolist() == [True, True, False, True, True]


def test_missing_signals_are_named():
    with pytest.raises(UserError, match="the signals lack 1 of 6 pairs, the first is 'f'"):
        targets(CONFIG, [*PAIRS, Pair("f", "q", Item("6", "t"))], SIGNALS)


def test_without_a_teacher_the_same_groups_hold_their_labelled_pairs_alone():
    whole, labelled = groups_of(CONFIG, PAIRS, "mkd"), groups_of(CONFIG, PAIRS, "label_only")
    assert len(whole) == len(labelled)
    assert sorted(whole[whole >= 0]) == [0, 1, 2, 3, 4]
    for group, kept in zip(whole, labelled):
        assert set(kept[kept >= 0]) == {row for row in group if row >= 0 and PAIRS[row].label is not None}

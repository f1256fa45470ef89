"""Rewards: what of an answer is right, and what an answer cannot get by saying nothing or making values up."""

import pytest

from jax_rele.annotation.rewards import reward_parts
from jax_rele.rationale import ParseFailure
from jax_rele.types import Comparison, Item, Pair, Rationale, Rule

PAIR = Pair("1", "red acme shoes", Item("a", "Acme sneakers in red", brand="Acme"), label="Exact")
BRAND = Comparison("brand", ("acme",), ("Acme",), "match")
COLOR = Comparison("color", ("red",), ("red",), "match")
REFERENCE = Rationale((BRAND, COLOR), "Exact")
RULE = Rule("", {"brand": ("match",)}, ("Substitute",))


def parts(*comparisons, label="Exact", rules=()):
    return reward_parts(PAIR, Rationale(comparisons, label), REFERENCE, ("title", "brand"), rules)


def test_a_right_answer_has_it_all_but_brevity():
    right = parts(BRAND, COLOR)
    assert (right["label"], right["verdicts"]) == (1.0, 1.0)
    assert right["brevity"] == pytest.approx(1 - 4 / 8)


@pytest.mark.parametrize(
    ("color", "why"),
    [
        (Comparison("color", verdict="absent"), "nothing is said"),
        (Comparison("color", ("red",), ("red",), "mismatch"), "another verdict"),
        (Comparison("color", ("red",), ("crimson",), "match"), "the item does not say so"),
        (Comparison("color", ("red",), (), "match"), "a match without a value"),
    ],
)
def test_a_dimension_counts_where_verdict_and_values_are_right(color, why):
    assert parts(BRAND, color)["verdicts"] == 0.5, why


def test_the_label_is_the_human_one_and_keeps_the_rules():
    assert parts(BRAND, COLOR, label="Substitute")["label"] == 0.0
    assert parts(BRAND, COLOR, rules=(RULE,))["label"] == 0.0


def test_the_label_alone_and_what_does_not_parse():
    assert parts() == {"label": 1.0, "verdicts": 1.0, "brevity": 1.0}
    failure = reward_parts(PAIR, ParseFailure("none"), REFERENCE, ("title",), ())
    assert set(failure.values()) == {0.0}

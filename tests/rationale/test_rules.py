"""Business rules on rationales and on arrays of verdicts are the same rules."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.rationale.rules import allowed_labels, applying_rules, broken_rules
from jax_rele.types import VERDICTS, Comparison, Rationale, Rule

DIMENSIONS, LABELS = ("category", "brand", "color"), ("Exact", "Substitute", "Irrelevant")

SOME_LABELS = st.lists(st.sampled_from(LABELS), unique=True, min_size=1).map(tuple)
RULES = st.lists(
    st.builds(
        Rule,
        text=st.just(""),
        conditions=st.dictionaries(
            st.sampled_from(DIMENSIONS), st.lists(st.sampled_from(VERDICTS), unique=True, min_size=1).map(tuple)
        ),
        labels=SOME_LABELS,
    ),
    max_size=4,
)


@given(RULES, st.lists(st.tuples(*[st.sampled_from(VERDICTS)] * 3, st.sampled_from(LABELS)), max_size=5))
def test_arrays_and_rationales_agree(rules, rows):
    verdicts = np.array([[VERDICTS.index(verdict) for verdict in row[:3]] for row in rows], int).reshape(-1, 3)
    labels = np.array([LABELS.index(row[3]) for row in rows], int)
    broken = applying_rules(rules, verdicts, DIMENSIONS) & ~allowed_labels(rules, LABELS)[:, labels].T
    for row, expected in zip(rows, broken, strict=True):
        rationale = Rationale(tuple(Comparison(name, verdict=v) for name, v in zip(DIMENSIONS, row)), row[3])
        assert broken_rules(rules, rationale) == [rule for rule, is_broken in zip(rules, expected) if is_broken]


def test_all_conditions_must_hold_and_one_verdict_of_each_suffices():
    rule = Rule("", {"category": ("match",), "brand": ("mismatch", "absent")}, ("Substitute",))
    accessory = Rationale((Comparison("category", verdict="match"),), "Exact")
    assert broken_rules([rule], accessory) == [rule]
    assert str(rule) == "Where category is match and brand is mismatch or absent, the label is Substitute."
    assert not broken_rules([rule], Rationale(accessory.comparisons, "Substitute"))
    assert not broken_rules([rule], Rationale((), "Exact"))


def test_a_rationale_without_label_and_a_rule_in_words_alone_break_nothing():
    rule = Rule("Refurbished items are Substitutes.")
    assert str(rule) == "Refurbished items are Substitutes."
    assert not broken_rules([rule], Rationale((), "Exact"))
    assert not broken_rules([Rule("", {"brand": ("absent",)}, ("Exact",))], Rationale())

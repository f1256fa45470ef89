"""How often labels break business rules."""

import numpy as np
import pytest

from jax_rele.evaluation.rules import HUMAN, rule_figures
from jax_rele.types import VERDICTS, LabelSchema, Rule

SCHEMA = LabelSchema(("Exact", "Substitute", "Irrelevant"), (1.0, 0.5, 0.0), ("Exact",))
MATCH, MISMATCH, ABSENT = range(len(VERDICTS))
RULES = (
    Rule("Another brand is no Exact.", {"brand": ("mismatch",)}, ("Substitute", "Irrelevant")),
    Rule("", {"brand": ("absent",), "color": ("mismatch",)}, ("Substitute",)),
)


def figures(**changed):
    arguments = {
        "verdicts": np.array([[MISMATCH, MATCH], [MISMATCH, MATCH], [MATCH, MATCH], [MISMATCH, ABSENT]]),
        "decided": {HUMAN: np.array([0, 1, 0, 2]), "teacher": np.array([0, 0, 0, 0])},
        "own_verdicts": {"teacher": np.array([[MATCH, MATCH], [MISMATCH, MATCH], [-1, -1], [ABSENT, MISMATCH]])},
        "queries": ["a", "a", "b", "c"],
        "n_bootstrap": 50,
        "seed": 0,
    }
    return rule_figures(RULES, SCHEMA, ("brand", "color"), **arguments | changed)


def test_labels_are_counted_where_a_rule_applies():
    brand, color = figures()
    assert (brand["rule"], brand["pairs"]) == ("Another brand is no Exact.", 3)
    assert brand["broken"][HUMAN]["value"] == pytest.approx(1 / 3)
    assert brand["broken"]["teacher"]["value"] == 1.0
    low, high = brand["broken"][HUMAN]["ci95"]
    assert low <= 1 / 3 <= high
    assert color["pairs"] == 0
    assert color["broken"][HUMAN] == {"value": None, "ci95": None}


def test_own_verdicts_say_where_a_rule_applies_to_a_model():
    brand, color = (each["own"]["teacher"] for each in figures())
    assert (brand["pairs"], brand["value"]) == (1, 1.0)
    assert (color["pairs"], color["value"]) == (1, 1.0)


def test_a_model_without_verdicts_has_none_of_its_own():
    assert all(each["own"] == {} for each in figures(own_verdicts={}))

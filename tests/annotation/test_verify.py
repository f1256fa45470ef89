"""Rationales against their texts, their own values, and the rules of labels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.annotation.verify import verify
from jax_rele.rationale import Gazetteers, RuleAnnotator
from jax_rele.types import VERDICTS, Comparison, Item, Pair, Rationale, Rule

DIMENSIONS = ("category", "brand", "size", "color")
LABELS = ("Exact", "Irrelevant")
PAIR = Pair(
    "p",
    "Nike running shoes ★ size 8",
    Item(
        "i", "Adidas Runner T-Shirts, grey", brand="adidas", description="hidden words", attributes=(("fit", "loose"),)
    ),
)


def check(*comparisons, label="Exact", rules=(), fields=("title", "brand")):
    return verify(PAIR, Rationale(tuple(Comparison(*c) for c in comparisons), label), fields, rules)


def locations(checked):
    return {(value.side, value.text): value.location for value in checked.values}


def test_values_are_found_as_words_whatever_their_spelling():
    checked = check(
        ("category", ("Running Shoe", "★", "runn"), ("t shirt", "shoes"), "mismatch"),
        ("color", ("gray",), ("gray",), "match"),
    )
    assert locations(checked) == {
        ("query", "Running Shoe"): "found",
        ("query", "★"): "found",
        ("query", "runn"): "nowhere",
        ("item", "t shirt"): "found",
        ("item", "shoes"): "other_side",
        ("query", "gray"): "other_side",
        ("item", "gray"): "found",
    }
    assert {value.text for value in checked.hallucinated} == {"runn"}
    assert {value.text for value in checked.inferred} == {"runn", "shoes", "gray"}


def test_only_fields_that_were_shown_count():
    comparison = ("brand", (), ("hidden words", "loose"), "absent")
    assert set(locations(check(comparison)).values()) == {"nowhere"}
    assert set(locations(check(comparison, fields=("title", "description", "attributes"))).values()) == {"found"}


@given(st.lists(st.sampled_from(["ab", "c", "d1", "e-f", "★"]), min_size=1), st.data())
def test_every_run_of_words_of_a_text_is_found_in_it(pieces, data):
    start = data.draw(st.integers(0, len(pieces) - 1))
    value = " ".join(pieces[start : data.draw(st.integers(start + 1, len(pieces)))])
    pair = Pair("p", "other", Item("i", " ".join(pieces)))
    checked = verify(pair, Rationale((Comparison("brand", (), (value, value + " zzz")),), "Exact"), ("title",))
    assert [one.location for one in checked.values] == ["found", "nowhere"]


@pytest.mark.parametrize(
    ("comparison", "kind", "certain"),
    [
        (("brand", ("Nike",), (), "match"), "no_values", True),
        (("brand", (), ("adidas",), "mismatch"), "no_values", True),
        (("brand", ("Nike",), ("nike",), "mismatch"), "values_agree", True),
        (("category", ("shoe",), ("running shoe",), "mismatch"), "values_agree", False),
        (("size", ("8 gb",), ("16 GB",), "match"), "values_differ", True),
        (("category", ("sneaker",), ("running shoe",), "match"), "values_differ", False),
        (("brand", ("Nike",), ("nike",), "absent"), "not_absent", True),
        (("brand", ("Nike",), ("adidas",), "absent"), "not_absent", False),
    ],
)
def test_verdicts_against_their_values(comparison, kind, certain):
    [problem] = check(comparison).verdict_problems
    assert (problem.kind, problem.dimension, problem.certain) == (kind, comparison[0], certain)
    assert bool(check(comparison).contradictions) == certain


@pytest.mark.parametrize(
    "comparison",
    [
        ("brand", ("Nike",), (), "absent"),
        ("brand", (), (), "absent"),
        ("brand", ("Nike",), ("NIKE",), "match"),
        ("brand", ("Nike",), ("adidas",), "mismatch"),
        # Inches say nothing of pounds.
        ("size", ("8 inch",), ("3 pounds",), "absent"),
    ],
)
def test_verdicts_that_fit(comparison):
    assert check(comparison).verdict_problems == ()


@given(st.text(max_size=40), st.text(min_size=1, max_size=40))
def test_the_rule_annotator_passes_its_own_checks(query, title):
    gazetteers = Gazetteers(DIMENSIONS, {}, {"nike": "brand"}, {"nike": "brand", "red": "color"}, frozenset())
    pair = Pair("p", query + " nike 8 inch shoe", Item("i", "red Nike shoe " + title), "Exact")
    [comparison] = RuleAnnotator(gazetteers).annotate([pair])
    checked = verify(pair, comparison, ("title",))
    assert checked.verdict_problems == ()
    assert checked.inferred == ()


BRAND = Rule("Another brand is no Exact.", {"brand": ("mismatch", "absent")}, ("Irrelevant",))


@pytest.mark.parametrize("label", ["Exact", "Irrelevant"])
@pytest.mark.parametrize("brand", VERDICTS)
def test_a_label_against_a_rule_is_a_contradiction(label, brand):
    checked = check(("brand", ("a",), ("a",), brand), label=label, rules=[BRAND])
    assert len(checked.label_problems) == (label == "Exact" and brand != "match")
    assert all(problem.certain for problem in checked.label_problems)


def test_a_dimension_that_is_not_judged_is_absent():
    assert [problem.detail for problem in check(rules=[BRAND]).label_problems] == [
        "Exact breaks a rule: Another brand is no Exact."
    ]


def test_values_that_are_cut_within_a_word_are_found_in_their_own_text():
    rationale = Rationale((Comparison("category", ("Runn", "zz"), ("shir",), "mismatch"),), "Exact")
    plain, cut = (verify(PAIR, rationale, ("title", "brand"), cut_values=cut_values) for cut_values in (False, True))
    assert [value.text for value in plain.hallucinated] == ["Runn", "zz", "shir"]
    assert [value.text for value in cut.hallucinated] == ["zz"]

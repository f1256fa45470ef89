"""Figures against float64 oracles and counts by hand, and a page that holds them and escapes everything."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from jax_rele.annotation.answers import Failure
from jax_rele.annotation.injection import attack, effect
from jax_rele.annotation.quality import CONSENSUS, Annotations, build_quality
from jax_rele.annotation.report import EXAMPLES, cell, find_examples, findings, money, write_report
from jax_rele.annotation.votes import Vote, consensus, fit_votes
from jax_rele.evaluation.ratios import fleiss_kappa, ratio
from jax_rele.types import Comparison, Item, LabelSchema, Pair, Rationale, Rule

LABELS = LabelSchema(("Exact", "Substitute", "Irrelevant"), (1.0, 0.1, 0.0), ("Exact",))
DIMENSIONS = ("category", "brand")


def kappa_by_pairs_of_raters(ratings, size):
    """Fleiss' kappa from its definition: the agreement of all pairs of raters, against that of two random ratings."""
    observed = np.mean([[a == b for i, a in enumerate(row) for j, b in enumerate(row) if i != j] for row in ratings])
    chance = sum(np.mean([one == c for row in ratings for one in row]) ** 2 for c in range(size))
    return (observed - chance) / (1 - chance)


@given(
    st.integers(2, 5).flatmap(
        lambda raters: st.lists(st.lists(st.integers(0, 3), min_size=raters, max_size=raters), min_size=1)
    )
)
def test_kappa_is_that_of_the_definition(ratings):
    counts = np.array([np.bincount(row, minlength=4) for row in ratings])
    figure = fleiss_kappa(counts, [str(n) for n in range(len(counts))], 0, 0)
    if len({one for row in ratings for one in row}) == 1:
        assert figure["value"] is None
    else:
        assert figure["value"] == pytest.approx(kappa_by_pairs_of_raters(ratings, 4), abs=1e-12)


def test_kappa_of_the_paper():
    # The worked example of Fleiss 1971 as it is usually given: 10 subjects, 14 raters, 5 categories.
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(np.array(counts), list("abcdefghij"), 0, 0)["value"] == pytest.approx(0.20993, abs=1e-5)


def test_kappa_refuses_uneven_raters():
    with pytest.raises(ValueError, match="same number of raters"):
        fleiss_kappa(np.array([[2, 0], [1, 0]]), ["a", "b"], 0, 0)
    with pytest.raises(ValueError, match="at least 2"):
        fleiss_kappa(np.array([[1, 0]]), ["a"], 0, 0)
    assert fleiss_kappa(np.zeros((0, 2)), [], 9, 0) == {"value": None, "ci95": None}


def test_intervals_are_those_of_scipy_where_clusters_are_single():
    values = np.random.default_rng(1).random(200) < 0.3
    ours = ratio(values, np.ones(200), [str(n) for n in range(200)], 4000, 0)
    other = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert ours["value"] == values.mean()
    np.testing.assert_allclose(ours["ci95"], other, atol=0.01)


def test_pairs_of_one_query_are_not_independent():
    values = np.repeat(np.random.default_rng(1).random(50) < 0.3, 8)
    lone, clustered = (
        ratio(values, np.ones(400), clusters, 2000, 0)["ci95"]
        for clusters in ([str(n) for n in range(400)], [str(n // 8) for n in range(400)])
    )
    assert (clustered[1] - clustered[0]) == pytest.approx((lone[1] - lone[0]) * np.sqrt(8), rel=0.15)
    clusters = [str(n // 8) for n in range(400)]
    uneven = np.random.default_rng(2).random(400)
    one, other = (ratio(uneven[::step], np.ones(400), clusters[::step], 200, 0)["ci95"] for step in (1, -1))
    assert one == pytest.approx(other, abs=1e-12)
    assert ratio([1, 0], [1, 1], ["q", "q"], 100, 0) == {"value": 0.5, "ci95": None}
    assert ratio([], [], [], 100, 0) == {"value": None, "ci95": None}
    assert ratio([1.0], [0.0], ["q"], 100, 0) == {"value": None, "ci95": None}


def answer(label, brand=(("nike",), ("nike",), "match")):
    return Rationale((Comparison("category", ("shoe",), ("shoe",), "match"), Comparison("brand", *brand)), label)


EXACT, OTHER = answer("Exact"), answer("Irrelevant", (("nike", "adidas"), ("adidas",), "mismatch"))
HALLUCINATED = answer("Exact", (("nike",), ("puma",), "match"))
CONTRADICTORY = answer("Exact", (("nike",), ("Nike",), "mismatch"))


def annotations(texts=("nike shoe", "nike shoe"), **rules):
    """Four pairs by hand: a agreed, b split, c against its gold label, d unreadable; and what each costs."""
    query, title = texts
    outcomes = {
        "a": (EXACT, EXACT, EXACT),
        "b": (EXACT, EXACT, OTHER),
        "c": (HALLUCINATED, EXACT, CONTRADICTORY),
        "d": (Failure("refusal", "I'm sorry"), Failure("empty"), Failure("empty")),
    }
    # Model x has two samples, y one.
    votes = {
        p: [Vote(p, "x", each[0], 0, cost=1.0), Vote(p, "x", each[1], 1, cost=1.0), Vote(p, "y", each[2], 0, cost=0.25)]
        for p, each in outcomes.items()
    }
    pairs = {
        p: Pair(p, f"{query}", Item(p, f"{title} adidas {p}"), locale="us" if p < "c" else "cn", long_tail=p == "a")
        for p in votes
    }
    gold = {"a": "Exact", "b": "Irrelevant", "c": "Irrelevant"}
    decisions = consensus(votes, LABELS, DIMENSIONS, gold=gold, weights="equal", min_vote_fraction=0.6, **rules)
    rules = [Rule("", {"brand": ("mismatch",)}, LABELS.names[1:])]
    return Annotations(pairs, votes, decisions, LABELS, DIMENSIONS, ("title",), rules)


def test_figures_by_hand():
    quality = build_quality(annotations(), n_bootstrap=50)
    json.dumps(quality, allow_nan=False)
    whole = quality["slices"]["all"]
    assert whole["decisions"] == {"accepted": 2, "rejected": 2, "pending": 0}
    assert whole["reasons"] == {"rejected: disagreement": 1, "rejected: no readable answer": 1}
    assert (whole["n_pairs"], whole["n_gold"], whole["cost"], whole["cost_per_accepted"]) == (4, 3, 9.0, 4.5)
    assert whole["marks"]["gold_agrees"] == 2
    assert (whole["majority"]["label"], whole["majority"]["accuracy"]["value"]) == ("Irrelevant", pytest.approx(2 / 3))
    x, y, both = (whole["models"][name] for name in ("x", "y", CONSENSUS))
    assert (x["answers"], x["readable"], x["failures"]) == (8, 6, {"empty": 1, "refusal": 1})
    assert (y["answers"], y["readable"], y["failures"]) == (4, 3, {"empty": 1})
    assert x["accuracy"]["value"] == pytest.approx(1 / 3)
    assert y["accuracy"]["value"] == pytest.approx(2 / 3)
    # b is a tie, which goes to the lower grade.
    assert both["accuracy"]["value"] == pytest.approx(2 / 3)
    assert x["hallucinated"]["value"] == pytest.approx(1 / (6 * 4))
    assert y["hallucinated"]["value"] == 0
    assert y["inferred"]["value"] == pytest.approx(1 / 13)
    assert y["contradictions"]["value"] == pytest.approx(1 / 3)
    assert y["rule_problems"]["value"] == pytest.approx(1 / 3)
    assert (x["cost"], x["cost_per_readable"], y["cost_per_kept"]) == (
        8.0,
        8 / 6,
        1.0 / y["kept"] if y["kept"] else None,
    )
    assert x["kept"] + y["kept"] == both["kept"] == 2
    # Pluralities of x and y: Exact Exact, Exact Irrelevant, Exact Exact.
    counts = np.array([[2, 0, 0], [1, 0, 1], [2, 0, 0]])
    between = whole["agreement"]["models"]
    assert between["n_pairs"] == 3
    assert between["label"]["value"] == pytest.approx(fleiss_kappa(counts, list("abc"), 0, 0)["value"])
    assert whole["agreement"]["samples of x"]["label"]["value"] is None
    assert "samples of y" not in whole["agreement"]
    assert set(quality["slices"]) == {"all", "locale: us", "locale: cn", "long tail", "head"}
    assert quality["slices"]["locale: cn"]["decisions"] == {"accepted": 1, "rejected": 1, "pending": 0}
    assert quality["slices"]["long tail"]["n_pairs"] == 1


def test_what_was_asked_again_does_not_count_as_accuracy():
    arguments = annotations()
    votes = {
        **arguments.votes,
        "c": [*arguments.votes["c"], *(Vote("c", m, OTHER, n, 1) for m, n in (("x", 0), ("x", 1), ("y", 0)))],
    }
    decisions = consensus(
        votes,
        LABELS,
        DIMENSIONS,
        gold={"c": "Irrelevant"},
        weights="equal",
        gold_filter="ask_again",
        min_vote_fraction=0.6,
    )
    again = Annotations(arguments.pairs, votes, decisions, LABELS, DIMENSIONS, ("title",))
    whole = build_quality(again, n_bootstrap=0)["slices"]["all"]
    assert whole["marks"] == {"gold_agrees": 1, "gold_dropped": 0, "asked_again": 1, "reviewed": 0}
    assert {name: each["accuracy"]["value"] for name, each in whole["models"].items()} == {"x": 0, "y": 0, CONSENSUS: 0}


def test_figures_do_not_depend_on_the_order():
    one = annotations()
    other = Annotations(
        dict(reversed(one.pairs.items())),
        {p: each[::-1] for p, each in reversed(one.votes.items())},
        one.decisions[::-1],
        LABELS,
        DIMENSIONS,
        ("title",),
        one.rules,
    )
    assert build_quality(other, n_bootstrap=50) == build_quality(one, n_bootstrap=50)
    assert find_examples(other) == find_examples(one)


class Tags(HTMLParser):
    CHECKED = ("script", "img", "svg", "b", "article", "table", "main", "details", "td", "tr", "li")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_shows_every_kind_and_escapes_everything(tmp_path):
    nasty = "<script>alert(1)</script><b>\"'&"
    arguments = annotations((nasty + " nike shoe", nasty + " nike shoe"))
    injected = effect(
        attack(arguments.pairs["b"], "Exact", DIMENSIONS), {d.pair_id: d for d in arguments.decisions}, {}, LABELS
    )
    fitted = fit_votes(arguments.votes, LABELS, {})
    quality = build_quality(arguments, reliability=fitted, injection=injected, n_bootstrap=50)
    texts = {("d", "x", 0, 0): nasty + "I'm sorry \ud800"}
    examples = find_examples(arguments, texts)
    kinds = {example.kind for example in examples}
    assert kinds >= {"parse failure: refusal", "parse failure: empty", "disagreement", "against the gold label"}
    assert kinds >= {"value that stands nowhere", "verdict against its values", "label against the rules"}
    assert {kind.split(":")[0] for kind in kinds} <= set(EXAMPLES)
    write_report(tmp_path / "r.html", quality, examples, run_name=nasty)
    page = (tmp_path / "r.html").read_text("utf-8")
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "b", "img", "link"} & set(tags.seen)
    assert tags.seen.count("article") == len(examples)
    text = " ".join("".join(tags.text).split())
    assert "I'm sorry ?" in text
    assert "puma" in text
    assert cell(quality["slices"]["all"]["models"]["x"]["accuracy"]).split(" ")[0] in text


def test_the_page_of_nothing_but_failures(tmp_path):
    votes = {"a": [Vote("a", "x", Failure("empty"))], "b": []}
    pairs = {p: Pair(p, "q", Item(p, "t")) for p in votes}
    decisions = consensus(votes, LABELS, DIMENSIONS)
    bare = Annotations(pairs, votes, decisions, LABELS, DIMENSIONS, ("title",))
    quality = build_quality(bare, n_bootstrap=20)
    json.dumps(quality, allow_nan=False)
    write_report(tmp_path / "r.html", quality, find_examples(bare), run_name="none")
    assert Tags((tmp_path / "r.html").read_text("utf-8")).open == []
    assert "There are no gold labels" in (tmp_path / "r.html").read_text("utf-8")


def test_sentences_say_no_more_than_intervals_do():
    quality = build_quality(annotations(), n_bootstrap=50)
    models = quality["slices"]["all"]["models"]
    quality["slices"]["all"]["majority"]["accuracy"] = {"value": 0.5, "ci95": [0.4, 0.6]}
    models["x"]["accuracy"] = {"value": 0.7, "ci95": [0.61, 0.8]}
    models["y"]["accuracy"] = {"value": 0.7, "ci95": [0.59, 0.8]}
    models[CONSENSUS]["accuracy"] = {"value": 0.2, "ci95": [0.1, 0.39]}
    assert [kind for kind, _ in findings(quality)][:3] == ["better", "open", "worse"]


@settings(max_examples=20)
@given(st.none() | st.floats(0, 1e6))
def test_money(amount):
    answer = money(amount)
    if amount is None:
        assert answer == "–"
    else:
        assert float(answer) == pytest.approx(amount, rel=1e-3)

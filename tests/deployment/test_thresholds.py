"""Cut-offs: over many draws the true share exceeds the target no more often than promised; and the command."""

import json
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy.optimize import brentq
from scipy.stats import binom

from jax_rele import cli
from jax_rele.deployment import load_bundle, read_manifest, thresholds
from jax_rele.types import Item, Pair

sys.path.insert(0, str(Path(__file__).parent / "index"))

from tiny_bundles import NAMES, tiny_items, write_tower

CURVES = {
    "straight": lambda s: 0.3 * (1 - s),
    "steep": lambda s: 1 / (1 + np.exp(12 * (s - 0.4))),
    "flat then high": lambda s: np.where(s > 0.5, 0.06, 0.5),
    "just too much": lambda s: np.full_like(s, 0.0501),
    "rises below": lambda s: np.where(s > 0.7, 0.01, np.where(s > 0.4, 0.4, 0.05)),
}
FINE = (np.arange(20_000) + 0.5) / 20_000


def true_fraction(curve, threshold):
    return CURVES[curve](FINE[threshold <= FINE]).mean()


def draw(curve, rng, n):
    scores = rng.random(n)
    return scores, rng.random(n) < CURVES[curve](scores)


def naive(scores, is_irrelevant, at_most, confidence):
    """The smallest cut-off whose own bound holds, as if it were the only one tried."""
    passing = [
        t
        for t in thresholds.GRID[:-1]
        if thresholds.upper_bound(int(is_irrelevant[scores >= t].sum()), int((scores >= t).sum()), confidence)
        <= at_most
    ]
    return min(passing, default=None)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("curve", CURVES)
def test_the_true_fraction_exceeds_the_target_no_more_often_than_promised(curve, confidence):
    rng, draws, at_most = np.random.default_rng(0), 500, 0.05
    violations = n_chosen = 0
    for _ in range(draws):
        choice = thresholds.choose_threshold(*draw(curve, rng, 500), at_most, confidence)
        if choice.threshold is not None:
            n_chosen += 1
            violations += true_fraction(curve, choice.threshold) > at_most
    assert violations <= binom.ppf(0.999, draws, 1 - confidence)
    if curve in ("straight", "steep", "rises below"):
        assert n_chosen > draws / 20


def test_the_simulation_notices_a_rule_without_an_order():
    rng, draws, at_most = np.random.default_rng(0), 200, 0.05
    violations = 0
    for _ in range(draws):
        threshold = naive(*draw("just too much", rng, 500), at_most, 0.9)
        violations += threshold is not None
    assert violations > binom.ppf(0.999, draws, 0.1)


@given(st.integers(0, 60), st.integers(1, 400), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_bound_is_that_of_clopper_and_pearson(errors, n, confidence):
    errors = min(errors, n)
    bound = thresholds.upper_bound(errors, n, confidence)
    if errors == n:
        assert bound == 1
        return
    solved = brentq(lambda fraction: binom.cdf(errors, n, fraction) - (1 - confidence), 1e-12, 1 - 1e-12)
    assert bound == pytest.approx(solved, abs=1e-7)


@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.05, 0.2]), st.sampled_from([0.5, 0.8, 0.95]))
def test_the_chosen_cut_off_has_its_own_bound_below_the_target_and_so_has_every_one_tested_above(
    seed, at_most, confidence
):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 600))
    scores = np.round(rng.random(n), 2)  # ties
    is_irrelevant = rng.random(n) < rng.choice([0.5, 1.0, 2.0]) * at_most * (1 - scores)
    choice = thresholds.choose_threshold(scores, is_irrelevant, at_most, confidence)
    first = thresholds.first_count(n, at_most, confidence)
    testable = [t for t in thresholds.GRID if (scores >= t).sum() >= first]

    def passes(t):
        figures = thresholds.measure(scores, is_irrelevant, ~is_irrelevant, t, confidence)
        assert figures.n == (scores >= t).sum()
        assert figures.n_irrelevant == (is_irrelevant & (scores >= t)).sum()
        return figures.bound <= at_most

    expected = None
    for t in testable:
        if not passes(t):
            break
        expected = t
    assert choice.threshold == expected
    assert choice.n_tested <= len(testable)


@given(st.integers(1, 20_000), st.floats(0.005, 0.4), st.floats(0.5, 0.99))
def test_the_first_cut_off_can_pass(total, at_most, confidence):
    first = thresholds.first_count(total, at_most, confidence)
    assert thresholds.upper_bound(0, first, confidence) <= at_most + 1e-12
    assert thresholds.upper_bound(0, first - 1, confidence) > at_most or first > 1


def test_as_many_pairs_as_are_said_to_be_needed_are_enough_in_most_draws():
    rng = np.random.default_rng(0)
    scores, is_irrelevant = draw("steep", rng, 120)
    assert thresholds.choose_threshold(scores, is_irrelevant, 0.02).threshold is None
    needed = thresholds.pairs_needed(scores, is_irrelevant, 0.02)
    assert needed > 120
    chosen = [thresholds.choose_threshold(*draw("steep", rng, 4 * needed), 0.02).threshold for _ in range(50)]
    assert np.mean([threshold is not None for threshold in chosen]) > 0.5


def test_pairs_that_no_score_separates_get_no_number():
    is_irrelevant = np.arange(300) % 2 == 0
    assert thresholds.choose_threshold(np.linspace(0, 1, 300), is_irrelevant, 0.05).threshold is None
    assert thresholds.pairs_needed(np.linspace(0, 1, 300), is_irrelevant, 0.05) is None


@given(st.lists(st.sampled_from(["a", "A ", "b", "c  d", "c d", "e"]), min_size=1, max_size=40))
def test_one_pair_of_each_query(queries):
    pairs = [Pair(str(number), query, Item("", "x")) for number, query in enumerate(queries)]
    chosen = thresholds.one_per_query(pairs)
    names = [" ".join(queries[index].split()).casefold() for index in chosen]
    assert len(names) == len(set(names))
    assert set(names) == {" ".join(query.split()).casefold() for query in queries}
    assert (np.diff(chosen) > 0).all()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("bundle") / "tower")


@pytest.fixture(scope="module")
def pairs_file(bundle, tmp_path_factory):
    """Pairs whose labels follow the bundle's own scores, three of a query."""
    scorer, rng = load_bundle(bundle), np.random.default_rng(0)
    pairs = [
        Pair(f"p{n}", f"red shoe {n // 3}", item, locale=["us", "de"][n % 2]) for n, item in enumerate(tiny_items(600))
    ]
    scores = scorer.predict(pairs).scores
    ranks = scores.argsort().argsort() / len(scores)
    labels = np.where(ranks > 0.5, "Exact", np.where(rng.random(len(pairs)) < 0.6, "Irrelevant", "Substitute"))
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "pair_id": pair.pair_id,
            "query": pair.query,
            "item": {"id": pair.item.id, "title": pair.item.title, "brand": pair.item.brand, "color": pair.item.color},
            "label": str(label),
            "locale": pair.locale,
        }
        for pair, label in zip(pairs, labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_prints_figures_and_writes_tiers(bundle, pairs_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    before = read_manifest(bundle)
    words = ["threshold", str(bundle), str(pairs_file), "--tier", "good=0.05", "any=0.5", "--by", "locale", "--write"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "600 pairs of 200 queries; irrelevant: Irrelevant" in out
    assert out.count("locale:us") == out.count("locale:de") == 2
    assert "Pairs of one query depend on each other" in out
    manifest = read_manifest(bundle)
    assert [tier.name for tier in manifest.tiers] == ["good", "any"]
    assert manifest.tiers[0].least > manifest.tiers[1].least
    assert manifest.tiers[0].promise == "at most 0.05 Irrelevant, confidence 0.95, 600 pairs of 200 queries"
    assert manifest.identity == before.identity
    assert cli.main([*words[:3], "--at-most-irrelevant", "0.1", "--per-query"]) == 0
    out = capsys.readouterr().out
    assert "200 pairs of 200 queries" in out
    assert "depend on each other" not in out
    assert read_manifest(bundle) == manifest


def test_a_target_that_is_not_shown_writes_nothing(bundle, pairs_file, capsys):
    before = read_manifest(bundle)
    words = ["threshold", str(bundle), str(pairs_file), "--tier", "strict=0.0001", "any=0.5", "--write"]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert "about" in captured.out
    assert "no cut-off is shown for 1 of the tiers" in captured.err
    assert captured.err.count("\n") == 1
    assert read_manifest(bundle) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --at-most-irrelevant SHARE for one cut-off"),
        (["--at-most-irrelevant", "0.1", "--tier", "a=0.1"], "give --at-most-irrelevant SHARE for one cut-off"),
        (["--at-most-irrelevant", "2"], "must lie between 0 and 1"),
        (["--at-most-irrelevant", "1e-320"], "no number of pairs shows so small a share"),
        (["--at-most-irrelevant", "nan"], "must lie between 0 and 1"),
        (["--tier", "a=x"], "--tier a=x: the share must lie between 0 and 1"),
        (["--tier", "a"], "write NAME=VALUE"),
        (["--at-most-irrelevant", "0.1", "--confidence", "1"], "--confidence 1.0: must lie between 0 and 1"),
        (["--at-most-irrelevant", "0.1", "--irrelevant", "Bad"], "--irrelevant Bad: is none of the labels"),
        (["--at-most-irrelevant", "0.1", "--irrelevant", *NAMES], "names every label"),
    ],
)
def test_a_mistake_is_one_line(bundle, pairs_file, capsys, words, message):
    assert cli.main(["threshold", str(bundle), str(pairs_file), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_pairs_without_labels_are_refused(bundle, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "a", "item": {"title": "b"}}\n')
    assert cli.main(["threshold", str(bundle), str(path), "--at-most-irrelevant", "0.1"]) == 2
    error = capsys.readouterr().err
    assert "label" in error
    assert error.count("\n") == 1

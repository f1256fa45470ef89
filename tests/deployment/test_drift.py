"""Drift: two sets of one distribution differ no more often than stated, sets of two do; and the report."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy.stats import binom

from jax_rele import cli
from jax_rele.deployment import drift, load_bundle
from jax_rele.deployment.bundle import Tier, set_tiers
from jax_rele.types import Pair

sys.path.insert(0, str(Path(__file__).parent / "index"))

from tiny_bundles import tiny_items, write_cross, write_tower

VERDICTS = np.array(["match", "mismatch", "absent"], object)


def draw(rng, n, shift=0.0, verdicts=(0.5, 0.2, 0.3), cut=0.02):
    scores = np.round(rng.beta(2 + shift, 3, n), 3)
    return {
        "score": scores,
        "tier": np.where(scores > 0.6, "good", np.where(scores > 0.3, "fair", "below")).astype(object),
        "verdict on brand": rng.choice(VERDICTS, n, p=verdicts),
        "cut texts": np.where(rng.random(n) < cut, "yes", "no").astype(object),
        "unknown characters": np.full(n, "no", object),
    }


def groups(rng, n):
    return rng.choice(np.array(["us", "de", "xx"], object), n, p=[0.6, 0.38, 0.02])


def test_two_sets_of_one_distribution_differ_in_at_most_5_of_100():
    rng, draws = np.random.default_rng(0), 300
    n_significant = n_shifted = 0
    for _ in range(draws):
        sets = [draw(rng, n) for n in (400, 300)]
        differences = drift.compare_profiles(*sets, groups(rng, 400), groups(rng, 300), by="locale")
        n_significant += any(each.p_adjusted < drift.ALPHA for each in differences)
        n_shifted += any(each.shifted for each in differences)
    assert n_significant <= binom.ppf(0.999, draws, drift.ALPHA)
    assert n_shifted <= n_significant


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"shift": 1.5}, "score"),
        ({"shift": 1.5}, "tier"),
        ({"verdicts": (0.3, 0.2, 0.5)}, "verdict on brand"),
        ({"cut": 0.2}, "cut texts"),
    ],
)
def test_a_shift_is_seen_where_it_is_and_nowhere_else(changes, name):
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(20):
        differences = drift.compare_profiles(draw(rng, 600), draw(rng, 600, **changes))
        seen.append({each.name for each in differences if each.shifted})
    assert sum(name in names for names in seen) >= 19
    allowed = {"score", "tier"} if "shift" in changes else {name}
    assert sum(not names <= allowed for names in seen) <= 2


def test_a_shift_of_one_group_names_the_group():
    rng = np.random.default_rng(2)
    old, new = draw(rng, 2000), draw(rng, 2000)
    sides = [rng.choice(np.array(["us", "de"], object), 2000, p=[0.9, 0.1]) for _ in range(2)]
    shifted = draw(rng, 2000, shift=3)
    new["score"] = np.where(sides[1] == "de", shifted["score"], new["score"])
    differences = drift.compare_profiles(old, new, *sides, by="locale")
    assert {(each.group, each.name) for each in differences if each.shifted} == {("locale:de", "score")}
    assert "locale:de" in drift.advice(differences)[0]


def test_a_large_set_with_a_tiny_difference_has_no_shift():
    rng = np.random.default_rng(3)
    difference = drift.compare_profiles(draw(rng, 60_000), draw(rng, 60_000, shift=0.1))[0]
    assert difference.p_adjusted < drift.ALPHA
    assert difference.psi < drift.LEAST_PSI
    assert not difference.shifted


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_the_step_down_method(p):
    adjusted = drift.holm(p)
    order = sorted(range(len(p)), key=lambda index: p[index])
    expected, most = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        most = max(most, min(1.0, p[index] * (len(p) - rank)))
        expected[index] = most
    np.testing.assert_allclose(adjusted, expected)
    assert all(corrected >= value for corrected, value in zip(adjusted, p))


def test_the_index_of_stability_is_the_sum_of_both_divergences():
    assert drift.psi([0.5, 0.5], [0.5, 0.5]) == 0
    expected = (0.8 - 0.5) * np.log(0.8 / 0.5) + (0.2 - 0.5) * np.log(0.2 / 0.5)
    assert drift.psi([0.5, 0.5], [0.8, 0.2]) == pytest.approx(expected)
    assert np.isfinite(drift.psi([1.0, 0.0], [0.0, 1.0]))


@pytest.mark.parametrize("write", [write_tower, write_cross])
def test_a_profile_counts_texts_that_are_cut(tmp_path, write):
    bundle = write(tmp_path / "bundle")
    set_tiers(bundle, (Tier(name="high", least=0.5), Tier(name="low", least=0.2)))
    scorer = load_bundle(bundle)
    items = tiny_items(6)
    long = replace(items[0], title="lamp " * 60)
    pairs = [Pair("", "red shoe", item) for item in items] + [Pair("", "red shoe", long), Pair("", "x " * 40, items[1])]
    values = drift.profile(scorer, pairs)
    assert values["cut texts"].tolist() == ["no"] * 6 + ["yes"] * 2
    scores = scorer.predict(pairs).scores
    np.testing.assert_array_equal(values["score"], scores)
    expected = ["high" if score >= 0.5 else "low" if score >= 0.2 else "below" for score in scores]
    assert values["tier"].tolist() == expected
    assert values["verdict on brand"].tolist() == [row[0] for row in scorer.predict(pairs).verdicts]
    assert scorer.text_loss(pairs).unknown_fraction == 0  # tokens are bytes


def write_pairs(path, items, query, locale="us"):
    rows = [{"query": query, "item": {"id": i.id, "title": i.title, "brand": i.brand}, "locale": locale} for i in items]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_reports_a_shift_and_its_absence(tmp_path, capsys):
    bundle = str(write_tower(tmp_path / "bundle"))
    items = tiny_items(400)
    reference = write_pairs(tmp_path / "then.jsonl", items[::2], "red shoe")
    same = write_pairs(tmp_path / "same.jsonl", items[1::2], "red shoe")
    other = write_pairs(tmp_path / "now.jsonl", [replace(i, title=f"<b>{i.title}</b> " * 9) for i in items], "red shoe")
    words = ["drift", bundle, "--reference", reference, "--output", str(tmp_path / "report.html")]
    assert cli.main([*words, "--input", same, "--by", "locale"]) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert not json.loads((tmp_path / "report.json").read_text())["shifted"]
    assert cli.main([*words, "--input", other]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The share of texts that are cut changed (all)" in out
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["shifted"]
    assert document["n_current"] == 400
    page = (tmp_path / "report.html").read_text()
    assert "shifted" in page
    assert "<script" not in page
    for line in document["advice"]:
        assert line.split(":")[0] in page


def test_a_mistake_is_one_line(tmp_path, capsys):
    bundle = str(write_tower(tmp_path / "bundle"))
    pairs = write_pairs(tmp_path / "pairs.jsonl", tiny_items(60), "red shoe")
    few = write_pairs(tmp_path / "few.jsonl", tiny_items(5), "red shoe")
    mistakes = {
        ("--input", few, "--reference", pairs): "has 5 pairs; a comparison needs at least 50",
        ("--input", pairs, "--reference", str(tmp_path / "no.jsonl")): "no such file",
        ("--input", pairs, "--reference", pairs, "--output", str(tmp_path / "x.pdf")): "ends in .html",
        ("--input", pairs, "--reference", pairs, "--output", str(tmp_path / "no" / "x.html")): "no such folder",
    }
    for words, message in mistakes.items():
        assert cli.main(["drift", bundle, *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

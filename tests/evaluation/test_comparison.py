"""Comparisons of recipes: against scikit-learn seed by seed, and against a bootstrap of our own."""

import json

import numpy as np
import pytest
import sklearn.metrics

from jax_rele.evaluation import decide, fit_bias
from jax_rele.evaluation.comparison import Cell, HeldOutPairs, compare
from jax_rele.evaluation.comparison_text import findings, markdown, points, verdict

N, M = 120, 60


def make_pairs(n_queries=40, size=N, **slices):
    rng = np.random.default_rng(1)
    labels, validation = rng.integers(0, 4, size), rng.integers(0, 4, M)
    masks = slices or {"long_tail": np.arange(size) % 4 == 0, "head": np.arange(size) % 4 != 0}
    return HeldOutPairs(labels, [f"query {index % n_queries}" for index in range(size)], validation, masks)


@pytest.fixture(scope="module")
def cell(made_up):
    """A function of a name, the pairs and one skill a seed; the first of a pair's noise is the seed's own."""

    def build(student, recipe, pairs, skills, first=0, point=(100, 0)):
        probs = [made_up(pairs.labels, skill, first + seed) for seed, skill in enumerate(skills)]
        validation = [made_up(pairs.validation_labels, skill, 50 + first + seed) for seed, skill in enumerate(skills)]
        return Cell(student, recipe, *point, probs, validation)

    return build


@pytest.fixture(scope="module")
def run(schema):
    def run(cells, pairs, others=None, n_bootstrap=200):
        return compare(
            cells,
            pairs,
            schema,
            others=others or {},
            seeds=list(range(len(cells[0].probs))),
            gain_maps={"paper": schema.gains},
            n_bootstrap=n_bootstrap,
            seed=0,
        )

    return run


@pytest.fixture(scope="module")
def case(cell, made_up):
    pairs = make_pairs()
    cells = [
        cell("ce", "label_only", pairs, (1.0, 1.2, 0.9)),
        cell("ce", "mkd", pairs, (2.0, 2.4, 2.1), first=10),
        cell("tt", "label_only", pairs, (0.5, 0.4, 0.6), first=20),
        cell("tt", "mkd", pairs, (0.5, 0.6, 0.4), first=30),
    ]
    teacher = made_up(pairs.labels, 2.8, 90), made_up(pairs.validation_labels, 2.8, 91)
    return cells, pairs, {"teacher": teacher}


def auc(labels, probs):
    return sklearn.metrics.roc_auc_score(labels == 0, probs[:, 0])


def weighted_auc(labels, probs, weights):
    """The share of couples of a positive and a negative pair that are in the right order."""
    p, positive = probs[:, 0], labels == 0
    couples = np.outer(weights[positive], weights[~positive])
    ahead = np.sign(p[positive][:, None] - p[~positive]) / 2 + 0.5
    return (couples * ahead).sum() / couples.sum()


def figures_of(document, student="ce", recipe="mkd", slice_name="all", metric="auc"):
    (figure,) = [each for each in document["cells"] if (each["student"], each["recipe"]) == (student, recipe)]
    return figure["slices"][slice_name][metric]


def width(figure):
    return figure["ci95"][1] - figure["ci95"][0]


def test_values_differences_and_shares_are_those_of_scikit_learn(case, run):
    cells, pairs, others = case
    document = run(cells, pairs, others, n_bootstrap=20)
    assert document["slices"] == {"all": 120, "long_tail": 30, "head": 90}
    assert (document["n_pairs"], document["n_queries"], document["seeds"]) == (N, 40, [0, 1, 2])
    assert points(document) == [(100, 0)]
    json.dumps(document, allow_nan=False)
    for slice_name, mask in {"all": np.ones(N, bool), **pairs.slices}.items():
        labels = pairs.labels[mask]
        teacher = auc(labels, others["teacher"][0][mask])
        assert document["others"][slice_name]["teacher"]["auc"]["value"] == pytest.approx(teacher, abs=1e-12)
        for index, each in enumerate(cells):
            figure = figures_of(document, each.student, each.recipe, slice_name)
            by_seed = [auc(labels, probs[mask]) for probs in each.probs]
            assert figure["by_seed"] == pytest.approx(by_seed, abs=1e-12)
            assert figure["value"] == pytest.approx(np.mean(by_seed), abs=1e-12)
            assert figure["retained"] == pytest.approx(np.mean(by_seed) / teacher, abs=1e-12)
            decided = [
                decide(probs, fit_bias(held_out, pairs.validation_labels))[mask]
                for probs, held_out in zip(each.probs, each.validation_probs)
            ]
            f1 = np.mean([sklearn.metrics.f1_score(labels, d, average="macro") for d in decided])
            assert figures_of(document, each.student, each.recipe, slice_name, "macro_f1")["value"] == pytest.approx(f1)
            if each.recipe == "label_only":
                assert figure["difference"] is None
            else:
                reference = np.mean([auc(labels, probs[mask]) for probs in cells[index - 1].probs])
                assert figure["difference"]["value"] == pytest.approx(np.mean(by_seed) - reference, abs=1e-12)


def test_intervals_are_those_of_resampled_queries_and_seeds(case, run):
    cells, pairs, others = case
    document = run(cells, pairs, others, n_bootstrap=1500)
    rng = np.random.default_rng(77)
    queries = np.array([int(query.split()[1]) for query in pairs.queries])
    values, differences, of_teacher = [], [], []
    for _ in range(1500):
        weights = np.bincount(rng.integers(0, 40, 40), minlength=40)[queries]
        seeds = rng.integers(0, 3, 3)
        better, reference = (
            np.mean([weighted_auc(pairs.labels, each.probs[number], weights) for number in seeds])
            for each in cells[1::-1]
        )
        values.append(better)
        differences.append(better - reference)
        of_teacher.append(weighted_auc(pairs.labels, others["teacher"][0], weights))
    for figure, drawn in (
        (figures_of(document), values),
        (figures_of(document)["difference"], differences),
        (document["others"]["all"]["teacher"]["auc"], of_teacher),
    ):
        expected = np.percentile(drawn, [2.5, 97.5])
        assert figure["ci95"] == pytest.approx(expected, abs=0.12 * (expected[1] - expected[0]))


def test_what_equals_label_only_differs_by_exactly_nothing(cell, run):
    pairs = make_pairs()
    reference = cell("ce", "label_only", pairs, (1.0, 2.0, 1.5))
    same = Cell("ce", "same", 100, 0, reference.probs, reference.validation_probs)
    turned = Cell("ce", "turned", 100, 0, reference.probs[::-1], reference.validation_probs[::-1])
    document = run([reference, same, turned], pairs)
    for slice_name in document["slices"]:
        for metric in document["metrics"]:
            difference = figures_of(document, recipe="same", slice_name=slice_name, metric=metric)["difference"]
            assert difference == {"value": 0.0, "ci95": [0.0, 0.0]}
    turned = figures_of(document, recipe="turned")["difference"]
    assert turned["value"] == pytest.approx(0.0, abs=1e-12)
    assert turned["ci95"][0] < -0.02 < 0.02 < turned["ci95"][1]


def test_intervals_are_wider_where_seeds_disagree_and_narrower_with_more_of_them_and_more_queries(cell, run):
    def figure(pairs, skills, first=0):
        return figures_of(run([cell("ce", "mkd", pairs, skills, first=first)], pairs))

    few = make_pairs()
    assert width(figure(few, (0.2, 1.5, 3.0))) > 1.5 * width(figure(few, (1.5, 1.5, 1.5)))
    assert width(figure(few, (0.2, 3.0) * 6)) < 0.7 * width(figure(few, (0.2, 3.0)))
    assert width(figure(make_pairs(400, 1200), (1.5,) * 3)) < 0.6 * width(figure(few, (1.5,) * 3))


def test_one_seed_is_enough(cell, run):
    pairs = make_pairs()
    document = run([cell("ce", "label_only", pairs, (1.0,)), cell("ce", "mkd", pairs, (2.0,), first=5)], pairs)
    figure = figures_of(document)
    assert figure["by_seed"] == [figure["value"]]
    assert figure["ci95"][0] < figure["value"] < figure["ci95"][1]
    assert figure["retained"] is None
    text = markdown(document, title="one")
    assert "one training seed (0)" in text
    assert "do not cover the chance of training" in text


def test_a_cell_is_compared_with_label_only_on_as_many_pairs(cell, run):
    pairs = make_pairs()
    cells = [
        cell("ce", "label_only", pairs, (0.0, 0.0), point=(50, 0)),
        cell("ce", "label_only", pairs, (2.0, 2.0), point=(100, 0)),
        cell("ce", "mkd", pairs, (2.0, 2.0), point=(100, 0)),
        cell("ce", "crsd", pairs, (2.0, 2.0), point=(100, 7)),
        cell("tt", "mkd", pairs, (2.0, 2.0), point=(100, 0)),
    ]
    document = run(cells, pairs, n_bootstrap=10)
    assert figures_of(document)["difference"]["value"] == 0.0
    assert figures_of(document, recipe="crsd")["difference"] is None
    assert figures_of(document, "tt")["difference"] is None
    assert points(document) == [(50, 0), (100, 0), (100, 7)]
    assert len(findings(document)) == 3


def test_the_order_of_cells_does_not_matter(case, run):
    cells, pairs, others = case
    forward, backward = (run(ordered, pairs, others, n_bootstrap=20) for ordered in (cells, cells[::-1]))
    assert forward["cells"] == backward["cells"][::-1]
    assert {**forward, "cells": 0} == {**backward, "cells": 0}


def test_an_empty_slice_is_left_out_and_one_of_a_single_class_is_undefined(cell, run):
    pairs = make_pairs()
    pairs = HeldOutPairs(
        pairs.labels,
        pairs.queries,
        pairs.validation_labels,
        {"empty": np.zeros(N, bool), "exact": pairs.labels == 0},
    )
    cells = [cell("ce", "label_only", pairs, (1.0, 1.0)), cell("ce", "mkd", pairs, (2.0, 2.0), first=5)]
    document = run(cells, pairs, {"teacher": (cells[0].probs[0], cells[0].validation_probs[0])}, n_bootstrap=20)
    assert list(document["slices"]) == ["all", "exact"]
    undefined = {"value": None, "ci95": None}
    assert figures_of(document, slice_name="exact") == {
        **undefined,
        "by_seed": [None, None],
        "difference": undefined,
        "retained": None,
    }
    json.dumps(document, allow_nan=False)
    sentence = dict(zip(document["slices"], findings(document)))["exact"]
    assert sentence == (
        "open",
        "ce mkd cannot be compared with label_only on auc (exact, 100 + 0 pairs): undefined on these pairs.",
    )
    assert "| –" in markdown(document, title="t")


def test_the_markdown_has_a_row_for_each_cell(case, run):
    cells, pairs, others = case
    odd = Cell("ce", "a|b", 100, 0, cells[1].probs, cells[1].validation_probs)
    document = run([*cells, odd], pairs, others, n_bootstrap=20)
    text = markdown(document, title="Recipes")
    assert text.startswith("# Recipes\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    for slice_name, n_pairs in document["slices"].items():
        table = text.split(f"**{slice_name}**, {n_pairs} pairs\n\n")[1].split("\n\n")[0].splitlines()
        names = [line.split(" | ")[0].strip("| ") for line in table]
        assert names[2:] == ["teacher", "ce label_only", "ce mkd", "tt label_only", "tt mkd", r"ce a\|b"]
        result = figures_of(document, slice_name=slice_name)
        for figure, sign in ((result, ""), (result["difference"], "+")):
            low, high = figure["ci95"]
            assert f"{figure['value']:{sign}.3f} [{low:.3f}, {high:.3f}]" in table[4]
        assert f"{result['retained']:.1%}" in table[4]
    assert "mean over 3 training seeds (0, 1, 2)" in text
    assert "20 resamples of queries and of seeds" in text


@pytest.mark.parametrize(
    ("ci95", "kind", "verb"),
    [
        ([0.01, 0.05], "better", "beats"),
        ([-0.05, -0.01], "worse", "is worse than"),
        ([-0.01, 0.05], "open", "is not shown to differ from"),
        ([0.0, 0.05], "open", "is not shown to differ from"),
        (None, "open", "is not shown to differ from"),
    ],
)
def test_sentences_say_what_the_paired_interval_shows(case, run, ci95, kind, verb):
    cells, pairs, _ = case
    document = run(cells[:2], pairs, n_bootstrap=2)
    figures_of(document)["difference"].update(value=0.02, ci95=ci95)
    figure, sentence = findings(document, (100, 0))[0]
    assert figure == kind
    assert sentence.startswith(f"ce mkd {verb} label_only on auc (all, 100 + 0 pairs): +0.020")
    assert f"- {sentence}\n" in markdown(document, title="t")
    assert findings(document, (1, 0)) == []


def test_less_is_better_for_calibration_errors():
    rise = {"value": 0.02, "ci95": [0.01, 0.03]}
    fall = {"value": -0.02, "ci95": [-0.03, -0.01]}
    assert [verdict(rise, "auc"), verdict(rise, "ece"), verdict(fall, "ece")] == ["better", "worse", "better"]

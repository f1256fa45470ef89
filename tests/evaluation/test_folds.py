"""Metrics of all folds of a cross-validation: against scikit-learn fold by fold, and against a bootstrap of our own."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from jax_rele.evaluation import decide, fit_bias, fit_temperature
from jax_rele.evaluation.bootstrap import metric_samples
from jax_rele.evaluation.calibration import apply_temperature, ece
from jax_rele.evaluation.comparison import Cell, HeldOutPairs, compare
from jax_rele.evaluation.comparison_text import markdown, setup
from jax_rele.evaluation.metrics import auc, mean_over_folds, spearman

N, M, FOLDS = 120, 90, 3


@pytest.fixture(scope="module")
def pairs():
    """Forty queries, of one fold each; folds of several sizes, in no order."""
    rng = np.random.default_rng(5)
    query = np.arange(N) % 40
    fold_of_query = np.repeat([0, 1, 2], [10, 12, 18])
    return HeldOutPairs(
        labels=rng.integers(0, 4, N),
        queries=[f"query {number}" for number in query],
        validation_labels=rng.integers(0, 4, M),
        slices={"long_tail": np.arange(N) % 4 == 0},
        folds=fold_of_query[query],
        validation_folds=np.arange(M) % FOLDS,
    )


@pytest.fixture(scope="module")
def cells(pairs, made_up):
    """Three seeds of two recipes; the models of each fold lean towards a label of their own."""

    def shift(probs, folds):
        moved = probs * (1.0 + 3.0 * (np.arange(4) == folds[:, None]))
        return moved / moved.sum(axis=1, keepdims=True)

    def cell(recipe, skill, first):
        return Cell(
            "ce",
            recipe,
            100,
            0,
            [shift(made_up(pairs.labels, skill, first + seed), pairs.folds) for seed in range(3)],
            [
                shift(made_up(pairs.validation_labels, skill, 50 + first + seed), pairs.validation_folds)
                for seed in range(3)
            ],
        )

    return [cell("label_only", 0.5, 1), cell("mkd", 1.5, 10)]


def run(cells, pairs, schema, n_bootstrap=50):
    return compare(
        cells,
        pairs,
        schema,
        others={"teacher": (cells[1].probs[0], cells[1].validation_probs[0])},
        seeds=[0, 1, 2],
        gain_maps={"paper": schema.gains},
        n_bootstrap=n_bootstrap,
        seed=0,
    )


def by_hand(metric, pairs, probs, mask):
    """Mean over the folds with both classes of a metric of the rows of a fold, weighted by its pairs."""
    parts = [np.flatnonzero(mask & (pairs.folds == fold)) for fold in range(FOLDS)]
    values = [(metric(probs[rows], rows), len(rows)) for rows in parts if len(set(pairs.labels[rows] == 0)) == 2]
    return np.average([value for value, _ in values], weights=[weight for _, weight in values])


@pytest.mark.parametrize("slice_name", ["all", "long_tail"])
def test_rankings_are_means_over_folds_and_decisions_are_pooled(cells, pairs, schema, slice_name):
    document = run(cells, pairs, schema)
    mask = pairs.slices.get(slice_name, np.ones(N, bool))
    gains, labels, relevant = np.array(schema.gains), pairs.labels, pairs.labels == 0
    rankings = {
        "auc": lambda probs, rows: sklearn.metrics.roc_auc_score(relevant[rows], probs[:, 0]),
        "neg_ap": lambda probs, rows: sklearn.metrics.average_precision_score(~relevant[rows], -probs[:, 0]),
        "spearman": lambda probs, rows: scipy.stats.spearmanr(probs @ gains, gains[labels[rows]]).statistic,
    }
    for cell, figures in zip(cells, (each["slices"][slice_name] for each in document["cells"])):
        for seed, (probs, validation) in enumerate(zip(cell.probs, cell.validation_probs)):
            expected = {name: by_hand(metric, pairs, probs, mask) for name, metric in rankings.items()}
            decided, calibrated = np.zeros(N, int), np.zeros(N)
            for fold in range(FOLDS):
                rows, held_out = pairs.folds == fold, pairs.validation_folds == fold
                truth = pairs.validation_labels[held_out]
                decided[rows] = decide(probs[rows], fit_bias(validation[held_out], truth))
                calibrated[rows] = apply_temperature(probs[rows], fit_temperature(validation[held_out], truth))[:, 0]
            expected["macro_f1"] = sklearn.metrics.f1_score(labels[mask], decided[mask], average="macro")
            expected["micro_f1"] = (labels == decided)[mask].mean()
            expected["ece_calibrated"] = ece(calibrated[mask], relevant[mask])[0]
            for metric, value in expected.items():
                assert figures[metric]["by_seed"][seed] == pytest.approx(value, abs=1e-9), metric


def test_intervals_are_those_of_queries_and_seeds_over_all_folds(cells, pairs, schema):
    document = run(cells, pairs, schema, n_bootstrap=1500)
    rng = np.random.default_rng(3)
    query = np.arange(N) % 40

    def weighted_auc(probs, weights):
        values, sizes = [], []
        for fold in range(FOLDS):
            rows = np.repeat(np.arange(N), weights * (pairs.folds == fold))
            if len(set(pairs.labels[rows] == 0)) == 2:
                values.append(sklearn.metrics.roc_auc_score(pairs.labels[rows] == 0, probs[rows, 0]))
                sizes.append(len(rows))
        return np.average(values, weights=sizes)

    values, differences = [], []
    for _ in range(600):
        weights = np.bincount(rng.integers(0, 40, 40), minlength=40)[query]
        seeds = rng.integers(0, 3, 3)
        reference, better = (np.mean([weighted_auc(cell.probs[seed], weights) for seed in seeds]) for cell in cells)
        values.append(better)
        differences.append(better - reference)
    figure = document["cells"][1]["slices"]["all"]["auc"]
    for each, drawn in ((figure, values), (figure["difference"], differences)):
        expected = np.percentile(drawn, [2.5, 97.5])
        assert each["ci95"] == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]))


def test_the_scale_of_a_fold_s_scores_does_not_matter(pairs):
    rng = np.random.default_rng(0)
    score, relevant, counts = rng.normal(size=N), pairs.labels == 0, rng.integers(0, 3, (20, N)).astype(float)
    moved = score * np.array([1.0, 0.1, 5.0])[pairs.folds] + np.array([0.0, 100.0, -7.0])[pairs.folds]
    one, other = (mean_over_folds(auc, x, relevant, counts, pairs.folds) for x in (score, moved))
    assert one == pytest.approx(other, abs=1e-12)
    assert np.abs(auc(score, relevant, counts) - auc(moved, relevant, counts)).max() > 0.05


def test_a_fold_of_one_class_is_left_out_and_constant_scores_are_not():
    score, gain = np.array([0.1, 0.5, 0.9, 0.3, 0.4]), np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    folds, once = np.array([0, 0, 0, 1, 1]), np.ones((1, 5))
    assert mean_over_folds(auc, score, gain > 0, once, folds) == pytest.approx([1.0])
    assert np.isnan(mean_over_folds(auc, score, np.ones(5, bool), once, folds)).all()
    other = np.array([0, 0, 1, 1, 1])
    gain = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    constant = np.where(other == 0, 0.5, score)
    assert np.isnan(mean_over_folds(spearman, constant, gain, once, other)).all()


def test_one_fold_is_no_fold(cells, pairs, schema):
    single = HeldOutPairs(pairs.labels, pairs.queries, pairs.validation_labels, pairs.slices)
    folded = HeldOutPairs(
        *(pairs.labels, pairs.queries, pairs.validation_labels, pairs.slices),
        folds=np.zeros(N, int),
        validation_folds=np.zeros(M, int),
    )
    plain, other = (run(cells, each, schema) for each in (single, folded))
    assert plain["folds"] is None
    assert other["folds"] == 1
    for one, two in zip(plain["cells"], other["cells"]):
        for metric in plain["metrics"]:
            for key in ("value", "ci95"):
                assert one["slices"]["all"][metric][key] == pytest.approx(two["slices"]["all"][metric][key])


def test_a_model_of_a_fold_is_judged_by_the_fold_s_own_bias_and_temperature(schema):
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(4), 8), rng.integers(0, 4, 8)
    options = {"gain_maps": {}, "n_bootstrap": 0, "seed": 0}
    bias, temperature = rng.normal(size=(2, 4)), np.array([0.5, 3.0])
    halves = [slice(0, 4), slice(4, 8)]
    queries = [str(number) for number in range(8)]
    both = metric_samples(
        *(probs, labels, queries, schema),
        bias=np.repeat(bias, 4, axis=0),
        temperature=np.repeat(temperature, 4),
        **options,
    )
    parts = [
        metric_samples(
            *(probs[half], labels[half], queries[half], schema),
            bias=bias[number],
            temperature=temperature[number],
            **options,
        )
        for number, half in enumerate(halves)
    ]
    assert both["micro_f1"][0] == pytest.approx(np.mean([part["micro_f1"][0] for part in parts]))


def test_the_text_says_what_was_judged(cells, pairs, schema):
    document = run(cells, pairs, schema)
    assert document["folds"] == FOLDS
    assert "in 3 folds of a cross-validation: each pair is judged once" in setup(document)
    assert setup(document) in markdown(document, title="t")

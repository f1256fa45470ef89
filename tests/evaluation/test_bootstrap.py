"""Values and intervals of whole models, against a bootstrap written out with scikit-learn."""

import json

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.evaluation import (
    apply_temperature,
    bootstrap,
    decide,
    ece,
    intervals,
    metric_names,
    metric_samples,
    paired_difference,
)
from jax_rele.types import LabelSchema

SCHEMA = LabelSchema(("Exact", "Substitute", "Complement", "Irrelevant"), (1.0, 0.1, 0.01, 0.0), ("Exact",))
GAIN_MAPS = {"paper": [1.0, 0.1, 0.01, 0.0], "esci_data": [1.0, 0.01, 0.1, 0.0]}
FITTED = {"bias": np.array([0.3, 0.0, -0.2, 0.1]), "temperature": 1.7}
SETTINGS = {"gain_maps": GAIN_MAPS, "n_bootstrap": 60, "seed": 5, **FITTED}


@pytest.fixture(scope="module")
def case(made_up):
    """A function of a size N -> [N, 4] distributions, [N] labels, and N queries of which there are thirty."""

    def build(size=80):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 4, size)
        return made_up(labels, 1.5, 0), labels, [f"query {index}" for index in rng.integers(0, 30, size)]

    return build


def evaluate(*arguments, **settings):
    return intervals(metric_samples(*arguments, **settings))


def written_out(probs, labels, queries):
    """AUC, negative AP, macro-F1 and mean nDCG of plain lists of pairs; the queries already tell copies apart."""
    p, gain = probs[:, 0], np.array(SCHEMA.gains)[labels]
    score = probs @ np.array(SCHEMA.gains)
    of_query = {}
    for index, query in enumerate(queries):
        of_query.setdefault(query, []).append(index)
    return {
        "auc": sklearn.metrics.roc_auc_score(labels == 0, p),
        "neg_ap": sklearn.metrics.average_precision_score(labels != 0, 1.0 - p),
        "macro_f1": sklearn.metrics.f1_score(labels, decide(probs, FITTED["bias"]), average="macro"),
        "ndcg_paper": np.mean(
            [
                sklearn.metrics.ndcg_score([gain[rows]], [score[rows]])
                for rows in of_query.values()
                if len(rows) > 1 and gain[rows].sum() > 0
            ]
        ),
    }


def test_intervals_are_those_of_a_bootstrap_over_whole_queries_written_out(case):
    probs, labels, queries = case()
    result = evaluate(probs, labels, queries, SCHEMA, **SETTINGS)
    names = list(dict.fromkeys(queries))
    drawn = np.random.default_rng(5).multinomial(len(names), np.full(len(names), 1 / len(names)), size=60)
    samples = []
    for counts in drawn:
        rows, copies = [], []
        for name, count in zip(names, counts):
            for copy in range(count):
                mine = [index for index, query in enumerate(queries) if query == name]
                rows += mine
                copies += [(name, copy)] * len(mine)
        samples.append(written_out(probs[rows], labels[rows], copies))
    plain = written_out(probs, labels, queries)
    for metric, value in plain.items():
        expected = np.percentile([sample[metric] for sample in samples], [2.5, 97.5])
        assert result[metric]["value"] == pytest.approx(value, abs=1e-12)
        assert result[metric]["ci95"] == pytest.approx(expected.tolist(), abs=1e-12)


def test_the_calibrated_error_is_that_of_the_scaled_distributions(case):
    probs, labels, queries = case()
    scaled = apply_temperature(probs, FITTED["temperature"])
    result = evaluate(probs, labels, queries, SCHEMA, **SETTINGS)
    assert result["ece"]["value"] == pytest.approx(ece(probs[:, 0], labels == 0)[0])
    assert result["ece_calibrated"]["value"] == pytest.approx(ece(scaled[:, 0], labels == 0)[0])
    assert result["ece_calibrated"]["ci95"] != result["ece"]["ci95"]


def test_two_gain_maps_differ_only_in_their_gains(case):
    probs, labels, queries = case()
    swapped = {"paper": GAIN_MAPS["esci_data"], "esci_data": GAIN_MAPS["paper"]}
    result = evaluate(probs, labels, queries, SCHEMA, **SETTINGS)
    crossed = evaluate(probs, labels, queries, SCHEMA, **{**SETTINGS, "gain_maps": swapped})
    assert result["ndcg_paper"] == crossed["ndcg_esci_data"]
    assert result["ndcg_paper"] != result["ndcg_esci_data"]


def test_copies_of_pairs_within_a_query_add_no_certainty(case):
    probs, labels, queries = case()
    once = evaluate(probs, labels, queries, SCHEMA, **SETTINGS)
    many = evaluate(np.tile(probs, (5, 1)), np.tile(labels, 5), queries * 5, SCHEMA, **SETTINGS)
    for metric in ("auc", "neg_ap", "macro_f1", "micro_f1", "ece", "ece_calibrated"):
        assert many[metric]["ci95"] == pytest.approx(once[metric]["ci95"], abs=1e-9)


def test_models_share_their_resamples(case):
    probs, labels, queries = case()
    first = metric_samples(probs, labels, queries, SCHEMA, **SETTINGS)
    again = metric_samples(probs, labels, queries, SCHEMA, **SETTINGS)
    other = metric_samples(probs, labels, queries, SCHEMA, **{**SETTINGS, "seed": 6})
    for metric, difference in paired_difference(first, again).items():
        assert difference == {"value": 0.0, "ci95": [0.0, 0.0]}, metric
    assert (first["auc"][1:] != other["auc"][1:]).any()


def test_a_paired_interval_is_narrower_than_the_two_apart(case, made_up):
    probs, labels, queries = case(size=200)
    slightly = 0.97 * probs + 0.03 * made_up(labels, 3.0, 9)
    a = metric_samples(slightly, labels, queries, SCHEMA, **SETTINGS)
    b = metric_samples(probs, labels, queries, SCHEMA, **SETTINGS)
    difference = paired_difference(a, b)["auc"]
    apart = bootstrap.interval(a["auc"])["ci95"]
    assert difference["value"] == pytest.approx(a["auc"][0] - b["auc"][0])
    assert difference["ci95"][1] - difference["ci95"][0] < 0.5 * (apart[1] - apart[0])


def test_a_constant_model_ties_all_pairs_however_they_lie_in_memory():
    """A matrix product may round equal rows differently, which would rank pairs by their place in the array."""
    rng = np.random.default_rng(0)
    schema = LabelSchema(SCHEMA.names, SCHEMA.gains, ("Exact", "Substitute", "Complement"))
    labels = np.arange(333) % 4
    for _ in range(30):
        probs = np.asfortranarray(np.tile(rng.dirichlet(np.ones(4)), (333, 1)))
        result = evaluate(probs, labels, list(map(str, labels)), schema, **{**SETTINGS, "n_bootstrap": 3})
        assert result["auc"]["value"] == 0.5
        assert set(result["auc"]["ci95"] or [0.5]) == {0.5}
        assert result["spearman"] == {"value": None, "ci95": None}


def test_undefined_metrics_are_none(case):
    probs, labels, _ = case(size=12)
    alone = [str(index) for index in range(12)]
    result = evaluate(probs, np.zeros(12, int), alone, SCHEMA, **SETTINGS)
    undefined = {name for name, figure in result.items() if figure["value"] is None}
    assert undefined == {"auc", "neg_ap", "spearman", "ndcg_paper", "ndcg_esci_data"}
    assert evaluate(probs, labels, alone, SCHEMA, **{**SETTINGS, "n_bootstrap": 0})["auc"]["ci95"] is None
    nothing = evaluate(np.zeros((0, 4)), np.zeros(0, int), [], SCHEMA, **SETTINGS)
    assert all(figure == {"value": None, "ci95": None} for figure in nothing.values())


def test_an_interval_needs_the_metric_in_half_of_the_resamples():
    assert bootstrap.interval(np.array([1.0, 2.0, np.nan])) == {"value": 1.0, "ci95": [2.0, 2.0]}
    assert bootstrap.interval(np.array([1.0, 2.0, np.nan, np.nan])) == {"value": 1.0, "ci95": None}
    assert bootstrap.interval(np.array([np.nan, 2.0])) == {"value": None, "ci95": None}


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
@settings(max_examples=40)
def test_the_result_is_always_json(seed, size, saturated):
    rng = np.random.default_rng(seed)
    probs = np.eye(4)[rng.integers(0, 4, size)] if saturated else rng.dirichlet(np.ones(4), size)
    queries = [str(index) for index in rng.integers(0, 3, size)]
    result = evaluate(probs, rng.integers(0, 4, size), queries, SCHEMA, **{**SETTINGS, "n_bootstrap": 10})
    json.dumps(result, allow_nan=False)
    assert tuple(result) == metric_names(GAIN_MAPS)


def test_a_binary_schema_has_its_own_gain_maps():
    schema = LabelSchema(("relevant", "irrelevant"), (1.0, 0.0), ("relevant",))
    probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    options = {
        "gain_maps": {"plain": [1.0, 0.0]},
        "bias": [0.0, 0.0],
        "temperature": 1.0,
        "n_bootstrap": 5,
        "seed": 0,
    }
    result = evaluate(probs, np.array([0, 1, 0, 1]), ["a", "a", "b", "b"], schema, **options)
    assert [result[name]["value"] for name in ("auc", "neg_ap", "macro_f1", "ndcg_plain")] == [1.0, 1.0, 1.0, 1.0]
    assert not any(name.startswith("ndcg") and name != "ndcg_plain" for name in result)


def test_work_in_chunks_changes_nothing(case, monkeypatch):
    probs, labels, queries = case()
    whole = metric_samples(probs, labels, queries, SCHEMA, **SETTINGS)
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * len(labels))
    parts = metric_samples(probs, labels, queries, SCHEMA, **SETTINGS)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-12)


def test_bad_input_is_refused(case):
    probs, labels, queries = case(size=10)
    with pytest.raises(ValueError, match="not finite"):
        evaluate(np.where(probs > 0.5, np.nan, probs), labels, queries, SCHEMA, **SETTINGS)
    with pytest.raises(ValueError, match="one query each"):
        evaluate(probs, labels, queries[:-1], SCHEMA, **SETTINGS)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3"):
        evaluate(probs, labels + 2, queries, SCHEMA, **SETTINGS)
    with pytest.raises(ValueError, match="gain map short"):
        evaluate(probs, labels, queries, SCHEMA, **{**SETTINGS, "gain_maps": {"short": [1.0]}})

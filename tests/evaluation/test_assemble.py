"""The metrics document: its format, and that every figure in it is the one it claims to be."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from jax_rele.data.pairs.splits import assign_splits
from jax_rele.deployment.thresholds import one_per_query
from jax_rele.errors import UserError
from jax_rele.evaluation import build_metrics, fit_bias, fit_temperature, intervals, metric_names, metric_samples
from jax_rele.evaluation.assemble import compared
from jax_rele.text import query_id


def label_indices(pairs, schema):
    return np.array([schema.index(pair.label) for pair in pairs])


@pytest.fixture
def build(judged, splits, predictions, schema, gain_maps):
    def build(test=judged, validation=splits[1], **changes):
        arguments = {"schema": schema, "gain_maps": gain_maps, "n_bootstrap": 5, **predictions, **changes}
        return build_metrics("test", test, validation, **arguments)

    return build


def test_the_format(document, judged, gain_maps):
    json.dumps(document, allow_nan=False)
    assert list(document) == [
        "split",
        "n_pairs",
        "n_queries",
        "n_queries_with_several_items",
        "label_schema",
        "gain_maps",
        "bootstrap",
        "baselines",
        "models",
        "score_std",
        "slices",
        "decision",
        "differences",
    ]
    assert document["split"] == "test"
    assert document["n_pairs"] == len(judged)
    assert document["n_queries"] == len({pair.query for pair in judged})
    counts = Counter(pair.query for pair in judged)
    assert document["n_queries_with_several_items"] == sum(count >= 2 for count in counts.values())
    assert document["score_std"]["majority"] == pytest.approx(0, abs=1e-9)
    assert document["score_std"]["teacher"] > 0.02
    assert document["label_schema"]["positive"] == ["Exact"]
    assert document["bootstrap"] == {"samples": 200, "unit": "query", "seed": 0}
    assert list(document["baselines"]) == ["majority", "token_overlap", "bm25", "gradient_boosting"]
    for part in (document, *document["slices"].values()):
        for figures in (*part["baselines"].values(), *part["models"].values()):
            assert tuple(figures) == metric_names(gain_maps)
            assert all(set(figure) == {"value", "ci95"} for figure in figures.values())


def test_figures_are_those_of_evaluate_with_what_validation_chose(
    document, judged, splits, predictions, schema, gain_maps
):
    validation = splits[1]
    held_out = predictions["validation_models"]["teacher"]
    truth = label_indices(validation, schema)
    chosen = {"bias": fit_bias(held_out, truth), "temperature": fit_temperature(held_out, truth)}
    assert document["decision"]["teacher"] == {"bias": chosen["bias"].tolist(), "temperature": chosen["temperature"]}

    def expected(rows):
        samples = metric_samples(
            predictions["models"]["teacher"][rows],
            label_indices(judged, schema)[rows],
            [judged[row].query for row in rows],
            schema,
            gain_maps=gain_maps,
            n_bootstrap=200,
            seed=0,
            **chosen,
        )
        return intervals(samples)

    assert document["models"]["teacher"] == expected(np.arange(len(judged)))
    tail = np.arange(0, len(judged), 3)
    assert document["slices"]["long_tail"]["n_pairs"] == len(tail)
    assert document["slices"]["long_tail"]["models"]["teacher"] == expected(tail)


def test_differences_are_between_the_values_of_a_and_b(document):
    figures = {**document["baselines"], **document["models"]}
    for entry in document["differences"]:
        a, b = (figures[entry[side]][entry["metric"]]["value"] for side in "ab")
        if a is None or b is None:
            assert entry["value"] is None
        else:
            assert entry["value"] == pytest.approx(a - b)
            assert entry["ci95"][0] <= entry["ci95"][1]


def test_every_model_meets_every_baseline_its_reference_and_the_teacher():
    couples = compared(["bm25"], ["teacher", "cross_encoder:mkd", "cross_encoder:label_only", "two_tower:mkd"])
    assert couples == [
        ("teacher", "bm25"),
        ("cross_encoder:mkd", "bm25"),
        ("cross_encoder:mkd", "cross_encoder:label_only"),
        ("cross_encoder:mkd", "teacher"),
        ("cross_encoder:label_only", "bm25"),
        ("cross_encoder:label_only", "teacher"),
        ("two_tower:mkd", "bm25"),
        ("two_tower:mkd", "teacher"),
    ]


def test_nothing_is_chosen_on_the_reported_split(build, judged):
    relabelled = [replace(pair, label="Irrelevant") for pair in judged]
    assert build(relabelled)["decision"] == build()["decision"]


def test_one_text_in_two_locales_is_one_query_with_a_slice_for_each(build, judged):
    same = [replace(pair, query="shoe", locale=("us", "es")[index % 2]) for index, pair in enumerate(judged)]
    document = build(same)
    assert document["n_queries"] == document["n_queries_with_several_items"] == 1
    assert set(document["slices"]) == {"locale:es", "locale:us"}
    assert document["models"]["teacher"]["ndcg_paper"]["value"] is not None


def test_a_slice_without_pairs_is_reported_as_such(build, judged):
    document = build(long_tail=np.zeros(len(judged), bool))
    assert document["slices"]["long_tail"]["n_pairs"] == 0
    assert document["slices"]["long_tail"]["models"]["teacher"]["auc"] == {"value": None, "ci95": None}


def test_bad_input_is_refused(build, judged, predictions):
    with pytest.raises(UserError, match="validation split holds no pair"):
        build(validation=[])
    with pytest.raises(UserError, match=f"pair {judged[3].pair_id} of the test split has label 'Great'"):
        build([*judged[:3], replace(judged[3], label="Great"), *judged[4:]])
    with pytest.raises(ValueError, match="have validation probs for"):
        build(validation_models={})
    with pytest.raises(ValueError, match="teacher: validation probs must be"):
        build(validation_models={**predictions["validation_models"], "teacher": np.zeros((3, 4))})
    with pytest.raises(ValueError, match="both as baselines and as models"):
        build(baselines=predictions["models"], validation_baselines=predictions["validation_models"])


def test_pairs_of_one_query_are_one_unit_whatever_its_spelling_or_locale(build, judged, predictions):
    """In metrics as in splits and thresholds: one query is never in two splits."""
    spellings = ("tv", "TV", " t\u200bv ", "ｔｖ")
    looks = [{"query": query, "locale": locale} for query in spellings for locale in ("us", "jp", "")]
    test = [replace(pair, **looks[i % len(looks)]) for i, pair in enumerate(judged)]
    assert build(test)["n_queries"] == 1
    mixed = [replace(pair, query=f"{i % 8} {pair.query}", pair_id=f"{i}") for i, pair in enumerate(test)]
    split = assign_splits(mixed, (0.5, 0.25, 0.25), 0)
    assert len({query_id(pair.query) for pair in split}) == 8
    assert len({(query_id(pair.query), pair.split) for pair in split}) == 8
    assert len(one_per_query(mixed)) == 8
    assert build(mixed)["n_queries"] == 8

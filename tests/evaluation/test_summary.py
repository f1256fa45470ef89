"""The table holds every figure; the sentences say what the intervals allow and no more."""

import copy
import re

import numpy as np
import pytest

from jax_rele.evaluation import metric_names, table, verdict_lines
from jax_rele.evaluation.summary import clear_queries


def test_the_table_holds_every_figure(document, gain_maps):
    lines = table(document).split("\n")
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", *metric_names(gain_maps)]
    assert set("".join(cells[1])) == {"-"}
    rows = {row[0]: row[1:] for row in cells[2:]}
    assert list(rows) == [*document["baselines"], *document["models"]]
    for name, row in rows.items():
        for metric, cell in zip(metric_names(gain_maps), row):
            figure = {**document["baselines"], **document["models"]}[name][metric]
            if figure["value"] is None:
                assert cell == "–"
            else:
                assert re.fullmatch(r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", cell)
                value, low, high = (
                    float(part) for part in cell.replace("[", "").replace("]", "").replace(",", "").split()
                )
                assert [value, low, high] == pytest.approx([figure["value"], *figure["ci95"]], abs=5e-4)


def changed(document, a, b, metric, value, ci95):
    """The document with one difference set."""
    other = copy.deepcopy(document)
    for entry in other["differences"]:
        if (entry["a"], entry["b"], entry["metric"]) == (a, b, metric):
            entry.update(value=value, ci95=ci95)
            return other
    raise AssertionError(f"{a} and {b} are not compared on {metric}")


@pytest.mark.parametrize(
    ("value", "ci95", "sentence"),
    [
        (
            -0.03,
            [-0.10, 0.05],
            "{a} does not beat {b} on auc: difference -0.030 [-0.100, 0.050]; about {n} queries would show a "
            "difference of this size.",
        ),
        (
            -0.0001,
            [-0.08, 0.08],
            "{a} does not beat {b} on auc: difference -0.000 [-0.080, 0.080]; 100,000 queries would not show a "
            "difference of this size.",
        ),
        (0.12, [0.05, 0.20], "{a} beats {b} on auc: difference +0.120 [0.050, 0.200]."),
        (-0.12, [-0.20, -0.05], "{a} is worse than {b} on auc: difference -0.120 [-0.200, -0.050]."),
        (0.0, [0.0, 0.0], "{a} does not beat {b} on auc: difference +0.000 [0.000, 0.000]."),
        (0.12, None, "{a} is not shown to beat {b} on auc: difference +0.120, without an interval."),
        (None, None, "{a} and {b} cannot be compared on auc: it is undefined for one of them on these pairs."),
    ],
)
def test_the_sentence_follows_the_interval(document, value, ci95, sentence):
    a, b = "cross_encoder:mkd", "cross_encoder:label_only"
    other = {**changed(document, a, b, "auc", value, ci95), "n_queries": 434}
    # 434 (0.075 / 0.03)^2 is 2,712.5.
    assert sentence.format(a=a, b=b, n="2,700") in verdict_lines(other)


def test_a_model_is_held_against_the_strongest_baseline(document):
    other = copy.deepcopy(document)
    for name, value in (("majority", 0.5), ("token_overlap", 0.9), ("bm25", 0.6)):
        other["baselines"][name]["auc"]["value"] = value
    lines_ = [line for line in verdict_lines(other) if line.startswith("two_tower:mkd ") and "on auc" in line]
    assert len(lines_) == 2
    assert "token_overlap" in lines_[0]
    assert "teacher" in lines_[1]


def test_a_student_that_is_not_told_apart_from_the_teacher_is_not_called_equal(document):
    other = {**changed(document, "two_tower:mkd", "teacher", "auc", -0.01, [-0.1, 0.1]), "n_queries": 434}
    assert (
        "two_tower:mkd is not shown to differ from teacher on auc: difference -0.010 [-0.100, 0.100]; about 43,000 "
        "queries would show a difference of this size." in verdict_lines(other)
    )


def test_that_many_queries_make_a_difference_of_that_size_clear():
    """Means over simulated queries: at the named number half of the intervals exclude zero, not at a quarter of it."""
    rng, effect, deviation, n = np.random.default_rng(0), 0.05, 1.0, 200
    half = 1.96 * deviation / n**0.5
    needed = clear_queries(n, effect, [effect - half, effect + half])
    assert needed == 1500  # (1.96 / 0.05)^2 = 1,537, to two digits
    assert clear_queries(n, -effect, [-effect - half, -effect + half]) == needed
    assert clear_queries(n, 0.0, [-half, half]) is None
    for queries, low, high in ((needed, 0.45, 0.55), (needed // 4, 0.1, 0.22)):
        means = rng.normal(effect, deviation / queries**0.5, 10_000)
        assert low < np.mean(means > 1.96 * deviation / queries**0.5) < high


def test_collapse_is_named(document):
    assert not any("same score" in line for line in verdict_lines(document))
    other = copy.deepcopy(document)
    other["models"]["teacher"] = copy.deepcopy(other["baselines"]["majority"])
    assert "teacher gives every pair the same score: its ranking metrics carry no information." in verdict_lines(other)
    other = copy.deepcopy(document)
    other["score_std"]["teacher"] = 0.0123
    line = "teacher gives nearly every pair the same P(relevant): its standard deviation is 0.012."
    assert line in verdict_lines(other)
    assert line not in verdict_lines(document)


def test_the_rationales_stand_beside_the_trivial_ones(document):
    figures = {"written": 9, "parsed": 8, "agreement_with_rules": {"overall": 0.5, "most_frequent_verdict": 0.75}}
    assert any(
        line.startswith("8 of the teacher's 9 rationales parse") and "0.500" in line and "0.750" in line
        for line in verdict_lines({**document, "rationales": figures})
    )


def test_few_queries_with_several_items_are_named(document):
    lines_ = "The ndcg figures come from {} queries with several items: too few to compare models by."
    for several, expected in ((0, False), (1, True), (19, True), (20, False)):
        lines = verdict_lines({**document, "n_queries_with_several_items": several})
        assert (lines_.format(several) in lines) == expected


def test_limits_are_named(document):
    other = copy.deepcopy(document)
    other["decision"]["teacher"]["temperature"] = 19.99999
    for figures in (*other["baselines"].values(), *other["models"].values()):
        figures["ndcg_paper"] = {"value": None, "ci95": None}
    lines = verdict_lines(other)
    assert any(line.startswith("teacher: the temperature 20.00 is at the edge") for line in lines)
    assert any(line.startswith("Undefined on these pairs for every model: ndcg_paper (") for line in lines)
    assert f"200 resamples of {document['n_queries']} queries" in lines[-1]
    assert "not adjusted for the 20 comparisons" in lines[-1]

"""Which errors the perspectives of a teacher correct."""

import numpy as np

from jax_rele.evaluation.perspectives import correction_table, corrections

GAINS = (1.0, 0.5, 0.0)
LABELS = np.array([0, 0, 1, 1, 2, 2])
MAIN = np.array([0, 1, 0, 1, 0, 1])  # right, strict, lenient, right, lenient, lenient
OTHER = np.array([1, 0, 1, 1, 0, 2])


def figures():
    queries = ["a", "b", "c", "d", "e", "f"]
    return corrections({"main": MAIN, "other": OTHER}, "main", LABELS, GAINS, queries=queries, n_bootstrap=50, seed=0)


def test_errors_are_counted_by_kind():
    result = figures()
    assert list(result) == ["other"]
    kinds = {kind: (each["pairs"], each["value"]) for kind, each in result["other"].items()}
    assert kinds == {"too_lenient": (3, 2 / 3), "too_strict": (1, 1.0), "right": (2, 0.5)}
    low, high = result["other"]["too_lenient"]["ci95"]
    assert low < 2 / 3 < high


def test_the_table_names_the_pairs_of_each_kind():
    lines = correction_table(figures()).strip().splitlines()
    assert "too lenient (3 pairs)" in lines[0]
    assert lines[2].startswith("| other")
    assert correction_table({}) == ""


def test_without_errors_there_is_no_figure():
    result = corrections(
        {"main": LABELS, "other": OTHER}, "main", LABELS, GAINS, queries=list("abcdef"), n_bootstrap=9, seed=0
    )
    assert result["other"]["too_strict"] == {"pairs": 0, "value": None, "ci95": None}


def test_a_grade_is_better_by_its_gain():
    decided = {"main": MAIN, "other": OTHER}
    rising = corrections(decided, "main", LABELS, GAINS[::-1], queries=list("abcdef"), n_bootstrap=9, seed=0)
    assert rising["other"]["too_strict"]["pairs"] == figures()["other"]["too_lenient"]["pairs"] == 3

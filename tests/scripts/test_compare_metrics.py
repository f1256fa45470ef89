"""The comparison of two runs' figures."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from compare_metrics import differences  # noqa: E402

sys.path.remove(str(SCRIPTS))

OLD = {"auc": {"value": 0.5, "interval": [0.4, 0.6]}, "n": 3, "text": "a", "none": None}


def test_equal_figures_have_no_difference():
    assert differences(OLD, {**OLD}) == []


def test_each_difference_is_named_by_its_path():
    new = {"auc": {"value": 0.5, "interval": [0.4, 0.61]}, "n": 4, "text": "a", "extra": 1}
    assert differences(OLD, new) == [
        "/extra: in one file alone",
        "/none: in one file alone",
        "/auc/interval/1: 0.6 and 0.61",
        "/n: 3 and 4",
    ]


def test_a_tolerance_is_for_numbers_alone():
    assert differences({"a": 1.0, "b": 1}, {"a": 1.00005, "b": 2}, 1e-4) == ["/b: 1 and 2"]

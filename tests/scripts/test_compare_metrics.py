"""The comparison of two runs' figures."""

import subprocess
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


def test_what_is_no_file_of_json_is_named(tmp_path):
    (tmp_path / "text").write_text("no JSON")
    for path in (tmp_path, tmp_path / "text", tmp_path / "missing"):
        command = [sys.executable, SCRIPTS / "compare_metrics.py", path, path]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert "not a file of JSON" in run.stderr
        assert "Traceback" not in run.stderr

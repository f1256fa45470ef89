"""The benchmark's two sides compute the same: it compares losses, label probabilities and decoded tokens itself."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "scripts" / "bench" / "teacher.py"


def test_both_sides_run_and_agree(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, BENCH, "--device", "cpu", "--shape", "tiny", "--repeats", "1", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    cases = json.loads(out.read_text())["cases"]
    assert all(set(case["seconds"]) == {"ours", "theirs"} for case in cases)
    assert all(case["checked"] for case in cases[2:])

"""The benchmarks' two sides compute the same: they compare losses, probabilities, logits and embeddings themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


def run(script, out):
    """What a benchmark prints at its tiniest shape. Its speed says nothing, so it compiles without optimizations."""
    command = [sys.executable, BENCH / script, "--device", "cpu", "--shape", "tiny", "--repeats", "1", "--json", out]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_sides_run_and_agree(tmp_path):
    out = tmp_path / "out.json"
    run("teacher.py", out)
    cases = json.loads(out.read_text())["cases"]
    assert all(set(case["seconds"]) == {"ours", "theirs"} for case in cases)
    assert all(case["checked"] for case in cases[2:])


def test_both_sides_of_the_students_run_and_agree(tmp_path):
    out = tmp_path / "out.json"
    printed = run("students.py", out)
    report = json.loads(out.read_text())
    both = [case for case in report["cases"] if case["theirs"]]
    assert len(both) == 10
    assert all(set(case["seconds"]) == {"ours", "theirs"} and case["checked"] for case in both)
    assert all(set(peak) == {"ours", "theirs"} for peak in report["memory"].values())
    labels = [line.split(" | ")[0] for line in printed.splitlines() if "× |" in line]
    assert "| cross-encoder, training, batches by length over all padded to full length" in labels

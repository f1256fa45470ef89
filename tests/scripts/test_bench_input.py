"""The benchmark of the input and that of annotation run, at the smallest size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


def test_the_whole_way_from_tables_to_batches_is_measured(tmp_path):
    command = [sys.executable, BENCH / "input.py", "--worker", "300", "--steps", "0", "--folder", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["pairs"] == 300
    assert results["loader"]["pairs"] > 0
    assert results["disk_mb"] > 0
    assert list(tmp_path.iterdir()) == []


def test_preparation_is_measured(tmp_path):
    command = [sys.executable, BENCH / "input.py", "--rows", "300", "--turns", "1", "--folder", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines()[2:]] == ["jsonl", "csv", "parquet"]
    assert list(tmp_path.iterdir()) == []


def test_calls_are_accounted_for(tmp_path):
    numbers = tmp_path / "numbers.json"
    command = [sys.executable, BENCH / "annotate.py", "--pairs", "20", "--samples", "2", "--in-flight", "16"]
    done = subprocess.run(
        [*map(str, command), "--json", str(numbers)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "calls/s" in done.stdout
    assert numbers.exists()

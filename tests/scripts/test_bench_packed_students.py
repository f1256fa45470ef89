"""The benchmark of packed rows at its tiniest shape."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "packed_students.py"


def test_both_students_read_fewer_positions():
    command = [sys.executable, SCRIPT, "--shapes", "tiny", "--repeats", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| one layer")]
    assert ["cross-encoder" in row[0] for row in rows] == [True, False]
    for row in rows:
        padded, packed = (int(number.replace(",", "")) for number in row[1].split(" → "))
        assert packed < 0.8 * padded


def test_an_unknown_shape_is_named():
    command = [sys.executable, SCRIPT, "--shapes", "demo,large"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "large is not of demo, few, short, minilm, tiny" in result.stderr

"""The commands of the campaign at their smallest, and that what they look for would be found."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from orbax.checkpoint import v1 as ocp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CAMPAIGN = Path(__file__).parents[2] / "scripts" / "campaign"


@pytest.fixture(scope="module")
def scripts():
    """The modules that are cheap to call here."""
    sys.path.insert(0, str(CAMPAIGN))
    import attacks
    import common
    import fuzz
    import planted_key
    import quotes

    sys.path.remove(str(CAMPAIGN))
    return {"attacks": attacks, "common": common, "fuzz": fuzz, "planted_key": planted_key, "quotes": quotes}


def run(name, *options):
    command = [sys.executable, CAMPAIGN / f"{name}.py", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")][2:]


@pytest.mark.long
def test_a_killed_stage_ends_like_an_unbroken_one(tmp_path):
    rows = run("kills", "--kills", 1, "--steps", 4, "--stages", "prepare", "adapt", "--work", tmp_path)
    assert [row[0].strip() for row in rows] == ["prepare", "adapt"]
    assert all(int(row[2]) == 1 for row in rows)
    assert all(int(row[5]) == 0 for row in rows)


@pytest.mark.long
def test_faults_below_us_are_survived(tmp_path):
    rows = run("faults", "--faults", "sigterm", "checkpoint", "--times", 1, "--work", tmp_path)
    assert [row[-1].strip() for row in rows] == ["pass", "pass"]


@pytest.mark.long
def test_a_planted_key_is_nowhere(tmp_path):
    (row,) = run("planted_key", "--work", tmp_path)
    assert int(row[0]) > 50
    assert int(row[2]) == 0


def test_generated_rows_are_accounted_for(scripts, capsys):
    assert scripts["fuzz"].main(["--rows", "200", "--strings", "300"]) == 0, capsys.readouterr().out


def test_a_quote_takes_in_no_rows_and_texts_stay(scripts, capsys):
    assert scripts["quotes"].main(["--files", "150"]) == 0
    rows = [line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    for _, n_rows, texts, _, silent, cut, garbage, refused, _, unnamed in (map(int, row) for row in rows):
        assert (silent, unnamed) == (0, 0)
        assert cut < 0.005 * n_rows
        assert garbage < 0.001 * n_rows
        assert refused <= 0.02 * texts


def test_attacks_are_measured(scripts, tiny, capsys):
    assert scripts["attacks"].main([str(tiny[1]), "--pairs", "6"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 12
    by_name = {row[0].strip(): row[1:] for row in rows}
    # What is not shown is dropped before a model reads it.
    for name in ("invisible characters", "right-to-left override"):
        assert all(cell.strip().startswith("+0.000 [+0.000, +0.000]") for cell in by_name[name])


def test_a_run_of_another_version_is_named(scripts, tmp_path, capsys):
    assert scripts["attacks"].main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_content_is_seen(scripts, tmp_path):
    for name, value in (("one", 1.0), ("two", 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "manifest.json").write_text(f'{{"wall_seconds": {value}, "counts": {{"pairs": 3}}}}')
        (folder / "table.md").write_text("same")
        ocp.save(folder / "variables", {"x": np.full(3, 1.0)})
    compare = scripts["common"].compare
    assert compare(tmp_path / "one", tmp_path / "two").differences == []
    assert compare(tmp_path / "one", tmp_path / "two").compared == 3
    ocp.save(tmp_path / "two" / "variables", {"x": np.full(3, 1.0 + 1e-12)}, overwrite=True)
    (tmp_path / "two" / "manifest.json").write_text('{"wall_seconds": 1, "counts": {"pairs": 4}}')
    (tmp_path / "two" / "table.md").unlink()
    (tmp_path / "two" / "more.txt").write_text("")
    (tmp_path / "two" / ".table.md.0.tmp").write_text("")
    result = compare(tmp_path / "one", tmp_path / "two")
    assert [line.split(":")[0] for line in result.differences] == ["manifest.json", "more.txt", "table.md", "variables"]
    assert result.leftovers == 1


def test_a_row_that_is_lost_swallowed_or_invented_is_seen(scripts):
    account = scripts["fuzz"].account
    marks = [f"zq{number:08d}z" for number in range(3)]
    pairs = pa.table({"pair_id": marks[:2], "query": ["a", f"b\n{marks[2]}"], "item": ["c", "d"]})
    quarantine = pa.table({"row": [1], "reason": ["bad"], "raw": ["no mark"]})
    lines = account("csv", pairs, quarantine, marks, 2)
    assert len(lines) == 4
    assert "has swallowed" in lines[0]
    assert "without a mark" in lines[1]
    assert lines[2].startswith(f"{marks[2]} is accounted for 0 times")
    assert lines[3].startswith("2 rows are counted")


def test_a_key_is_seen_wherever_it_is(scripts, tmp_path):
    leaks, key = scripts["planted_key"].leaks, "sk-planted-1"
    pa.parquet.write_table(pa.table({"x": ["a", f"the key {key}"]}), tmp_path / "table.parquet", compression="zstd")
    (tmp_path / "plain.log").write_text(f"Bearer {key}")
    (tmp_path / "hex.txt").write_text(key.encode().hex())
    (tmp_path / "clean.txt").write_text("nothing")
    files, lines = leaks(tmp_path, (key,))
    assert files == 4
    assert {line.split(":")[0] for line in lines} == {"hex.txt", "plain.log", "table.parquet"}

"""Batch scoring in shards: the same bytes by any number of processes, killed anywhere, and every row accounted for."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

import jax_rele
from jax_rele import cli
from jax_rele.data import read_pairs
from jax_rele.data.tokens.text_loss import TextLoss
from jax_rele.deployment import batch, export_student, load_bundle
from jax_rele.deployment.batch import Worker, predict_shards
from jax_rele.errors import UserError
from jax_rele.io import lock

pytestmark = pytest.mark.timeout(600)
ROWS = 16


@pytest.fixture(scope="module")
def bundle(tiny):
    folder = tiny[1].parent.parent / "bundle"
    with lock(folder.with_suffix(".lock")):
        if not folder.exists():
            export_student(tiny[1], folder, "cross_encoder")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file of 203 rows, every 20th of them bad."""
    words = ["red", "blue", "shoe", "lamp", "steel", "large", "phone", "case"]
    rng = np.random.default_rng(0)
    lines = []
    for number in range(203):
        title = " ".join(rng.choice(words, rng.integers(1, 30)))
        row = {
            "pair_id": f"p{number}",
            "query": f"{rng.choice(words)} {number}",
            "item": {"id": str(number), "title": title},
        }
        lines.append('{"query": 3' if number % 20 == 7 else json.dumps(row))
    file = tmp_path_factory.mktemp("batch") / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


@pytest.fixture(scope="module")
def whole(bundle, pairs, tmp_path_factory):
    """The folder that one process writes without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    done = predict_shards(bundle, str(pairs), folder, rows=ROWS, threads=1)
    assert (done.judged, done.skipped, done.finished) == (13, 0, True)
    return folder


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("part-*"))}


def test_shards_hold_what_predict_gives_and_every_row_is_accounted_for(bundle, pairs, whole):
    counts = json.loads((whole / "finished.json").read_text())
    lost = {name: counts.pop(name) for name in TextLoss().counts()}
    assert counts == {"shards": 13, "rows": 203, "pairs": 193, "quarantined": 10, "text_pairs": 193}
    files = [file for file in sorted(whole.glob("part-*.parquet")) if "quarantine" not in file.name]
    rows = list(itertools.chain.from_iterable(pq.read_table(file).to_pylist() for file in files))
    good, bad = read_pairs(pairs, label_names=(), for_prediction=True)
    assert [row["pair_id"] for row in rows] == [pair.pair_id for pair in good]
    assert lost == load_bundle(bundle).text_loss(good).counts()
    assert lost["cut_items"] > 0
    expected = jax_rele.deployment.load_bundle(bundle).predict(good)
    np.testing.assert_allclose([row["score"] for row in rows], expected.scores, atol=1e-6)
    set_aside = [
        row["row"] for file in sorted(whole.glob("*.quarantine.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    assert set_aside == [each.row for each in bad]


def test_any_number_of_processes_writes_the_same_bytes(bundle, pairs, whole, tmp_path):
    folder = tmp_path / "out"
    finished = [
        predict_shards(bundle, str(pairs), folder, rows=ROWS, worker=Worker(number, 3), threads=1).finished
        for number in (2, 0, 1)
    ]
    assert finished == [False, False, True]
    assert content(folder) == content(whole)
    again = predict_shards(bundle, str(pairs), folder, rows=ROWS, threads=1)
    assert (again.judged, again.skipped, again.finished) == (0, 13, True)


def test_killed_anywhere_it_resumes_to_the_same_bytes(bundle, pairs, whole, tmp_path):
    command = ["predict", str(bundle), "--input", str(pairs), "--rows", str(ROWS), "--threads", "1"]
    code = f"""
import sys, time
from jax_rele.deployment import batch
write = batch.write_table
def slowly(path, **table):
    write(path, **table)
    time.sleep(0.05)
batch.write_table = slowly
from jax_rele import cli
print("begins", flush=True)
sys.exit(cli.main({[*command, "--shards", str(tmp_path / "out")]!r}))
"""
    draw, kills = random.Random(3), 0
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        deadline = time.monotonic() + draw.uniform(0.5, 3.5)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0
    assert kills >= 1
    assert content(tmp_path / "out") == content(whole)
    assert json.loads((tmp_path / "out" / "finished.json").read_text())["rows"] == 203
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp") and name.startswith("part")]


def test_one_file_from_the_command_line(bundle, pairs, whole, tmp_path, capsys):
    output = tmp_path / "scores.parquet"
    assert cli.main(["predict", str(bundle), "--input", str(pairs), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "203 rows read = 193 pairs + 10 bad rows set aside" in out
    assert len(pq.read_table(output)) == 193
    assert len(pq.read_table(output.with_suffix(".quarantine.parquet"))) == 10
    assert {file.name for file in tmp_path.iterdir()} == {"scores.parquet", "scores.quarantine.parquet"}
    columns = pq.read_schema(output).names
    assert columns[:2] == ["pair_id", "score"]
    assert "verdict_brand" in columns


def in_bucket(address):
    system, root = fsspec.core.url_to_fs(address)
    names = [name for name in system.ls(root, detail=False) if "/part-" in name]
    return {name.rsplit("/", 1)[-1]: system.cat_file(name) for name in names}


def test_shards_in_a_bucket_have_the_same_bytes(bundle, pairs, whole, tmp_path, capsys):
    address = f"memory://scores-{tmp_path.name}/{uuid.uuid4().hex}"
    command = ["predict", str(bundle), "--input", str(pairs), "--rows", str(ROWS), "--shards", address]
    assert cli.main([*command, "--process", "2/3"]) == 0
    assert "others are missing" in capsys.readouterr().out
    # As after a process that was killed: a shard is missing.
    system, root = fsspec.core.url_to_fs(address)
    system.rm_file(f"{root}/part-000004.parquet")
    for number in (1, 2, 3):
        assert cli.main([*command, "--process", f"{number}/3"]) == 0
    assert "203 rows read = 193 pairs + 10 bad rows set aside" in capsys.readouterr().out
    assert in_bucket(address) == content(whole)
    # A shard that was cut is judged again.
    system.pipe_file(f"{root}/part-000003.parquet", in_bucket(address)["part-000003.parquet"][:100])
    done = predict_shards(bundle, str(pairs), address, rows=ROWS, threads=1)
    assert (done.judged, done.skipped, done.finished) == (1, 12, True)
    assert in_bucket(address) == content(whole)
    with pytest.raises(UserError, match=f"{address}: was begun with --rows 16"):
        predict_shards(bundle, str(pairs), address, rows=5)


def test_another_plan_that_appears_in_a_bucket_ends_a_process_before_it_writes(bundle, pairs, tmp_path, monkeypatch):
    address = f"memory://{uuid.uuid4().hex}/scores"
    system, root = fsspec.core.url_to_fs(address)
    table = batch._table

    def other_begins(scorer, rows):
        plan = json.loads(system.cat_file(f"{root}/plan.json"))
        system.pipe_file(f"{root}/plan.json", json.dumps(plan | {"bundle": "other"}).encode())
        return table(scorer, rows)

    monkeypatch.setattr(batch, "_table", other_begins)
    with pytest.raises(UserError, match="holds scores by another bundle"):
        predict_shards(bundle, str(pairs), address, rows=ROWS, threads=1)
    assert not in_bucket(address)


def test_addresses_that_cannot_be_written_are_told(bundle, pairs, tmp_path, monkeypatch, capsys):
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(*_, **__):
        raise PermissionError("403 Forbidden: no storage.objects.create")

    here = (tmp_path / "here").as_uri()
    assert predict_shards(bundle, str(pairs), here, rows=ROWS, threads=1).finished
    assert (tmp_path / "here" / "finished.json").exists()
    monkeypatch.setattr(MemoryFileSystem, "put_file", refuse)
    for address, message in (
        ("https://shop.example/scores", "cannot be written to"),
        ("nowhere://bucket/scores", "check the part before ://"),
        ("memory://locked/scores", "cannot be reached (403 Forbidden: no storage.objects.create); check the address"),
    ):
        assert cli.main(["predict", str(bundle), "--input", str(pairs), "--shards", address]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_damaged_shard_is_judged_again(bundle, pairs, whole, tmp_path):
    folder = tmp_path / "out"
    predict_shards(bundle, str(pairs), folder, rows=ROWS, threads=1)
    part = folder / "part-000003.parquet"
    part.write_bytes(part.read_bytes()[:100])
    done = predict_shards(bundle, str(pairs), folder, rows=ROWS, threads=1)
    assert (done.judged, done.skipped) == (1, 12)
    assert content(folder) == content(whole)


def test_no_file_of_the_user_is_touched_and_nothing_is_left(bundle, pairs, tmp_path, capsys):
    output = tmp_path / "scores.parquet"
    (tmp_path / "scores.shards").mkdir()
    mine = tmp_path / "scores.quarantine.parquet"
    mine.write_text("precious")
    command = ["predict", str(bundle), "--output", str(output), "--input"]
    assert cli.main([*command, str(pairs)]) == 2
    assert "is not of this command; move it away" in capsys.readouterr().err
    assert mine.read_text() == "precious"
    mine.unlink()
    (tmp_path / "bad.jsonl").write_text('{"query": "a"}\n' * 3)
    (tmp_path / "empty.jsonl").write_text("")
    for name, message in (("bad.jsonl", "none of its 3 rows is a pair (row 1: "), ("empty.jsonl", "no rows")):
        assert cli.main([*command, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not output.exists()
    assert cli.main([*command, str(pairs)]) == 0
    assert (tmp_path / "scores.shards").is_dir()
    assert len(pq.read_table(output)) == 193
    names = {"scores.shards", "scores.parquet", "scores.quarantine.parquet", "bad.jsonl", "empty.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert cli.main([*command, str(pairs), "--fields", "itm=product"]) == 2
    assert "itm" in capsys.readouterr().err


def test_wrong_input_is_told_in_one_line(bundle, pairs, whole, tiny, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text('{"query": "a", "item": {"id": "1", "title": "b"}}\n')
    with pytest.raises(UserError, match="of another input"):
        predict_shards(bundle, str(other), whole, rows=ROWS)
    with pytest.raises(UserError, match="was begun with --rows 16"):
        predict_shards(bundle, str(pairs), whole, rows=5)
    tower = tmp_path / "tower"
    export_student(tiny[1], tower, "two_tower")
    with pytest.raises(UserError, match="by another bundle"):
        predict_shards(tower, str(pairs), whole, rows=ROWS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is no folder of shards: it holds thesis"):
        predict_shards(bundle, str(pairs), tmp_path / "full")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no rows"):
        predict_shards(bundle, str(tmp_path / "empty.jsonl"), tmp_path / "none")
    command = ["predict", str(bundle), "--input", str(pairs)]
    for options, message in (
        ([], "give --output FILE or --shards FOLDER"),
        (["--shards", "x", "--process", "9/8"], "--process: is N/M"),
        (["--output", "x.parquet", "--process", "1/2"], "--process: goes with --shards"),
        (["--output", "x.parquet", "--model", "two_tower"], "--model: is for a run"),
        (["--shards", "x", "--workers", "2"], "--workers: goes with --ray"),
        (["--output", "x.csv"], "ends in .parquet"),
        (["--output", "x.parquet", "--fields", "item"], "write NAME=VALUE"),
    ):
        assert cli.main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert cli.main(["predict", str(tiny[1]), "--input", str(pairs), "--shards", "x"]) == 2
    assert "--shards: is for a bundle" in capsys.readouterr().err
    assert cli.main(["predict", str(tiny[1]), "--input", str(pairs), "--output", "x.parquet"]) == 2
    assert "--model: " in capsys.readouterr().err
    assert not Path("x").exists()


def test_a_shard_of_unknown_tokens_is_refused(bundle, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "summarize", lambda losses: TextLoss(16, characters=100, unknown_characters=60))
    with pytest.raises(UserError, match=r"rows 1 to 16: 60\.0% of the characters are unknown .* --max-unknown 0\.25"):
        predict_shards(bundle, str(pairs), tmp_path / "out", rows=ROWS, threads=1)
    assert not list((tmp_path / "out").glob("part-*"))
    done = predict_shards(bundle, str(pairs), tmp_path / "out", rows=ROWS, threads=1, max_unknown=1.0)
    assert done.finished


@pytest.mark.parametrize("damage", [None, b"", b"PAR1 and no more"])
def test_bad_rows_that_were_lost_are_set_aside_again(bundle, pairs, whole, tmp_path, damage):
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    expected = {file.name: file.read_bytes() for file in whole.iterdir() if not file.name.startswith(".")}
    lost = sorted(folder.glob("*.quarantine.parquet"))[0]
    for path in (lost, folder / "finished.json"):
        path.unlink() if damage is None else path.write_bytes(damage)
    done = predict_shards(bundle, str(pairs), folder, rows=ROWS, threads=1)
    assert (done.judged, done.finished) == (1, True)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")} == expected


def test_a_copy_of_another_shard_is_judged_again_and_a_stray_one_is_named(bundle, pairs, whole, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    shutil.copy(folder / "part-000000.parquet", folder / "part-000001.parquet")
    (folder / batch.FINISHED).unlink()
    assert predict_shards(bundle, str(pairs), folder, rows=ROWS, threads=1).judged == 1
    assert content(folder) == content(whole)
    shutil.copy(folder / "part-000000.parquet", folder / "part-000099.parquet")
    (folder / batch.FINISHED).unlink()
    with pytest.raises(UserError, match=r"part-000099.parquet is none of its 13 shards; delete it"):
        predict_shards(bundle, str(pairs), folder, rows=ROWS, threads=1)

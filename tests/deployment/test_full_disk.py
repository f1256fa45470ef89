"""A disk that fills, or cannot be written, while shards, an index or an export are written.

One line; nothing half-written is taken for whole; and once there is room the same command resumes and gives the same
bytes. On a real small disk where root may mount one, and with writes that fail at random points.
"""

import builtins
import errno
import io
import json
import os
import random
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from jax_rele import cli
from jax_rele.deployment import export
from jax_rele.deployment.batch import predict_shards
from jax_rele.deployment.index import open_index
from jax_rele.deployment.scorer import load_bundle
from jax_rele.errors import UserError
from jax_rele.types import Item, Pair

ROWS = 8
PAIRS = [Pair(str(n), f"red shoes {n}", Item("", f"Acme shoes {n}")) for n in range(5)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file of 120 pairs, three of them bad."""
    lines = [
        json.dumps(
            {"pair_id": f"p{n}", "query": f"red shoe {n}", "item": {"id": str(n), "title": f"shoe {n} " * (n % 9)}}
        )
        for n in range(120)
    ]
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of some kilobytes; skips where this process may not."""
    mounted = []

    def mount(kilobytes):
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this process may not mount a disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder, kilobytes):
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(folder)], check=True)


class FullFile:
    """A file whose disk is full after a number of bytes, over all such files."""

    def __init__(self, file, free):
        self._file, self._free = file, free

    def write(self, content):
        self._free[0] -= len(content)
        if self._free[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(content)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)


@contextmanager
def full_after(monkeypatch, folder, free):
    """Writes below a folder fail after so many bytes."""
    real, left = builtins.open, [free]

    def opened(file, mode="r", *arguments, **options):
        handle = real(file, mode, *arguments, **options)
        is_below = isinstance(file, str | os.PathLike) and os.fspath(file).startswith(str(folder))
        return FullFile(handle, left) if is_below and set(mode) & set("wax") else handle

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        yield left


def contents(folder, pattern="*"):
    return {file.name: file.read_bytes() for file in sorted(folder.glob(pattern)) if file.is_file()}


def command_line(capsys, *arguments):
    """The exit status and the lines on stderr."""
    capsys.readouterr()
    status = cli.main(list(map(str, arguments)))
    return status, capsys.readouterr().err.splitlines()


def is_one_line(lines, message="the disk is full"):
    return len(lines) == 1 and message in lines[0]


def test_shards_on_a_small_disk(cross_bundle, pairs, small_disk, tmp_path, capsys):
    predict_shards(cross_bundle, str(pairs), tmp_path / "whole", rows=ROWS, threads=1)
    disk = small_disk(24)
    command = ("predict", cross_bundle, "--input", pairs, "--rows", ROWS, "--shards", disk / "out")
    status, lines = command_line(capsys, *command)
    assert (status, is_one_line(lines)) == (2, True), lines
    done = contents(disk / "out", "part-*")
    assert done
    assert not (disk / "out" / "finished.json").exists()
    assert all(contents(tmp_path / "whole", "part-*")[name] == part for name, part in done.items())
    grow(disk, 4000)
    assert command_line(capsys, *command)[0] == 0
    assert contents(disk / "out", "part-*") == contents(tmp_path / "whole", "part-*")


def test_shards_at_random_points(cross_bundle, pairs, tmp_path, monkeypatch, capsys):
    predict_shards(cross_bundle, str(pairs), tmp_path / "whole", rows=ROWS, threads=1)
    command = ("predict", cross_bundle, "--input", pairs, "--rows", ROWS, "--shards", tmp_path / "out")
    draw, failures = random.Random(5), 0
    for _ in range(200):
        with full_after(monkeypatch, tmp_path / "out", draw.randrange(0, 9000)):
            status, lines = command_line(capsys, *command)
        if status == 0:
            break
        assert is_one_line(lines), lines
        failures += 1
    assert status == 0
    assert failures >= 3
    assert contents(tmp_path / "out", "part-*") == contents(tmp_path / "whole", "part-*")
    assert not list((tmp_path / "out").glob(".part*"))


def test_an_index_on_a_small_disk(tower_bundle, pairs, small_disk, tmp_path, capsys):
    whole = tmp_path / "whole"
    assert command_line(capsys, "index", tower_bundle, pairs, "--output", whole)[0] == 0
    disk = small_disk(40)
    status, lines = command_line(capsys, "index", tower_bundle, pairs, "--output", disk / "idx")
    assert status == 2
    assert is_one_line(lines), lines
    with pytest.raises(UserError):
        open_index(disk / "idx")
    grow(disk, 4000)
    assert command_line(capsys, "index", tower_bundle, pairs, "--output", disk / "idx")[0] == 0
    assert contents(disk / "idx", "vectors*") == contents(whole, "vectors*")
    assert len(open_index(disk / "idx")) == len(open_index(whole)) == 106


def test_a_change_of_an_index_that_does_not_fit_leaves_it_as_it_was(tower_bundle, pairs, small_disk, tmp_path, capsys):
    disk = small_disk(4000)
    command = ("index", tower_bundle, pairs, "--output", disk / "idx")
    assert command_line(capsys, *command)[0] == 0
    before = contents(disk / "idx")
    more = tmp_path / "more.jsonl"
    rows = [{"id": f"new-{n}", "title": f"garden hose {n} " * 20} for n in range(300)]
    more.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    used = int(subprocess.run(["du", "-sk", disk], capture_output=True, text=True, check=True).stdout.split()[0])
    grow(disk, used + 16)
    status, lines = command_line(capsys, "index", tower_bundle, more, "--output", disk / "idx", "--update")
    assert status == 2
    assert is_one_line(lines), lines
    assert contents(disk / "idx") == before
    grow(disk, 8000)
    assert command_line(capsys, "index", tower_bundle, more, "--output", disk / "idx", "--update")[0] == 0
    assert len(open_index(disk / "idx")) == 406


@pytest.fixture
def exporting(student_data, monkeypatch):
    """`jax-rele export` of a random student, without a run."""
    monkeypatch.setattr(export, "load_student_data", lambda run, model, recipe: student_data(model, "bundled"))
    monkeypatch.setattr(export, "sample_pairs", lambda data: PAIRS)
    monkeypatch.setattr(export, "model_card", lambda *_: "card")
    return lambda folder, form: export.export_student("run", folder, "cross_encoder", form=form)


@pytest.mark.parametrize("form", ["onnx", "tei", "stablehlo"])
def test_an_export_on_a_small_disk(exporting, small_disk, form):
    disk = small_disk(60)
    with pytest.raises(UserError, match="the disk is full") as error:
        exporting(disk / "out", form)
    assert "\n" not in str(error.value)
    assert not list(disk.iterdir())
    grow(disk, 8000)
    exporting(disk / "out", form)
    assert (disk / "out" / "parity.json").exists()


def test_an_export_at_random_points(exporting, tmp_path, monkeypatch):
    exporting(tmp_path / "whole", "onnx")
    size = sum(file.stat().st_size for file in (tmp_path / "whole").rglob("*") if file.is_file())
    draw = random.Random(7)
    for free in [0, *(draw.randrange(size) for _ in range(4))]:
        with full_after(monkeypatch, tmp_path, free), pytest.raises(UserError, match="the disk is full"):
            exporting(tmp_path / "out", "onnx")
        assert [file.name for file in tmp_path.iterdir()] == ["whole"]
    exporting(tmp_path / "out", "onnx")
    load_bundle(tmp_path / "out")


@pytest.mark.parametrize("kind", ["shards", "index", "export"])
def test_a_disk_that_cannot_be_written(cross_bundle, tower_bundle, pairs, small_disk, exporting, capsys, kind):
    disk = small_disk(4000)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    if kind == "export":
        with pytest.raises(UserError, match="cannot be written: Read-only file system"):
            exporting(disk / "out", "onnx")
        return
    command = {
        "shards": ("predict", cross_bundle, "--input", pairs, "--shards", disk / "out"),
        "index": ("index", tower_bundle, pairs, "--output", disk / "out"),
    }[kind]
    status, lines = command_line(capsys, *command)
    assert status == 2
    assert is_one_line(lines, "cannot be written: Read-only file system"), lines

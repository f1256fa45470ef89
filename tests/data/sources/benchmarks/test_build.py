"""Built once, whole or not at all, and again when the files change."""

import errno
import functools
import http.server
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from jax_rele.data.sources import benchmarks
from jax_rele.data.sources.benchmarks import Wands
from jax_rele.errors import UserError

from .official import write_tab_separated, write_wands


@pytest.fixture
def folder(tmp_path):
    write_wands(tmp_path / "files")
    return tmp_path / "files"


def shards(cache):
    return list(cache.rglob("*.array_record*"))


def test_it_is_built_once(folder, tmp_path, monkeypatch):
    rows = list(benchmarks.rows("wands", str(folder), tmp_path))
    monkeypatch.setattr(Wands, "_rows", None)
    assert repr(list(benchmarks.rows("wands", str(folder), tmp_path))) == repr(rows)  # there are NaNs


def test_a_changed_file_is_built_again(folder, tmp_path):
    before = benchmarks.content_hash("wands", str(folder))
    list(benchmarks.rows("wands", str(folder), tmp_path))
    _, _, labels = write_wands(folder)
    write_tab_separated(folder / "label.csv", [{**row, "label": "Partial"} for row in labels])
    assert benchmarks.content_hash("wands", str(folder)) != before
    assert {row["label"] for row in benchmarks.rows("wands", str(folder), tmp_path)} == {"Partial"}


def test_the_hash_is_that_of_the_content_and_of_the_builders_version(folder, tmp_path, monkeypatch):
    before = benchmarks.content_hash("wands", str(folder))
    write_wands(tmp_path / "other")
    assert benchmarks.content_hash("wands", str(tmp_path / "other")) == before
    assert benchmarks.content_hash("wands", "") != before
    monkeypatch.setattr(Wands, "VERSION", "1.0.1")
    assert benchmarks.content_hash("wands", str(folder)) != before


def test_missing_files_are_named_with_their_addresses(folder, tmp_path):
    (folder / "product.csv").unlink()
    for call in (
        lambda: benchmarks.content_hash("wands", str(folder)),
        lambda: benchmarks.rows("wands", str(folder), tmp_path),
    ):
        with pytest.raises(UserError, match=r"wands lacks product\.csv \(from https://raw\.\S+/dataset/product\.csv\)"):
            call()


@pytest.mark.parametrize("name", ["esci", "esci/task4_us", "wands/x", "nothing"])
def test_unknown_names_are_refused(folder, tmp_path, name):
    with pytest.raises(UserError, match=f"data.path tfds:{name}: no such .*; there are .*"):
        benchmarks.rows(name, str(folder), tmp_path)


KILLED = """
import os, sys
from pathlib import Path
from jax_rele.data.sources import benchmarks
from jax_rele.data.sources.benchmarks import Wands

whole = Wands._rows

def half(self, *arguments):
    for number, row in whole(self, *arguments):
        if number == 20:
            os._exit(9)
        yield number, row

Wands._rows = half
benchmarks.rows("wands", sys.argv[1], Path(sys.argv[2]))
"""


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(folder, tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(folder), str(tmp_path)], check=False).returncode == 9
    assert list(tmp_path.rglob("incomplete.*"))
    expected = len((folder / "label.csv").read_text("utf-8").splitlines()) - 1
    assert len(list(benchmarks.rows("wands", str(folder), tmp_path))) == expected
    assert not list(tmp_path.rglob("incomplete.*"))


def test_who_comes_second_waits_and_reads(folder, tmp_path, monkeypatch):
    whole, started = Wands._rows, []

    def slow(self, *arguments):
        started.append(1)
        time.sleep(0.5)
        yield from whole(self, *arguments)

    monkeypatch.setattr(Wands, "_rows", slow)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(list(benchmarks.rows("wands", str(folder), tmp_path))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert repr(results[0]) == repr(results[1])
    assert len(results[0]) > 100
    assert len(started) == 3  # one for each split


def test_without_locks_the_first_that_is_whole_stays(folder, tmp_path, monkeypatch):
    whole = Wands._rows

    def beaten(self, *arguments):
        monkeypatch.setattr(Wands, "_rows", whole)
        list(benchmarks.rows("wands", str(folder), tmp_path))  # another process, which is faster
        yield from whole(self, *arguments)

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(Wands, "_rows", beaten)
    monkeypatch.setattr("fcntl.flock", no_locks)
    assert len(list(benchmarks.rows("wands", str(folder), tmp_path))) > 100


def test_a_file_that_cannot_grow_is_told_and_leaves_nothing(folder, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            benchmarks.rows("wands", str(folder), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not shards(tmp_path)


def test_a_full_disk_is_told_and_leaves_nothing(folder, tmp_path, monkeypatch):
    whole = Wands._rows

    def full(self, *arguments):
        for number, row in whole(self, *arguments):
            if number == 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield number, row

    monkeypatch.setattr(Wands, "_rows", full)
    with pytest.raises(UserError, match="the disk is full"):
        benchmarks.rows("wands", str(folder), tmp_path)
    assert not shards(tmp_path)


def test_a_damaged_shard_is_named(folder, tmp_path):
    list(benchmarks.rows("wands", str(folder), tmp_path))
    (shard, *_) = sorted(shards(tmp_path))
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(UserError, match="the built benchmark is damaged"):
        list(benchmarks.rows("wands", str(folder), tmp_path))


@pytest.fixture
def served(folder, monkeypatch):
    """The official addresses are those of a server here; the official counts are those of the files."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rows = {"query.csv": 30, "product.csv": 150, "label.csv": 179}
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(
            Wands, "FILES", tuple(replace(f, url=f"{address}/{f.name}", rows=rows[f.name]) for f in Wands.FILES)
        )
        yield server
        server.shutdown()


def test_without_a_folder_the_files_are_fetched(served, folder, tmp_path):
    fetched = list(benchmarks.rows("wands", "", tmp_path / "a"))
    assert len(fetched) == 179
    assert repr(fetched) == repr(list(benchmarks.rows("wands", str(folder), tmp_path / "b")))


def test_what_was_fetched_must_be_official(served, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Wands, "FILES", (*Wands.FILES[:2], replace(Wands.FILES[2], rows=180)))
    with pytest.raises(UserError, match="179 rows, but the official file has 180"):
        benchmarks.rows("wands", "", tmp_path)


def test_without_network_every_file_is_named_with_its_address(tmp_path, monkeypatch):
    nowhere = tuple(replace(f, url=f"http://127.0.0.1:9/{f.name}") for f in Wands.FILES)
    monkeypatch.setattr(Wands, "FILES", nowhere)
    with pytest.raises(UserError, match=r"cannot be fetched .*data\.manual_dir") as error:
        benchmarks.rows("wands", "", tmp_path)
    assert all(f"{f.name} (from {f.url})" in str(error.value) for f in nowhere)
    assert "\n" not in str(error.value)

"""A build resumes with the same bytes, may be shared, and its changes equal a fresh build; damage is refused."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import tiny_items, write_tower

from jax_rele.deployment import load_bundle
from jax_rele.deployment.index import build_index, compact_index, delete_items, files, open_index, update_index
from jax_rele.errors import UserError
from jax_rele.types import Item

HERE = Path(__file__).parent
BUILD = """
import sys, time
sys.path.insert(0, {here!r})
from tiny_bundles import tiny_items
from jax_rele.deployment import index
from jax_rele.deployment.index import build
encode = build.encode_texts
def slowly(*arguments):
    time.sleep({pause})
    return encode(*arguments)
build.encode_texts = slowly
print(index.build_index({bundle!r}, tiny_items(90), {output!r}, part=4, process={process}).n_encoded)
"""


def start(bundle, output, process=None, pause=0.05):
    code = BUILD.format(here=str(HERE), bundle=str(bundle), output=str(output), process=process, pause=pause)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.name != ".lock"}


def results(folder, queries, k=15):
    index = open_index(folder)
    ids, products, items = index.search(queries, k)
    return ids, products, items


@pytest.fixture(scope="module")
def scorer(tower):
    return load_bundle(tower)


@pytest.fixture(scope="module")
def queries(scorer):
    return scorer.embed(["red shoe", "lamp", "acme usb cable b"], "query")


def same_results(first, second, queries):
    """Same items in the same order, but for those whose products differ by rounding."""
    a, b = results(first, queries), results(second, queries)
    np.testing.assert_allclose(a[1], b[1], atol=1e-5)
    for row in range(len(queries)):
        assert dict(zip(a[0][row], a[2][row])) == dict(zip(b[0][row], b[2][row]))


@pytest.mark.slow
def test_a_killed_build_resumes_with_the_same_bytes(tower, items, tmp_path):
    build_index(tower, items, tmp_path / "whole", part=4, bundle_path=tower)
    output = tmp_path / "killed"
    n_killed, parts = 0, 0
    for _ in range(3):
        process = start(tower, output)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            before, parts = parts, len(list(output.glob("building-*/part-*.npy")))
            if parts > before + 1:
                break
            parts = before
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        n_killed += process.returncode == -signal.SIGKILL
        assert not (output / files.INDEX).exists()
    assert n_killed == 3
    assert 0 < parts < 23
    left = len(items) - 4 * parts
    change = build_index(tower, items, output, part=4)
    assert 0 < change.n_encoded <= left
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_processes_that_share_a_build_equal_one(tower, items, tmp_path):
    build_index(tower, items, tmp_path / "one", part=4)
    processes = [start(tower, tmp_path / "two", (number, 2), pause=0) for number in (1, 2)]
    encoded = [int(process.communicate()[0]) for process in processes]
    assert sum(encoded) == len(items)
    assert min(encoded) > 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_process_alone_leaves_the_rest_to_the_others_or_to_a_whole_build(tower, items, tmp_path):
    change = build_index(tower, items, tmp_path / "idx", part=4, process=(2, 3))
    assert change.manifest is None
    assert change.n_missing == 15
    with pytest.raises(UserError, match=r"no index \(index.json is missing\)"):
        open_index(tmp_path / "idx")
    whole = build_index(tower, items, tmp_path / "idx", part=4)
    assert whole.n_encoded == len(items) - change.n_encoded
    again = build_index(tower, items, tmp_path / "idx", part=4, process=(1, 3))
    assert (again.n_encoded, again.manifest) == (0, whole.manifest)


@pytest.mark.parametrize("vectors", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_changes_equal_a_fresh_build(tower, items, tmp_path, queries, kind, vectors):
    options = {"kind": kind, "vectors": vectors}
    build_index(tower, items[:60], tmp_path / "idx", **options)
    changed = [replace(item, title=f"{item.title} new") for item in items[:10]]
    moved = [replace(item, category="other") for item in items[10:20]]  # no text that the model reads
    change = update_index(tower, tmp_path / "idx", [*changed, *moved, *items[20:30], *items[60:]])
    assert (change.n_new, change.n_changed, change.n_encoded) == (30, 20, 40)
    gone = [item.id for item in (*items[5:15], *items[40:50], *items[80:])]
    change = delete_items(tower, tmp_path / "idx", [*gone, "unknown"])
    assert (change.n_deleted, change.n_missing) == (30, 1)
    back = update_index(tower, tmp_path / "idx", items[40:45])
    assert (back.n_new, back.n_encoded) == (5, 0)
    now = {item.id: item for item in (*items, *changed, *moved)}
    left = [now[item.id] for item in items if item.id not in {*gone} - {item.id for item in items[40:45]}]
    build_index(tower, left, tmp_path / "fresh", **options)
    assert len(open_index(tmp_path / "idx")) == len(left)
    if vectors == "float32":
        same_results(tmp_path / "idx", tmp_path / "fresh", queries)
    compact_index(tower, tmp_path / "idx")
    manifest = open_index(tmp_path / "idx").manifest
    assert (manifest.items, manifest.rows, manifest.delta_rows, manifest.deleted) == (len(left), len(left), 0, 0)
    if vectors == "float32":
        same_results(tmp_path / "idx", tmp_path / "fresh", queries)
    else:  # two roundings apart at most
        a, b = (results(tmp_path / name, queries)[1] for name in ("idx", "fresh"))
        np.testing.assert_allclose(a, b, atol=4e-2)
    names = {file.name for file in (tmp_path / "idx").iterdir()} - {".lock", files.INDEX}
    assert names == set(manifest.files)


def test_compaction_leaves_int8_vectors_as_they_were(tower, items, tmp_path):
    build_index(tower, items, tmp_path / "idx", vectors="int8")
    before = open_index(tmp_path / "idx").contents.vectors
    delete_items(tower, tmp_path / "idx", [items[3].id])
    compact_index(tower, tmp_path / "idx")
    np.testing.assert_array_equal(open_index(tmp_path / "idx").contents.vectors, np.delete(before, 3, axis=0))


def test_an_index_can_be_made_the_same_as_a_list(tower, items, tmp_path, queries):
    build_index(tower, items[:50], tmp_path / "idx")
    change = update_index(tower, tmp_path / "idx", items[20:], delete_others=True)
    assert (change.n_new, change.n_changed, change.n_deleted) == (40, 0, 20)
    build_index(tower, items[20:], tmp_path / "fresh")
    same_results(tmp_path / "idx", tmp_path / "fresh", queries)
    before = contents(tmp_path / "idx")
    assert update_index(tower, tmp_path / "idx", items[20:], delete_others=True).n_encoded == 0
    assert contents(tmp_path / "idx") == before


def test_the_same_build_is_done_once_and_another_one_replaces_it(tower, items, tmp_path):
    build_index(tower, items, tmp_path / "idx")
    before = contents(tmp_path / "idx")
    assert build_index(tower, items, tmp_path / "idx").n_encoded == 0
    assert contents(tmp_path / "idx") == before
    assert build_index(tower, items[1:], tmp_path / "idx").n_encoded == len(items) - 1
    assert len(open_index(tmp_path / "idx")) == len(items) - 1


def test_equal_texts_are_encoded_to_equal_vectors_and_order_is_that_of_the_items(tower, tmp_path, queries):
    twins = [Item(f"t{number}", "red shoe") for number in range(9)]
    build_index(tower, twins, tmp_path / "idx")
    ids, products, _ = results(tmp_path / "idx", queries, 5)
    assert ids == [["t0", "t1", "t2", "t3", "t4"]] * len(queries)
    assert (np.ptp(products, axis=1) == 0).all()


@pytest.mark.parametrize("name", ["items-0.parquet", "vectors-0.npy", "graph-0.faiss"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_index_is_refused(tower, items, tmp_path, name, damage):
    build_index(tower, items, tmp_path / "idx", kind="hnsw")
    path = tmp_path / "idx" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name}: (was changed since|the index lacks this file)"):
        open_index(tmp_path / "idx")
    with pytest.raises(UserError, match=name):
        update_index(tower, tmp_path / "idx", items)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 7}', '{"format": 1}'])
def test_a_damaged_description_is_refused(tower, items, tmp_path, text):
    build_index(tower, items, tmp_path / "idx")
    (tmp_path / "idx" / files.INDEX).write_text(text)
    with pytest.raises(UserError, match=r"index.json: (damaged|the index is of format)"):
        open_index(tmp_path / "idx")


def test_a_full_disk_is_said_in_one_line_and_nothing_is_lost(tower, items, tmp_path, queries, monkeypatch):
    build_index(tower, items[:50], tmp_path / "idx", part=16)
    before = contents(tmp_path / "idx")
    save, n_saved = np.lib.format.write_array_header_1_0, []

    def full(*arguments, **options):
        n_saved.append(1)
        if len(n_saved) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*arguments, **options)

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(UserError, match=r"part-00002.npy: the disk is full"):
        build_index(tower, items, tmp_path / "idx", part=16)
    n_saved.extend([1, 1])
    with pytest.raises(UserError, match="the disk is full"):
        update_index(tower, tmp_path / "idx", items)
    monkeypatch.undo()
    assert contents_of_index(tmp_path / "idx") == before
    results(tmp_path / "idx", queries)
    assert build_index(tower, items, tmp_path / "idx", part=16).n_encoded == len(items) - 32
    assert not list((tmp_path / "idx").rglob("*.tmp"))


def contents_of_index(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize("head", ["maxsim"])
def test_a_head_without_single_vectors_is_refused(head, items, tmp_path):
    bundle = write_tower(tmp_path / "bundle", head=head)
    with pytest.raises(UserError, match="the head maxsim compares one vector per token"):
        build_index(bundle, items, tmp_path / "idx")


def test_a_cross_encoder_is_refused(cross, items, tmp_path):
    with pytest.raises(UserError, match="a cross-encoder has no vectors of items"):
        build_index(cross, items, tmp_path / "idx")
    assert not (tmp_path / "idx").exists()


def test_a_folder_of_something_else_is_refused(tower, items, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds letter.txt, which is of no index"):
        build_index(tower, items, tmp_path)


def test_two_changes_at_once_are_refused(tower, items, tmp_path):
    build_index(tower, items, tmp_path / "idx")
    with files_locked(tmp_path / "idx"), pytest.raises(UserError, match="another process changes this index"):
        update_index(tower, tmp_path / "idx", tiny_items(3))


def files_locked(folder):
    from jax_rele.io import lock

    return lock(folder / ".lock")


def test_a_build_that_stops_at_the_end_leaves_the_index_before_it(tower, items, tmp_path, queries, monkeypatch):
    build_index(tower, items[:50], tmp_path / "idx")
    expected = results(tmp_path / "idx", queries)[0]

    def full(*_):
        raise UserError("index.json: the disk is full")

    monkeypatch.setattr(files, "write_record", full)
    for change in (
        lambda: build_index(tower, items, tmp_path / "idx"),
        lambda: update_index(tower, tmp_path / "idx", items),
        lambda: delete_items(tower, tmp_path / "idx", [items[0].id]),
    ):
        with pytest.raises(UserError, match="the disk is full"):
            change()
        assert results(tmp_path / "idx", queries)[0] == expected
        names = set(open_index(tmp_path / "idx").manifest.files)
        assert set(contents_of_index(tmp_path / "idx")) == names | {files.INDEX}
    monkeypatch.undo()
    assert build_index(tower, items, tmp_path / "idx").n_encoded == 0
    assert len(open_index(tmp_path / "idx")) == len(items)


def test_an_index_that_changes_while_it_is_opened_is_opened_as_it_is_then(tower, items, tmp_path, monkeypatch):
    from jax_rele.deployment.index import search

    build_index(tower, items[:50], tmp_path / "idx")
    read, n_read = search.read_contents, []

    def slow(folder, manifest):
        if not n_read:
            n_read.append(1)
            build_index(tower, items, tmp_path / "idx")
        return read(folder, manifest)

    monkeypatch.setattr(search, "read_contents", slow)
    assert len(open_index(tmp_path / "idx")) == len(items)


IDS = st.lists(st.integers(0, 11), min_size=1, max_size=8, unique=True)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["update", "sync"]), IDS, st.integers(0, 2)),
        st.tuples(st.just("delete"), IDS, st.just(0)),
        st.tuples(st.just("compact"), st.just([]), st.just(0)),
    ),
    min_size=1,
    max_size=6,
)


@given(CHANGES)
@settings(max_examples=25)
def test_any_sequence_of_changes_leaves_what_a_dictionary_has(scorer, queries, tmp_path_factory, changes):
    def item(number, version):  # the second version has another text, the third another field alone
        return Item(f"i{number}", f"red shoe {number}{' new' * (version == 1)}", category="x" * (version == 2))

    folder = tmp_path_factory.mktemp("changes") / "idx"
    build_index(scorer, [item(number, 0) for number in range(6)], folder)
    expected = {f"i{number}": item(number, 0) for number in range(6)}
    for name, numbers, version in changes:
        items = {f"i{number}": item(number, version) for number in numbers}
        if name == "compact":
            compact_index(scorer, folder)
        elif name == "delete":
            if expected.keys() <= items.keys():
                with pytest.raises(UserError, match="every item of the index"):
                    delete_items(scorer, folder, items)
                continue
            change = delete_items(scorer, folder, items)
            assert change.n_deleted == len(expected.keys() & items.keys())
            expected = {key: value for key, value in expected.items() if key not in items}
        else:
            change = update_index(scorer, folder, list(items.values()), delete_others=name == "sync")
            assert change.n_new == len(items.keys() - expected.keys())
            assert change.n_changed == sum(expected.get(key, value) != value for key, value in items.items())
            expected = items if name == "sync" else expected | items
    index = open_index(folder)
    _, products, lines = index.search(queries, 100)
    assert len(index) == len(expected)
    for row, line in enumerate(lines):
        assert {each.id: each for each in line} == expected
        own = scorer.embed(line, "item") @ queries[row]
        np.testing.assert_allclose(products[row], own, atol=1e-5)

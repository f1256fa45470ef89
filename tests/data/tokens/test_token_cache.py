"""Columns on disk: what was written comes back, whole or not at all, and only for the same content."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data.tokens.token_cache import Ragged, RaggedSpec, load_or_build, take_rows
from jax_rele.errors import UserError


def chunk(rng, rows, length, top):
    lengths = rng.integers(0, length + 1, rows)
    tokens = np.where(np.arange(length) < lengths[:, None], rng.integers(0, top, (rows, length)), 7).astype(np.int32)
    return {
        "inputs": {"tokens": tokens, "valid": np.arange(length) < lengths[:, None]},
        "probs": rng.random((rows, 2, 3)).astype(np.float32),
        "label": np.arange(rows),
    }


def rows_of(part):
    """The chunk with ragged columns as lists."""
    lengths = part["inputs"]["valid"].sum(axis=1)
    ragged = {name: [row[:n].tolist() for row, n in zip(x, lengths)] for name, x in part["inputs"].items()}
    return {**part, "inputs": ragged}


def specs(length):
    return {"inputs.tokens": RaggedSpec(7, length, np.int32), "inputs.valid": RaggedSpec(0, length, bool)}


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 20), st.sampled_from([5, 300, 70_000])), min_size=1, max_size=4),
    length=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_what_was_written_comes_back(tmp_path_factory, sizes, length, seed):
    rng = np.random.default_rng(seed)
    chunks = [chunk(rng, rows, length, top) for rows, top in sizes]
    columns = load_or_build(tmp_path_factory.mktemp("columns"), "t", seed, lambda: map(rows_of, chunks), specs(length))
    total = sum(rows for rows, _ in sizes)
    got = take_rows(columns, np.arange(total))
    for name, value in got["inputs"].items():
        expected = np.concatenate([part["inputs"][name] for part in chunks])
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)
    for name in ("probs", "label"):
        np.testing.assert_array_equal(got[name], np.concatenate([part[name] for part in chunks]))


def test_numbers_of_any_shape_and_shorter_rows(tmp_path):
    arrays = chunk(np.random.default_rng(0), 30, 9, 50)
    columns = load_or_build(tmp_path, "t", 0, lambda: [rows_of(arrays)], specs(9))
    numbers = np.array([[3, 3], [29, 0]])
    got = take_rows(columns, numbers, lambda full: full - 4)
    np.testing.assert_array_equal(got["inputs"]["tokens"], arrays["inputs"]["tokens"][numbers][..., :5])
    np.testing.assert_array_equal(got["probs"], arrays["probs"][numbers])
    column = columns["inputs"]["tokens"]
    assert isinstance(column, Ragged)
    assert column.values.dtype == np.uint8  # the smallest that holds them
    np.testing.assert_array_equal(column.lengths(), arrays["inputs"]["valid"].sum(axis=1))


def test_negative_numbers_are_kept(tmp_path):
    chunks = [{"x": [[-3, 300]]}, {"x": [[]]}]
    columns = load_or_build(tmp_path, "t", 0, lambda: chunks, {"x": RaggedSpec(0, 2, np.int32)})
    np.testing.assert_array_equal(columns["x"].padded(np.arange(2)), [[-3, 300], [0, 0]])


def test_a_row_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a row of 3 tokens in a column of at most 2"):
        load_or_build(tmp_path, "t", 0, lambda: [{"x": [[1], [1, 2, 3]]}], {"x": RaggedSpec(0, 2, np.int32)})


def test_the_same_content_is_made_once_and_other_content_again(tmp_path):
    calls = []

    def make():
        calls.append(1)
        yield {"x": np.arange(3)}

    for depends_on in ("a", "a", "b", {"lengths": [1, 2]}, {"lengths": (1, 2)}, {"lengths": [1, 3]}):
        load_or_build(tmp_path, "t", depends_on, make, {})
    load_or_build(tmp_path, "other", "a", make, {})
    assert len(calls) == 5  # a, b, two lengths, another kind


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def make(error):
        yield {"x": np.arange(1000)}
        raise error

    with pytest.raises(UserError, match=r"the disk is full; free some space, or set cache_dir to another place"):
        load_or_build(tmp_path, "t", 0, lambda: make(OSError(errno.ENOSPC, "No space left on device")), {})
    with pytest.raises(ValueError, match="bad text"):
        load_or_build(tmp_path, "t", 0, lambda: make(ValueError("bad text")), {})
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    assert load_or_build(tmp_path, "t", 0, lambda: [{"x": np.arange(4)}], {})["x"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ["cut", "gone", "contents"])
def test_what_is_not_whole_is_made_again(tmp_path, damage):
    make = lambda: [{"x": np.arange(100), "t": [[1, 1, 1]] * 100}]  # noqa: E731
    load_or_build(tmp_path, "t", 0, make, {"t": RaggedSpec(0, 3, np.int32)})
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    victim = folder / ("columns.json" if damage == "contents" else "0.bin")
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-5])
    assert load_or_build(tmp_path, "t", 0, make, {"t": RaggedSpec(0, 3, np.int32)})["x"].tolist() == list(range(100))


def build(root, number, calls):
    def make():
        with calls.get_lock():
            calls.value += 1
        for start in range(0, 50, 10):
            time.sleep(0.02)
            yield {"x": np.arange(start, start + 10)}

    columns_read = load_or_build(root, "t", 0, make, {})["x"]
    sys.exit(0 if columns_read.tolist() == list(range(50)) else 1)


def test_processes_that_want_the_same_at_once_make_it_once(tmp_path):
    context = multiprocessing.get_context("forkserver")
    calls = context.Value("i", 0)
    running = [context.Process(target=build, args=(tmp_path, number, calls)) for number in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert calls.value == 1


def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(tmp_path):
    code = f"""
        import sys, time
        import numpy as np
        from pathlib import Path
        from jax_rele.data.tokens.token_cache import load_or_build
        def make():
            yield {{"x": np.arange(10)}}
            print("half", flush=True)
            time.sleep(60)
        load_or_build(Path({str(tmp_path)!r}), "t", 0, make, {{}})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert load_or_build(tmp_path, "t", 0, lambda: [{"x": np.arange(2)}], {})["x"].tolist() == [0, 1]


def test_chunks_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the same columns"):
        load_or_build(tmp_path, "t", 0, lambda: [{"x": np.arange(3)}, {"y": np.arange(3)}], {})
    with pytest.raises(ValueError, match="in a column of"):
        load_or_build(tmp_path, "t", 1, lambda: [{"x": np.zeros((1, 3))}, {"x": np.zeros((1, 4))}], {})

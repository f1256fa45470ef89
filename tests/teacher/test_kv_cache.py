"""Padded lengths, and reading tokens after a cached prefix."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data.batches.loader import row_count
from jax_rele.data.tokens.packing import pad
from jax_rele.teacher.kv_cache import bucket, buckets, common_prefix, new_cache, prefill, read


@given(st.integers(0, 5000))
def test_a_bucket_wastes_little(length):
    size = bucket(length)
    assert length <= size < max(length + 16, 1.25 * length + 1)
    assert bucket(size) == size


def test_the_buckets_are_few():
    assert len({bucket(length) for length in range(1025)}) <= 21


@given(st.lists(st.integers(0, 600), min_size=1, max_size=60), st.integers(1, 20))
def test_small_buckets_move_up(lengths, least):
    sizes_of = buckets(lengths, least)
    sizes, counts = np.unique(sizes_of, return_counts=True)
    assert all(size >= length for size, length in zip(sizes_of, lengths))
    assert set(sizes) <= {bucket(length) for length in lengths}
    for size, larger, count in zip(sizes, sizes[1:], counts):
        assert count >= least or larger > 2 * size


def test_rows_are_powers_of_four_that_divide_over_devices():
    assert [row_count(rows, 64) for rows in (1, 2, 4, 5, 17, 64)] == [1, 4, 4, 16, 64, 64]
    assert [row_count(rows, 24, 8) for rows in (1, 9, 17)] == [8, 16, 24]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_common_prefix_leaves_every_row_a_token(rows):
    prefix = common_prefix(rows)
    assert all(row[: len(prefix)] == prefix and len(row) > len(prefix) for row in rows)
    longer = len(prefix) + 1
    assert len({tuple(row[:longer]) for row in rows}) > 1 or min(map(len, rows)) == longer


def test_rows_that_continue_a_cached_prefix_equal_whole_rows(teacher, naive):
    """Two rows continue the same row of a cache, at positions that padding has written to."""
    model, variables = teacher.model, teacher.variables
    prefixes, rests = [[5, 6, 7], [9]], [[3, 4, 8, 11], [12], [2, 2]]
    parents = np.array([0, 0, 1], np.int32)
    empty = new_cache(model, 1, 0)
    cache = prefill(model, variables, empty, np.zeros(2, np.int32), pad(prefixes, 16, 0), np.zeros(2, np.int32))
    starts = np.array([3, 3, 1], np.int32)
    read_on = jax.jit(read, static_argnums=0)
    out, grown = read_on(model, variables, cache, parents, pad(rests, 16, 0), starts)
    ends = starts + [len(rest) for rest in rests]
    more, _ = read_on(model, variables, grown, np.arange(3), np.full((3, 1), 9, np.int32), ends)
    for row, (parent, rest) in enumerate(zip(parents, rests)):
        whole = naive.hidden(model, variables, [*prefixes[parent], *rest, 9])
        np.testing.assert_allclose(out.hidden[row, : len(rest)], whole[starts[row] : -1], atol=1e-5)
        np.testing.assert_allclose(more.hidden[row, 0], whole[-1], atol=1e-5)

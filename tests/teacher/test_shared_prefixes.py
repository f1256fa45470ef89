"""The plan reads every row once, after its own prefix."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.teacher.shared_prefixes import make_plan

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.integers(0, 3), min_size=1, max_size=40)), min_size=1, max_size=40
)


@given(ROWS, st.sampled_from([1, 4, 6]), st.booleans(), st.sampled_from([1, 2]))
def test_every_row_is_read_once_after_its_own_prefix(drawn, batch_size, long_base, parts):
    base = list(range(20)) if long_base else [7]
    rows = [[*base, *[group] * (3 * group), *rest] for group, rest in drawn]
    plan = make_plan(rows, [group for group, _ in drawn], batch_size * parts, parts)
    assert plan.batch_size % parts == 0
    assert plan.batch_size <= batch_size * parts
    if len(rows) == 1:
        assert plan.base == ()
    elif long_base:
        assert len(plan.base) >= 20
    seen = []
    for window in plan.windows:
        assert len(window.prefixes) <= batch_size * parts
        assert all(len(prefix) <= window.length for prefix in window.prefixes)
        assert bool(window.length) == bool(window.prefixes)
        for batch in window.batches:
            assert 0 < len(batch.rows) <= plan.batch_size
            for row, parent in zip(batch.rows, batch.parents):
                before = [*plan.base, *(window.prefixes[parent] if window.prefixes else ())]
                assert rows[row][: len(before)] == before
                assert 0 < len(rows[row]) - len(before) <= batch.length
            seen += batch.rows.tolist()
    assert sorted(seen) == list(range(len(rows)))


def query_rows(items: int, queries: int, query: int, item: int, base: int = 0):
    rng = np.random.default_rng(0)
    rows, groups = [], []
    for number in range(queries):
        prefix = [0] * base + rng.integers(1, 9, query).tolist()
        rows += [prefix + rng.integers(1, 9, item).tolist() for _ in range(items)]
        groups += [number] * items
    return rows, groups


def test_a_hundred_items_of_a_query_cost_a_quarter_and_less():
    rows, groups = query_rows(items=100, queries=8, query=200, item=30)
    plan = make_plan(rows, groups, 64)
    assert plan.padded_tokens < 800 * 230 / 4
    assert sum(len(window.prefixes) for window in plan.windows) == 8


def test_batches_are_filled_across_queries():
    rows, groups = query_rows(items=10, queries=64, query=60, item=14)
    (window,) = make_plan(rows, groups, 64).windows
    assert [len(batch.rows) for batch in window.batches] == [64] * 10


def test_instructions_are_read_once_also_where_queries_have_one_item():
    rows, groups = query_rows(items=1, queries=64, query=6, item=24, base=300)
    plan = make_plan(rows, groups, 64)
    assert plan.base == (0,) * 300
    assert plan.padded_tokens <= 320 + 64 * 32


def test_where_sharing_saves_nothing_rows_are_read_whole():
    rows, groups = query_rows(items=2, queries=20, query=4, item=26)
    assert all(not window.prefixes for window in make_plan(rows, groups, 64).windows)

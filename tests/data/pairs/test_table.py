"""A table as a sequence is the list of its pairs."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data import PairTable, write_pairs
from jax_rele.data.parquet import PAIRS, pairs_to_arrow, write_batches
from jax_rele.errors import UserError
from jax_rele.types import Item, Pair, Tag

ALL = [
    Pair(
        f"p{i}",
        f"query {i // 3}",
        Item(f"i{i}", "t" * (i % 5 + 1), attributes=(("a", str(i)),) * (i % 3)),
        label="Exact" if i % 2 else None,
        split=("train", "test")[i % 5 == 0],
        tags=(Tag("query", "x"),) * (i % 2) if i % 7 else None,
        long_tail=(None, True, False)[i % 3],
    )
    for i in range(50)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "pairs.parquet"
    write_batches(path, [pairs_to_arrow(ALL)], PAIRS, rows=8)
    return path


indices = st.integers(-len(ALL), len(ALL) - 1)
ends = st.none() | st.integers(-60, 60)


@settings(max_examples=200)
@given(st.data())
def test_it_is_the_list(path, data):
    rows = data.draw(st.none() | st.lists(st.integers(0, len(ALL) - 1)))
    expected = ALL if rows is None else [ALL[row] for row in rows]
    table = PairTable(path, rows, held_groups=data.draw(st.integers(1, 3)))
    assert len(table) == len(expected)
    where = slice(data.draw(ends), data.draw(ends), data.draw(st.none() | st.integers(1, 7) | st.integers(-7, -1)))
    assert table[where] == expected[where]
    for index in data.draw(st.lists(indices, max_size=5)):
        if -len(expected) <= index < len(expected):
            assert table[index] == table[np.int64(index)] == expected[index]
        else:
            with pytest.raises(IndexError):
                table[index]
    assert list(table) == expected
    assert list(reversed(table)) == expected[::-1]
    assert table.column("pair_id").to_pylist() == [pair.pair_id for pair in expected]
    mask = np.array([pair.label is not None for pair in expected], bool)
    assert list(table.select(mask)) == [pair for pair in expected if pair.label is not None]
    assert list(pickle.loads(pickle.dumps(table))) == expected


def test_few_row_groups_are_held_and_each_is_read_once_in_order(path, monkeypatch):
    table, reads = PairTable(path, held_groups=2), []
    read = table._read
    monkeypatch.setattr(table, "_read", lambda group: reads.append(group) or read(group))
    assert list(table) == ALL
    assert [table[i] for i in range(len(ALL) - 10, len(ALL))] == ALL[-10:]
    assert reads == [*range(7)]
    assert table[0] == ALL[0]
    assert reads == [*range(7), 0]
    assert len(table._cached_groups) == 2


def test_threads_read_the_same(path):
    table = PairTable(path, held_groups=1)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(table.__getitem__, [i * 7 % 50 for i in range(200)])) == [
            ALL[i * 7 % 50] for i in range(200)
        ]


def test_an_empty_table(tmp_path):
    write_pairs(tmp_path / "none.parquet", [])
    table = PairTable(tmp_path / "none.parquet")
    assert (len(table), list(table), table[:3]) == (0, [], [])


def test_an_earlier_versions_table(tmp_path):
    pq.write_table(pairs_to_arrow(ALL[:1]).drop_columns("long_tail"), tmp_path / "t.parquet")
    assert PairTable(tmp_path / "t.parquet")[0] == ALL[0]


def test_unusable_tables_are_named(tmp_path, path):
    other = tmp_path / "t.parquet"
    with pytest.raises(UserError, match=r"t\.parquet: no such table"):
        PairTable(other)
    other.write_bytes(b"not Parquet")
    with pytest.raises(UserError, match=r"t\.parquet: the table is damaged"):
        PairTable(other)
    pq.write_table(pa.table({"query": ["a"]}), other)
    with pytest.raises(UserError, match=r"t\.parquet: the table has no column \['pair_id'"):
        PairTable(other)
    whole = bytearray(path.read_bytes())
    whole[300] ^= 1
    other.write_bytes(whole)
    with pytest.raises(UserError, match=r"t\.parquet: the table is damaged"):
        list(PairTable(other))

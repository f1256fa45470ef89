"""A table of signals that is read by row says what the whole one says."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data import read_signals, take_signals, write_signals
from jax_rele.data.signals.lazy_table import SignalTable
from jax_rele.errors import UserError
from jax_rele.types import Signals, Span

LABELS, DIMENSIONS = ("Exact", "Irrelevant"), ("brand", "color")


def make(count, seed=0):
    rng = np.random.default_rng(seed)
    verdicts = rng.dirichlet(np.ones(3), (count, 2)).astype(np.float32)
    verdicts[::3] = np.nan
    return Signals(
        tuple(f"p{n}" for n in range(count)),
        rng.dirichlet(np.ones(2), count).astype(np.float32),
        verdicts,
        tuple((Span("title", 0, 1 + n, "brand"),) * (n % 2) for n in range(count)),
        tuple(f"brand: {n}" for n in range(count)),
        confidence=rng.random(count).astype(np.float32),
    )


def assert_same(one, two):
    assert (one.pair_ids, one.evidence, one.rationales) == (two.pair_ids, two.evidence, two.rationales)
    for name in ("label_probs", "verdict_probs", "confidence"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 39), max_size=10, unique=True))
def test_rows_are_those_of_the_whole_table(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("signals")
    write_signals(folder / "s.parquet", make(40), LABELS, DIMENSIONS)
    table = SignalTable(folder / "s.parquet", LABELS, DIMENSIONS, folder / "cache")
    assert len(table) == 40
    assert_same(table.take(rows), take_signals(read_signals(folder / "s.parquet", LABELS, DIMENSIONS), rows))
    assert list((folder / "cache").iterdir()) == []  # the copy has no name


def test_pairs_are_found_by_their_name(tmp_path):
    write_signals(tmp_path / "s.parquet", make(5000), LABELS, DIMENSIONS)
    table = SignalTable(tmp_path / "s.parquet", LABELS, DIMENSIONS, tmp_path)
    names = ["p4999", "unknown", "p0", "p17", ""]
    assert table.row_indices(names).tolist() == [4999, -1, 0, 17, -1]
    assert table.row_indices([]).tolist() == []


def test_a_table_of_other_labels_or_with_a_pair_twice_is_refused(tmp_path):
    write_signals(tmp_path / "s.parquet", make(4), LABELS, DIMENSIONS)
    with pytest.raises(UserError, match="the signals are for the labels"):
        SignalTable(tmp_path / "s.parquet", ("Good", "Bad"), DIMENSIONS, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        SignalTable(tmp_path / "nowhere.parquet", LABELS, DIMENSIONS, tmp_path)
    table = pq.read_table(tmp_path / "s.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(1, 1)]), tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"twice.parquet row 5 \(pair_id 'p1'\): the pair_id is there twice"):
        SignalTable(tmp_path / "twice.parquet", LABELS, DIMENSIONS, tmp_path)


def test_a_row_that_cannot_be_learnt_from_is_named_when_it_is_read(tmp_path):
    write_signals(tmp_path / "s.parquet", make(4), LABELS, DIMENSIONS)
    table = pq.read_table(tmp_path / "s.parquet")
    column = table.schema.get_field_index("label_probs")
    bad = pa.array([[0.5, 0.5], [0.9, 0.9], [1, 0], [0, 1]], table.schema.field(column).type)
    pq.write_table(table.set_column(column, table.schema.field(column), bad), tmp_path / "bad.parquet")
    table = SignalTable(tmp_path / "bad.parquet", LABELS, DIMENSIONS, tmp_path)
    table.take([0, 2])
    with pytest.raises(UserError, match=r"label_probs do not sum to 1"):
        table.take([0, 1])

"""Keys and columns that stand twice, and numbers of every type."""

import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jax_rele.data.sources.shards import read_pairs
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions

LABELS = ("Exact", "Irrelevant")


def read(path, label_map=None, require_label=False, **reading):
    return read_pairs(
        path,
        label_names=LABELS,
        label_map=label_map,
        require_label=require_label,
        reading=ReadOptions(**reading),
    )


def refusal(path):
    with pytest.raises(UserError) as error:
        read(path)
    return str(error.value)


def queries(pairs):
    return [pair.query for pair in pairs]


@pytest.mark.parametrize(
    "line", ['{"query": "a", "query": "b", "title": "t"}', '{"query": "a", "item": {"title": 1, "title": 1}}']
)
def test_a_key_that_stands_twice_is_a_bad_row(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{line}\n{{"query": "q", "title": "t"}}\n')
    pairs, bad = read(path)
    assert queries(pairs) == ["q"]
    assert re.fullmatch("not valid JSON: the key '(query|title)' twice", bad[0].reason)


def test_numbers_of_every_column_type_are_written_alike(tmp_path):
    ids, expected = [1001, None, 1003], ["1001", "1003"]
    kinds = [pa.int32(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(12, 2), pa.string()]
    for kind in kinds:
        if pa.types.is_float16(kind):
            column = pa.array(np.array([1001, np.nan, 1003], np.float16))
        else:
            column = pa.array([None if i is None else Decimal(i) for i in ids]).cast(kind)
        table = pa.table({"query": column, "title": column, "item_id": column, "label": column})
        pq.write_table(table, tmp_path / "t.parquet")
        pairs, bad = read(tmp_path / "t.parquet", label_map={"1001": "Exact", "1003": "Irrelevant"})
        assert queries(pairs) == [pair.item.id for pair in pairs] == expected, kind
        assert [pair.label for pair in pairs] == ["Exact", "Irrelevant"]
        assert len(bad) == 1
    path = tmp_path / "t.csv"
    path.write_text("query,title,item_id,label\n1001.0,1001.0,1001.0,1001.0\n,,,\n1003.0,1003.0,1003.0,1003.0\n")
    pairs, _ = read(path, label_map={"1001": "Exact", "1003": "Irrelevant"})
    assert queries(pairs) == [pair.item.title for pair in pairs] == expected
    pq.write_table(
        pa.table({"query": ["q"], "title": ["t"], "label": pa.array([0.1], pa.float32())}), tmp_path / "t.parquet"
    )
    assert read(tmp_path / "t.parquet", label_map={"0.1": "Exact"})[0][0].label == "Exact"


def test_a_table_with_a_column_twice_is_refused(tmp_path):
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["t"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["query", "query", "title"]), tmp_path / "t.parquet")
    assert "the table has ['query'] twice; give every column its own name" in refusal(tmp_path / "t.parquet")


def nested(kind):
    values = pa.array([0.1, 123456792.0], pa.float32()).cast(kind)
    names = pa.array(["w", "w"])
    return {
        "plain": pa.table({"attributes.w": values}),
        "struct": pa.table({"attributes": pa.StructArray.from_arrays([values], ["w"])}),
        "map": pa.table({"attributes": pa.MapArray.from_arrays([0, 1, 2], names, values)}),
        "list": pa.table(
            {"attributes": pa.StructArray.from_arrays([pa.ListArray.from_arrays([0, 1, 2], values)], ["w"])}
        ),
        "dictionary": pa.table({"attributes.w": values.dictionary_encode()}),
    }


@pytest.mark.parametrize("form", ["plain", "struct", "map", "list", "dictionary"])
def test_floats_of_32_bits_have_their_digits_wherever_they_are(tmp_path, form):
    table = nested(pa.float32())[form]
    texts = pa.array(["a", "b"])
    pq.write_table(table.append_column("query", texts).append_column("title", texts), tmp_path / "t.parquet")
    pairs, bad = read(tmp_path / "t.parquet")
    assert not bad
    assert [dict(pair.item.attributes)["w"] for pair in pairs] == ["0.1", "123456792"]


@pytest.mark.parametrize(("kind", "exact", "rounded"), [(pa.float32(), 16777215, 16777216), (pa.float16(), 2047, 2048)])
def test_ids_for_which_a_narrow_float_has_no_room_are_bad_rows(tmp_path, kind, exact, rounded):
    dtype = kind.to_pandas_dtype()
    ids = pa.array(np.array([exact, rounded], dtype))
    texts = pa.array(["a", "b"])
    pq.write_table(pa.table({"query": texts, "title": texts, "item_id": ids}), tmp_path / "t.parquet")
    (pair,), (bad,) = read(tmp_path / "t.parquet")
    assert pair.item.id == str(exact)
    assert "of a column too narrow to be exact; write ids as text" in bad.reason


@pytest.mark.parametrize(
    ("suffix", "cell"), [(".csv", "x" * 140_000), (".tsv", "x" * 140_000), (".csv", "x" * 100_001)]
)
def test_a_long_cell_is_a_text_that_is_too_long(tmp_path, suffix, cell):
    mark = "," if suffix == ".csv" else "\t"
    path = tmp_path / f"t{suffix}"
    path.write_text(f"query{mark}title\na{mark}{cell}\nb{mark}t\n")
    pairs, (bad,) = read(path, max_characters=100_000)
    assert queries(pairs) == ["b"]
    assert re.match("a text of .*characters.*data.max_characters", bad.reason)

"""Whole numbers in ids, labels and texts, by format: what the format can say decides what is a number."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jax_rele.data.rows import id_text
from jax_rele.data.sources.shards import read_pairs
from jax_rele.errors import UserError
from jax_rele.text import whole_number

NUMBERS = ["1001", "1001.0", "1001.00", "1001.000"]
WRITTEN = ["1.10", "9.50", "1e3", "2E-1", "-0.50", "0.1000"]
TEXTS = [*WRITTEN, "007.50", "007", "007.0", "1.0.0", "0012345678.50", "1,001.0", "v1.0", ".0", "1001."]


def row_of(value):
    return {"pair_id": value, "query": value, "item": {"id": value, "title": value}, "label": value}


def in_csv(path, value):
    path = path.with_suffix(".csv")
    names = ("pair_id", "item_id", "query", "title", "label")
    path.write_text(f"{','.join(names)}\n" + ",".join(f'"{value}"' if "," in value else value for _ in names) + "\n")
    return path


def in_tsv(path, value):
    path = path.with_suffix(".tsv")
    path.write_text("pair_id\titem_id\tquery\ttitle\tlabel\n" + "\t".join([value] * 5) + "\n")
    return path


def in_json_numbers(path, value):
    path = path.with_suffix(".jsonl")
    path.write_text(json.dumps(row_of("VALUE")).replace('"VALUE"', value) + "\n")
    return path


def in_json_texts(path, value):
    path = path.with_suffix(".json")
    path.write_text(json.dumps(row_of(value)) + "\n")
    return path


def in_parquet(path, value, kind):
    path = path.with_suffix(".parquet")
    column = pa.array([value if kind == pa.string() else Decimal(value)]).cast(kind)
    names = ["pair_id", "item_id", "query", "title", "label"]
    pq.write_table(pa.table(dict.fromkeys(names, column)), path)
    return path


FORMATS = {
    "csv": in_csv,
    "tsv": in_tsv,
    "json numbers": in_json_numbers,
    "json texts": in_json_texts,
    "parquet decimals": lambda path, value: in_parquet(path, value, pa.decimal128(12, 3)),
    "parquet floats": lambda path, value: in_parquet(path, value, pa.float64()),
    "parquet texts": lambda path, value: in_parquet(path, value, pa.string()),
}


def read(path, alias):
    (pair,), bad = read_pairs(path, label_names=["Exact", "Irrelevant"], label_map={alias: "Exact"})
    assert not bad
    return pair


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_whole_number_is_one_id_and_label_in_every_format_and_one_text_where_it_is_a_number(tmp_path, name, number):
    pair = read(FORMATS[name](tmp_path / "data", number), "1001")
    assert (pair.pair_id, pair.item.id, pair.label) == ("1001", "1001", "Exact")
    text = number if name.endswith("texts") else "1001"
    assert (pair.query, pair.item.title) == (text, text)


@pytest.mark.parametrize("name", ["csv", "json texts", "parquet texts"])
@pytest.mark.parametrize("text", TEXTS)
def test_what_no_float_looks_like_stays(tmp_path, name, text):
    pair = read(FORMATS[name](tmp_path / "data", text), text)
    assert (pair.pair_id, pair.item.id, pair.query, pair.item.title) == (text,) * 4
    assert pair.label == "Exact"


@pytest.mark.parametrize("number", [*WRITTEN, "-0", "-0.0", "-7.00", "9007199254740991.0"])
def test_a_number_of_json_is_the_text_that_a_cell_of_csv_is(tmp_path, number):
    aliases = {str(float(number)): "Exact", str(int(float(number))): "Exact", whole_number(number): "Exact"}
    pairs = []
    for name in ("json numbers", "csv"):
        (pair,), _ = read_pairs(FORMATS[name](tmp_path / "data", number), label_names=["Exact"], label_map=aliases)
        pairs.append(pair)
    assert len({(pair.query, pair.item.title, pair.label) for pair in pairs}) == 1
    # A JSON number with an exponent is its value as an id: Java writes 12345678 as 1.2345678E7.
    ids = [(pair.pair_id, pair.item.id) for pair in pairs]
    assert ids[0] == (ids[1] if number != "1e3" else ("1000", "1000"))


def test_numbers_of_json_are_values_where_they_are_quantities(tmp_path):
    path = tmp_path / "d.jsonl"
    row = (
        '{"query": "q", "title": "t", "item_id": 1.2345678E7, "label": 0.50, "long_tail": 1e0, "query_frequency": 1E3}'
    )
    path.write_text(row + "\n")
    (pair,), _ = read_pairs(path, label_names=["Exact"], label_map={"0.5": "Exact"})
    assert (pair.item.id, pair.label, pair.long_tail, pair.query_frequency) == ("12345678", "Exact", True, 1000)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_number_of_thousands_of_digits_is_a_text(tmp_path, form):
    path, digits = tmp_path / f"d.{form}", "7" * 5000 + ".0"
    path.write_text(
        f"query,title\nq,{digits}\n" if form == "csv" else json.dumps({"query": "q", "title": digits}) + "\n"
    )
    (pair,), _ = read_pairs(path, label_names=["Exact"])
    assert pair.item.title == digits


@pytest.mark.parametrize("name", ["csv", "tsv", "json numbers", "json texts"])
@pytest.mark.parametrize("number", ["9007199254740992.0", "12345678901234567.00", "1.2e+16", "-12345678901234567.0"])
def test_an_id_that_was_a_float_beyond_its_precision_is_a_bad_row(tmp_path, name, number):
    with pytest.raises(UserError, match=r"id .* is rounded, .*: save the column as text"):
        read(FORMATS[name](tmp_path / "data", number), number)


def test_the_sign_of_zero_is_no_part_of_a_number():
    assert [whole_number(text) for text in ("-0.0", "0.0", "-3.0", "-0", "-10", "10.50", "100")] == [
        *["0", "0", "-3", "0", "-10", "10.50", "100"]
    ]
    assert {id_text(value, "id") for value in (-0.0, 0, "0.00", Decimal("0.0"), "-0.0")} == {"0"}

"""Rows that are read a column at a time are the pairs that they are alone."""

import random

import numpy as np
import pyarrow as pa
import pytest

from jax_rele.data import RowError
from jax_rele.data.pairs import parsing
from jax_rele.data.pairs.facts import Parsing
from jax_rele.data.pairs.parsing import parse_rows
from jax_rele.types import ReadOptions

LABELS = ("Exact", "Substitute", "Irrelevant")
VALUES = (
    *(None, "", "  ", "x", "  pad\n", 0, 3, -1, 2.5, 3.0, 1e300, float("nan"), True, False, [], ["a", None, 1], {}),
    *("a\0b", "\0", "é", "\ud800", "\u200b", "a\u200bb", "\u2800", "\u3000wide", "two\nlines", "\x1c", "1001.0"),
    *("1.5E+15", "-0", "1.10", "<b>x</b>", "a &amp; b", "exact ", "Exact", "E", "valid", "trian", "yes", "7.0"),
    *('{"tokens": ["a"], "labels": ["B-x"]}', {"tokens": ["a"], "labels": ["O"]}, '{"a": 1}', {"a": ["b"]}, "x" * 150),
    *(12345678901234567890, "item-0123456789abcdef0123"),
)
COLUMNS = (
    *("pair_id", "query", "label", "locale", "split", "query_tags", "query_frequency", "long_tail", "more", "Query"),
    *("item.title", "item.attributes.size", "attributes", "title", "brand", "item_id", "Item", "item"),
)
INSIDE = ("id", "title", "brand", "color", "category", "bullets", "description", "attributes", "more", "Title")


def rows(seed, count=400):
    rng = random.Random(seed)
    numbered = []
    for number in range(1, count + 1):
        item = {"id": f"i{rng.randint(0, 9)}", "title": f"red shoe {rng.randint(0, 9)}", "brand": "café"}
        row = {"pair_id": f"p{number}", "query": f"shoe {rng.randint(0, 9)}", "item": item}
        row["label"] = rng.choice([*LABELS, None])
        for values in (row, item):
            if rng.random() < 0.2:
                del values[rng.choice(list(values))]
        for _ in range(rng.choice((0, 0, 1, 2))):
            row[rng.choice(COLUMNS)] = rng.choice(VALUES)
            item[rng.choice(INSIDE)] = rng.choice(VALUES)
        if rng.random() < 0.3 and isinstance(row.get("item"), dict):
            row |= row.pop("item")
        read = RowError("broken") if rng.random() < 0.05 else row
        numbered.append((2 * number, read, repr(row).encode("utf-8", "replace")))
    return numbered


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"html": "text", "max_characters": 120},
        {"max_characters": 20},
        {"fields": {"item": "product", "item.title": "title", "item.attributes.size": "more"}},
        {"fields": {"item.title": "item.brand", "query": "Query", "label": "item.more"}},
    ],
)
@pytest.mark.parametrize("with_split", [True, False])
def test_rows_give_the_same_alone(options, with_split, monkeypatch):
    settings = Parsing(ReadOptions(**options), {"E": "Exact"}, LABELS, with_split, 3, None if with_split else "test")
    source = rows(str(options))
    by_column = parse_rows(source, settings)
    monkeypatch.setattr(parsing, "find_layout", lambda *_: None)
    alone = parse_rows(source, settings)
    assert by_column.pairs.equals(alone.pairs)
    assert by_column.pairs.num_rows > 0
    assert by_column.bad == alone.bad
    assert by_column.bad
    assert by_column.counts == alone.counts
    for name, kind in parsing.FACTS.items():
        assert by_column.facts[name].dtype == kind == alone.facts[name].dtype
        np.testing.assert_array_equal(by_column.facts[name], alone.facts[name], err_msg=name)


def test_plain_rows_are_not_read_alone(monkeypatch):
    monkeypatch.setattr(parsing, "parse_row", None)
    plain = [
        (1, {"query": "shoe", "title": "red shoe", "label": "Exact"}, b""),
        (2, {"query": "schöner Schuh", "item": {"id": 7, "title": " shoe ", "bullets": ["a", "b"]}, "more": 1.5}, b""),
        (3, {"query": "shoe", "title": "blue shoe", "label": None}, b""),
    ]
    parsed = parse_rows(plain, Parsing(ReadOptions(), {}, LABELS, True, 0))
    assert parsed.pairs["query"].to_pylist() == ["shoe", "schöner Schuh", "shoe"]
    assert parsed.pairs["item"].to_pylist()[1] == {
        **{"id": "7", "title": "shoe", "brand": "", "color": "", "category": "", "bullets": "a\nb", "description": ""},
        "attributes": [],
    }
    assert parsed.facts["row"].tolist() == [1, 2, 3]
    assert parsed.facts["label"].tolist() == [0, -1, -1]
    assert parsed.counts["without_label_column"] == 1


def test_no_rows():
    parsed = parse_rows([], Parsing(ReadOptions(), {}, LABELS, True, 0))
    assert parsed.pairs.equals(pa.Table.from_pylist([], schema=parsing.PAIRS))
    assert parsed.first_columns is None
    assert not parsed.columns

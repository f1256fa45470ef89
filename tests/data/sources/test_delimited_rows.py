"""Rows of CSV and TSV with cells that are missing, have no column, or are quoted after a blank; and alike columns."""

import json
from collections import Counter

import pytest

from jax_rele.data.sources.files import SourceFile
from jax_rele.data.sources.readers import read_file
from jax_rele.data.sources.shards import read_pairs
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions

LABELS = ("Exact", "Irrelevant")


def write(path, text):
    path.write_text(text, "utf-8")
    return path


def read(path, **reading):
    return read_pairs(path, label_names=LABELS, reading=ReadOptions(**reading))


def notes_of(path, **reading):
    notes = Counter()
    rows = list(read_file(SourceFile(str(path), str(path)), ReadOptions(**reading), notes=notes))
    return len(rows), dict(notes)


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".csv", ";")])
def test_rows_without_their_last_cells_are_set_aside_counted_and_advised(tmp_path, suffix, delimiter):
    lines = [
        "query,title,label,brand,color",
        "tv,stand,Exact,Acme,red",
        "mug,cup,Exact,Acme",
        "hat,cap,Exact",
        "a,b,,,",
    ]
    path = write(tmp_path / f"data{suffix}", "\n".join(lines).replace(",", delimiter) + "\n")
    pairs, bad = read(path)
    assert [pair.query for pair in pairs] == ["tv", "a"]
    assert [one.row for one in bad] == [3, 4]
    assert all(one.reason.endswith("the row lacks its end: write empty cells too") for one in bad)
    assert notes_of(path) == (4, {"short_rows": 2})


def test_cells_in_columns_without_a_name_are_counted(tmp_path):
    path = write(tmp_path / "data.csv", ",query,title,,label\n0,tv,stand,,Exact\n,mug,cup,x,Exact\n,hat,cap,,Exact\n")
    pairs, bad = read(path)
    assert (len(pairs), bad) == (3, [])
    assert notes_of(path) == (3, {"unnamed_cells": 2})


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_a_cell_behind_the_named_columns_says_what_to_name(tmp_path, suffix, delimiter):
    text = "query,title,\ntv,stand,\nmug,cup,x\nhat,cap,x,y\n".replace(",", delimiter)
    pairs, bad = read(write(tmp_path / f"data{suffix}", text))
    assert [pair.query for pair in pairs] == ["tv"]
    assert "the header has no name for cell 3: name it" in bad[0].reason
    assert "no name" not in bad[1].reason


@pytest.mark.parametrize("header", ["query,title,label", "query, title, label"])
def test_quotes_after_a_blank_are_quotes_in_rows_too(tmp_path, header):
    lines = [header, 'tv, "a, b", Exact', 'mug,"c, d",Exact', 'hat, "e", Exact', 'cap,"g, ""h"" i",Exact']
    pairs, bad = read(write(tmp_path / "data.csv", "\n".join(lines) + "\n"))
    assert bad == []
    assert [pair.item.title for pair in pairs] == ["a, b", "c, d", "e", 'g, "h" i']
    assert {pair.label for pair in pairs} == {"Exact"}


def test_quotes_that_are_text_stay_text(tmp_path):
    lines = ["query,title,label", 'tv, "Comfy" stand,Exact', 'mug,5 "x" 3,Exact', 'hat,a "b",Exact']
    pairs, bad = read(write(tmp_path / "data.csv", "\n".join(lines) + "\n"))
    assert bad == []
    assert [pair.item.title for pair in pairs] == ['"Comfy" stand', '5 "x" 3', 'a "b"']


def test_quotes_after_a_blank_that_cannot_be_read_are_named(tmp_path):
    lines = ["query,title,label", "mug,cup,Exact", 'tv, "a, b" c, Exact', "hat,cap,Exact"]
    pairs, bad = read(write(tmp_path / "data.csv", "\n".join(lines) + "\n"))
    assert [pair.query for pair in pairs] == ["mug", "hat"]
    assert "a blank before a quote makes the quote part of the text: remove the blank" in bad[0].reason


@pytest.mark.parametrize(
    ("header", "alike"),
    [
        ("Query,QUERY,title", "['Query', 'QUERY']"),
        ("query,Title,TITLE", "['Title', 'TITLE']"),
        ("query,title,Item ID,item-id", "['Item ID', 'item-id']"),
        ("query,title,Brand,BRAND", "['Brand', 'BRAND']"),
    ],
)
def test_columns_that_differ_in_case_alone_are_both_named(tmp_path, header, alike):
    path = write(tmp_path / "data.csv", f"{header}\n" + ",".join("abcd"[: header.count(",") + 1]) + "\n")
    with pytest.raises(UserError) as error:
        read(path)
    assert f"{path}: the columns {alike} differ in their spelling alone" in str(error.value)
    assert "data.fields" in str(error.value)


def test_a_mapped_or_exact_column_beside_one_alike_is_read(tmp_path):
    path = write(tmp_path / "data.csv", "Query,QUERY,title,TITLE,Price,PRICE\na,b,c,d,1,2\n")
    (pair,), _ = read(path, fields={"query": "QUERY"})
    assert (pair.query, pair.item.title) == ("b", "c")


@pytest.mark.parametrize(
    ("row", "alike"),
    [
        ({"query": "a", "title": "b", "Brand": "c", "BRAND": "d"}, "['Brand', 'BRAND']"),
        ({"query": "a", "title": "b", "Item ID": "c", "ITEM_ID": "d"}, "['Item ID', 'ITEM_ID']"),
        ({"query": "a", "title": "b", "Split": "train", "SPLIT": "test"}, "['Split', 'SPLIT']"),
        ({"query": "a", "title": "b", "Pair ID": "1", "PAIR_ID": "2"}, "['Pair ID', 'PAIR_ID']"),
        ({"query": "a", "item": {"title": "b", "Color": "c", "COLOR": "d"}}, "['item.Color', 'item.COLOR']"),
    ],
)
def test_names_of_objects_that_differ_in_case_alone_make_a_bad_row(tmp_path, row, alike):
    path = write(tmp_path / "data.jsonl", json.dumps(row) + "\n" + '{"query": "a", "title": "b", "brand": "c"}\n')
    pairs, bad = read(path)
    assert [pair.item.brand for pair in pairs] == ["c"]
    assert f"the columns {alike} differ in their spelling alone" in bad[0].reason
    fields = {"item.id" if "Item ID" in row else "pair_id": "Item ID" if "Item ID" in row else "Pair ID"}
    if set(fields.values()) & set(row):
        assert len(read(path, fields=fields)[0]) == 2

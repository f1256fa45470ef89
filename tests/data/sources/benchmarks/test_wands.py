"""WANDS: every judgement once, features and hierarchy as attributes, a split that others can reproduce."""

import hashlib
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data import parse_row
from jax_rele.data.markup import plain_text
from jax_rele.data.sources import benchmarks
from jax_rele.data.sources.benchmarks import Wands, wands
from jax_rele.errors import UserError
from jax_rele.text import text_key

from .official import write_tab_separated, write_wands


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wands")
    write_wands(folder)
    return folder


def read(folder, name):
    """A file as the official notebook reads it."""
    return pd.read_csv(folder / name, sep="\t", dtype=str, keep_default_na=False)


def test_every_judgement_comes_once_as_pandas_reads_it(files, tmp_path):
    rows = list(benchmarks.rows("wands", str(files), tmp_path))
    joined = read(files, "label.csv").merge(read(files, "query.csv"), on="query_id")
    joined = joined.merge(read(files, "product.csv"), on="product_id").to_dict("records")
    by_id = {row["pair_id"]: row for row in rows}
    assert len(rows) == len(by_id) == len(joined) > 100
    for row in joined:
        example = by_id[row["id"]]
        expected = {"query": "query", "query_class": "query_class", "item_id": "product_id", "label": "label"}
        expected |= {"title": "product_name", "category": "product_class", "query_id": "query_id"}
        assert {ours: example[ours] for ours in expected} == {ours: row[theirs] for ours, theirs in expected.items()}
        assert example["description"] == plain_text(row["product_description"])
        assert json.loads(example["attributes"]) == wands.attributes(row["product_features"], row["category hierarchy"])
        for name in ("rating_count", "average_rating", "review_count"):
            assert example[name] == float(row[name]) if row[name] else example[name] != example[name]


def test_the_rows_are_pairs_with_attributes(files, tmp_path):
    names = ("Exact", "Partial", "Irrelevant")
    pairs = [parse_row(row, label_map={}, label_names=names) for row in benchmarks.rows("wands", str(files), tmp_path)]
    assert {pair.label for pair in pairs} == set(names)
    all_attributes = [dict(pair.item.attributes) for pair in pairs]
    assert any(attributes.get("material") == "steel\ngray wood" for attributes in all_attributes)
    assert any(attributes.get("category_level_2") == "Living Room Furniture" for attributes in all_attributes)
    assert any('"' in pair.query for pair in pairs)
    assert any(not pair.item.attributes for pair in pairs)


@pytest.mark.parametrize(
    ("features", "hierarchy", "expected"),
    [
        ("", "", {}),
        ("a : 1|b:2", "", {"a": "1", "b": "2"}),
        ("a:1|a : 2|a:1", "", {"a": ["1", "2"]}),
        ("base : steel| : gray wood|x: y", "", {"base": ["steel", "gray wood"], "x": "y"}),
        ("color : red|blue", "", {"color": ["red", "blue"]}),
        ("size : 3:4|time : ", "", {"size": "3:4"}),
        (": lost", "", {}),
        ("a : <b>x</b> &amp; y", "", {"a": "x & y"}),
        (
            "",
            "A / B & C / D",
            {"category_level_1": "A", "category_level_2": "B & C", "category_level_3": "D"}
            | {"category_hierarchy": "A / B & C / D"},
        ),
        ("", "Browse By Brand / ", {"category_level_1": "Browse By Brand", "category_hierarchy": "Browse By Brand"}),
    ],
)
def test_attributes(features, hierarchy, expected):
    assert wands.attributes(features, hierarchy) == expected


_word = st.text("abc xyz", min_size=1).map(str.strip).filter(bool)


@given(st.dictionaries(_word, st.lists(_word, min_size=1, unique=True)), st.randoms(use_true_random=False))
def test_features_come_back_whatever_their_order_and_blanks(values, random):
    parts = [f"{n}{random.choice([':', ' : '])}{v}" for n, texts in values.items() for v in texts]
    random.shuffle(parts)
    attributes = wands.attributes("|".join(parts))
    assert {n: {v} if isinstance(v, str) else set(v) for n, v in attributes.items()} == {
        n: set(v) for n, v in values.items()
    }


@given(st.text(st.characters(blacklist_categories=("Cs",))))
def test_the_split_is_the_documented_one(query):
    number = int(hashlib.sha256(text_key(query).encode()).hexdigest()[:16], 16)
    fractions = [("train", 6), ("validation", 2), ("test", 2)]
    position, expected = number * 10 / 2**64, None
    for name, tenths in fractions:
        if position >= 0:
            expected = name
        position -= tenths
    assert wands.split_of(query) == expected
    assert wands.split_of(f"  {query.upper().lower()} ") == wands.split_of(query.upper().lower())


def test_the_split_is_sixty_twenty_twenty():
    splits = [wands.split_of(f"query {i}") for i in range(5000)]
    assert [round(splits.count(name) / 5000, 1) for name in ("train", "validation", "test")] == [0.6, 0.2, 0.2]
    # Written down, so that the split stays what it is.
    fixed = {"salon chair": "train", "dinosaur": "train", "beds that have leds": "validation", "ombre rug": "test"}
    assert {query: wands.split_of(query) for query in fixed} == fixed


def test_no_query_is_in_two_splits(files, tmp_path):
    splits = {}
    for row in benchmarks.rows("wands", str(files), tmp_path):
        splits.setdefault(text_key(row["query"]), set()).add(row["split"])
    assert all(len(query_splits) == 1 for query_splits in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_of_several_with_one_id_the_first_counts_and_missing_ones_leave_empty_texts(tmp_path):
    asked, products, labels = write_wands(tmp_path)
    write_tab_separated(tmp_path / "query.csv", [{**asked[1], "query": "the first"}, *asked[1:]])
    first = products[1]["product_id"]
    write_tab_separated(tmp_path / "product.csv", [{**products[1], "product_name": "the first"}, *products[1:]])
    rows = {row["pair_id"]: row for row in benchmarks.rows("wands", str(tmp_path), tmp_path / "cache")}
    assert len(rows) == len(labels)
    for label in labels:
        row = rows[label["id"]]
        assert (row["query"] == "") == (label["query_id"] == asked[0]["query_id"])
        assert (row["query"] == "the first") == (label["query_id"] == asked[1]["query_id"])
        assert (row["title"] == "") == (label["product_id"] == "0")
        assert (row["title"] == "the first") == (label["product_id"] == first)
    (data_dir,) = (tmp_path / "cache" / "tfds").iterdir()
    metadata = Wands(data_dir=data_dir).info.metadata
    assert metadata["without_query"] == sum(row["query"] == "" for row in rows.values()) > 0
    assert metadata["without_product"] == sum(row["title"] == "" for row in rows.values()) > 0


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("product.csv", lambda text: text.replace("category hierarchy", "category_hierarchy"), "lacks the columns"),
        ("label.csv", lambda text: text + "1\t2\n", "cannot be read"),
        ("label.csv", lambda text: text.splitlines()[0] + "\n", "no judgement"),
        ("query.csv", lambda text: "", "cannot be read"),
    ],
)
def test_another_form_is_refused(tmp_path, name, change, message):
    write_wands(tmp_path)
    path = tmp_path / name
    path.write_text(change(path.read_text("utf-8")), "utf-8")
    with pytest.raises(UserError, match=f"{name}: .*{message}|{name}: {message}"):
        benchmarks.rows("wands", str(tmp_path), tmp_path / "cache")


def test_another_encoding_is_named(tmp_path):
    write_wands(tmp_path)
    path = tmp_path / "product.csv"
    path.write_bytes(path.read_bytes().replace(b"green", "grün".encode("latin-1")))
    with pytest.raises(UserError, match=r"product\.csv: line \d+ is not UTF-8; save the file in UTF-8"):
        benchmarks.rows("wands", str(tmp_path), tmp_path / "cache")


def test_a_quote_that_is_never_closed_is_named(tmp_path):
    write_wands(tmp_path)
    lines = (tmp_path / "label.csv").read_text("utf-8").splitlines(keepends=True)
    index = 20
    start, label = lines[index].rsplit("\t", 1)
    lines[index] = f'{start}\t"{label}'
    (tmp_path / "label.csv").write_text("".join(lines), "utf-8")
    with pytest.raises(UserError, match=r"label\.csv: a quote that is never closed swallows rows \(about line 21, "):
        list(benchmarks.rows("wands", str(tmp_path), tmp_path / "cache"))


def test_a_description_of_ten_megabytes_is_read(tmp_path):
    _, products, _ = write_wands(tmp_path)
    products[0]["product_description"] = "x" * 10_000_000
    write_tab_separated(tmp_path / "product.csv", products)
    rows = benchmarks.rows("wands", str(tmp_path), tmp_path / "cache")
    assert max(len(row["description"]) for row in rows if row["item_id"] == "0") == 10_000_000


def test_rows_make_the_files_official(files, tmp_path, monkeypatch):
    counts = {name: len(read(files, name)) for name in ("query.csv", "product.csv", "label.csv")}
    monkeypatch.setattr(Wands, "FILES", tuple(type(f)(f.name, f.url, f.columns, counts[f.name]) for f in Wands.FILES))
    list(benchmarks.rows("wands", str(files), tmp_path))
    (data_dir,) = (tmp_path / "tfds").iterdir()
    assert Wands(data_dir=data_dir).info.metadata["official"] is True

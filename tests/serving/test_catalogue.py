"""Searching in memory and by an index are the same search; BM25 finds words."""

import json

import numpy as np
import pytest

from jax_rele.deployment.index import build_index, read_items
from jax_rele.errors import UserError
from jax_rele.serving.catalogue import Bm25, open_search, read_queries
from jax_rele.serving.command import exact_search
from jax_rele.serving.refusals import BadRequest
from jax_rele.types import Item


def test_an_index_finds_what_a_comparison_of_all_items_finds(scorers, tower_bundle, items_file, tmp_path):
    scorer = scorers["two_tower"]
    items = read_items(items_file).items
    build_index(tower_bundle, items, tmp_path / "index")
    opened = open_search(tmp_path / "index", scorer.manifest, tower_bundle)
    assert [item.id for item in opened.items()] == [item.id for item in items]
    exact = exact_search(scorer, items)
    for vector in scorer.embed(["red shoes", "garden hose"], "query"):
        for filters in ({}, {"color": "Blue"}, {"color": "blue", "brand": "ACME"}, {"id": "red-1"}, {"color": "pink"}):
            ours, theirs = (search.nearest(vector, 5, filters) for search in (exact, opened))
            assert [item.id for item in ours.items] == [item.id for item in theirs.items]
            np.testing.assert_allclose(ours.products, theirs.products, atol=1e-5)
            np.testing.assert_allclose(ours.vectors, theirs.vectors, atol=1e-5)
    for search in (exact, opened):
        with pytest.raises(BadRequest, match=r"filters: .*colour"):
            search.nearest(vector, 5, {"colour": "x"})


def test_an_index_of_another_model_is_refused(scorers, tower_bundle, items_file, tmp_path):
    build_index(tower_bundle, read_items(items_file).items, tmp_path / "index")
    other = scorers["two_tower"].manifest.model_copy(update={"temperature": 9.0})
    with pytest.raises(UserError, match="another model"):
        open_search(tmp_path / "index", other, tower_bundle)


def test_bm25_prefers_rare_words_and_finds_nothing_without_any():
    items = [Item(str(n), title) for n, title in enumerate(("red shoes", "red shirt", "red hose", "RED hose; green"))]
    index = Bm25(items, ("title",))
    results = index.search("red green", 3)
    assert [item.id for item, _ in results] == ["3", "0", "1"]
    assert results[0][1] > results[1][1] == results[2][1] > 0
    assert [item.id for item, _ in index.search("Hose", 9)] == ["2", "3"]
    assert index.search("blue", 3) == index.search("!?", 3) == []
    assert Bm25([Item("a", "!")], ("title",)).search("red", 3) == []


def test_items_and_queries_are_distinct_and_in_order(tmp_path):
    file = tmp_path / "items.jsonl"
    rows = [{"title": "a", "id": "1"}, {"query": "q\u2028r", "item": {"title": "b", "id": "2"}}]
    rows += [{"query": "s", "item": {"title": "other", "id": "1"}}, {"query": "s", "item": {"title": "c"}}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_items(file)
    assert [item.title for item in read.items] == ["other", "b", "c"]
    assert read.queries == ("q\u2028r", "s")
    lines = tmp_path / "queries.txt"
    lines.write_text('red shoes\n\n {"query": "garden\\u2028hose"}\nred shoes\r\n')
    assert read_queries(lines) == ["red shoes", "garden\u2028hose"]
    lines.write_text(lines.read_text(), "utf-16")
    assert read_queries(lines) == ["red shoes", "garden\u2028hose"]
    assert len(read_items("sample").items) == 1524
    assert len(read_items("sample").queries) > 100

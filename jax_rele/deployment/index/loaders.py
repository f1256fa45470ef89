"""An index for other engines: a neutral Parquet table, PostgreSQL with pgvector, and Qdrant.

Both engines get the inner product as their measure, so they rank as the index does. A filter compares values in lower
case. Vectors of queries come from `Scorer.embed(queries, "query")`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jax_rele.data.parquet import ROWS, write_batches
from jax_rele.deployment.index.items import ITEMS
from jax_rele.deployment.index.search import Filters, Index
from jax_rele.errors import UserError
from jax_rele.text import text_key
from jax_rele.types import ITEM_FIELDS, Item

PGVECTOR_WIDTH = 2000
"""The widest vectors that pgvector's HNSW takes."""

_UUIDS = uuid.UUID("5f0c0f3e-6a53-4f0a-9a9e-0d6f3cf0a001")


def export_items(index: Index, path: str | Path) -> int:
    """Writes an index's items as a Parquet table; returns their number.

    Its columns are `id`, `vector` (E float32), the texts of the item, and `attributes`.

    Raises:
      UserError: the file cannot be written.
    """
    schema = pa.schema(
        [
            ITEMS.field("id"),
            pa.field("vector", pa.list_(pa.float32(), index.manifest.width), nullable=False),
            *(ITEMS.field(name) for name in (*ITEM_FIELDS, "attributes")),
        ]
    )

    def tables() -> Iterator[pa.Table]:
        for rows in _chunks(index, ROWS):
            table = index.contents.table.take(pa.array(rows))
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(index.contents.vectors[rows].ravel()), index.manifest.width
            )
            columns = [vectors if name == "vector" else table.column(name) for name in schema.names]
            yield pa.Table.from_arrays(columns, schema=schema)

    if Path(path).suffix != ".parquet":
        raise UserError(f"{path}: the export is a Parquet file; give a name that ends in .parquet")
    return write_batches(Path(path), tables(), schema)


def load_pgvector(index: Index, connection: Any, table: str = "items", *, batch: int = 500) -> None:
    """Puts an index's items into a table of PostgreSQL, in one transaction; items that the index lacks are deleted.

    The table has `id` (its key), `embedding`, the texts of the item and `attributes` (jsonb), and an HNSW index of
    inner products.

    Args:
      index: the index.
      connection: of psycopg 3; its server has the extension `vector`.
      table: its name; it is created if need be.
      batch: rows of a statement.

    Raises:
      UserError: psycopg is not installed, or the vectors are wider than pgvector indexes.
    """
    sql = _psycopg_sql()
    width = index.manifest.width
    if width > PGVECTOR_WIDTH:
        raise UserError(f"pgvector indexes at most {PGVECTOR_WIDTH} dimensions, the vectors have {width}")
    names = ["id", "embedding", *ITEM_FIELDS, "attributes"]
    types = ["text PRIMARY KEY", f"vector({width}) NOT NULL", *["text NOT NULL"] * len(ITEM_FIELDS), "jsonb NOT NULL"]
    columns = sql.SQL(", ").join(sql.SQL("{} " + kind).format(sql.Identifier(name)) for name, kind in zip(names, types))
    target, new = sql.Identifier(table), sql.Identifier(f"{table}_new")
    listed = sql.SQL(", ").join(map(sql.Identifier, names))
    updates = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in names[1:])
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        cursor.execute(sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(target, columns))
        cursor.execute(sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(new, columns))
        with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(new, listed)) as copy:
            for items, vectors in _batches(index, batch):
                for item, vector in zip(items, vectors):
                    texts = [getattr(item, name) for name in ITEM_FIELDS]
                    copy.write_row([item.id, _vector_text(vector), *texts, json.dumps(dict(item.attributes))])
        merge = "INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT (id) DO UPDATE SET {}"
        cursor.execute(sql.SQL(merge).format(target, listed, listed, new, updates))
        cursor.execute(
            sql.SQL("DELETE FROM {} AS old WHERE NOT EXISTS (SELECT 1 FROM {} AS new WHERE new.id = old.id)").format(
                target, new
            )
        )
        cursor.execute(
            sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (embedding vector_ip_ops)").format(
                sql.Identifier(f"{table}_embedding"), target
            )
        )


def search_pgvector(
    connection: Any, query_vector: np.ndarray, k: int, filters: Filters = (), table: str = "items"
) -> list[tuple[str, float]]:
    """(id, inner product) of the nearest items in a table of `load_pgvector`, best first.

    Args:
      connection: of psycopg 3.
      query_vector: [E].
      k: how many.
      filters: as `Index.search`, of texts alone.
      table: its name.
    """
    sql = _psycopg_sql()
    conditions, values = [sql.SQL("true")], []
    for name, value in _text_filters(filters):
        conditions.append(sql.SQL("lower(btrim({})) = lower(btrim(%s))").format(sql.Identifier(name)))
        values.append(value)
    # `<#>` is the negative inner product.
    query = sql.SQL(
        "SELECT id, -(embedding <#> %s::vector) FROM {} WHERE {} ORDER BY embedding <#> %s::vector LIMIT %s"
    ).format(sql.Identifier(table), sql.SQL(" AND ").join(conditions))
    vector = _vector_text(query_vector)
    with connection.transaction(), connection.cursor() as cursor:
        # Without it a filter is applied to the first 40 neighbours alone.
        cursor.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        cursor.execute(query, [vector, *values, vector, k])
        return [(name, float(product)) for name, product in cursor.fetchall()]


def load_qdrant(index: Index, client: Any, collection: str = "items", *, batch: int = 500) -> None:
    """Puts an index's items into a collection of Qdrant; points that the index lacks are deleted.

    A point's payload has `id`, the texts of the item, `attributes`, `folded`: the texts in lower case, for filters; and
    `load`, which names the call that wrote it.

    Args:
      index: the index.
      client: a `qdrant_client.QdrantClient`.
      collection: its name; it is created if need be.
      batch: points of a request.

    Raises:
      UserError: qdrant-client is not installed.
    """
    models = _qdrant_models()
    if not client.collection_exists(collection):
        vectors = models.VectorParams(size=index.manifest.width, distance=models.Distance.DOT)
        client.create_collection(collection, vectors_config=vectors)
    load = uuid.uuid4().hex
    for items, vectors in _batches(index, batch):
        points = [
            models.PointStruct(id=_point(item.id), vector=vector.tolist(), payload={**_payload(item), "load": load})
            for item, vector in zip(items, vectors)
        ]
        client.upsert(collection, points, wait=True)
    earlier = models.FieldCondition(key="load", match=models.MatchExcept(**{"except": [load]}))
    client.delete(collection, models.FilterSelector(filter=models.Filter(must=[earlier])), wait=True)


def search_qdrant(
    client: Any, query_vector: np.ndarray, k: int, filters: Filters = (), collection: str = "items"
) -> list[tuple[str, float]]:
    """(id, inner product) of the nearest items in a collection of `load_qdrant`, best first; see `search_pgvector`."""
    models = _qdrant_models()
    conditions = [
        models.FieldCondition(key=f"folded.{name}", match=models.MatchValue(value=text_key(value)))
        for name, value in _text_filters(filters)
    ]
    answer = client.query_points(
        collection,
        query=np.asarray(query_vector, np.float32).tolist(),
        limit=k,
        query_filter=models.Filter(must=conditions) if conditions else None,
        with_payload=["id"],
    )
    return [(point.payload["id"], float(point.score)) for point in answer.points]


def _batches(index: Index, size: int) -> Iterator[tuple[list[Item], np.ndarray]]:
    for rows in _chunks(index, size):
        yield index.items(rows), index.contents.vectors[rows]


def _chunks(index: Index, size: int) -> Iterator[np.ndarray]:
    rows = np.flatnonzero(index.contents.is_visible)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _text_filters(filters: Filters) -> Sequence[tuple[str, str]]:
    pairs = list(filters.items() if hasattr(filters, "items") else filters)
    for name, _ in pairs:
        if name not in ("id", *ITEM_FIELDS):
            raise UserError(f"filter {name}: items have no such text; there are id, {', '.join(ITEM_FIELDS)}")
    return pairs


def _payload(item: Item) -> dict[str, Any]:
    texts = {name: getattr(item, name) for name in ("id", *ITEM_FIELDS)}
    folded = {name: text_key(text) for name, text in texts.items()}
    return {**texts, "attributes": dict(item.attributes), "folded": folded}


def _point(item_id: str) -> str:
    # Qdrant's ids are numbers or UUIDs.
    return str(uuid.uuid5(_UUIDS, item_id))


def _vector_text(vector: np.ndarray) -> str:
    return "[" + ",".join(map(repr, np.asarray(vector, np.float32).tolist())) + "]"


def _psycopg_sql() -> Any:
    try:
        from psycopg import sql
    except ImportError:
        raise UserError("pgvector needs psycopg: pip install 'psycopg[binary]'") from None
    return sql


def _qdrant_models() -> Any:
    try:
        from qdrant_client import models
    except ImportError:
        raise UserError("Qdrant needs its client: pip install qdrant-client") from None
    return models

"""Searching an index: nearest items by inner product, and the order by score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jax_rele import extras
from jax_rele.deployment.index import graph
from jax_rele.deployment.index.contents import Contents, read_contents
from jax_rele.deployment.index.files import IndexManifest, check_model, read_index_manifest
from jax_rele.deployment.index.items import table_items
from jax_rele.deployment.scorer import Scorer
from jax_rele.errors import UserError
from jax_rele.text import is_visible, text_key
from jax_rele.types import ITEM_FIELDS, Item, Pair

PROPOSED = 4
"""Candidates for each result where the order of inner products is not that of scores."""

RERANKED = 50
"""Candidates that a cross-encoder reads by default."""

ATTRIBUTE = "attributes."

Filters = Mapping[str, str] | Sequence[tuple[str, str]]
"""Values by field: `brand`, `color`, ..., `id`, or `attributes.NAME`; pairs where a field occurs twice."""


@dataclass(frozen=True)
class Result:
    """An item that a search returns.

    Attributes:
      item: the item.
      score: expected gain in [0, 1], of the cross-encoder where there is one.
      inner_product: of the embeddings.
    """

    item: Item
    score: float
    inner_product: float


@dataclass(frozen=True)
class Index:
    """An index in memory. Threads may share one.

    Attributes:
      folder: where it was read.
      manifest: what it holds.
      contents: items and vectors.
    """

    folder: Path
    manifest: IndexManifest
    contents: Contents
    _storage: Any = field(repr=False)
    _links: Any = field(repr=False)
    _delta: Any = field(repr=False)

    def __len__(self) -> int:
        return self.manifest.items

    def search(
        self, query_vectors: np.ndarray, k: int, filters: Filters = ()
    ) -> tuple[list[list[str]], np.ndarray, list[list[Item]]]:
        """The nearest items by inner product.

        Args:
          query_vectors: [Q, E], or [E] for one.
          k: at most this many items for each.
          filters: values that an item's fields must have, in upper or lower case alike.

        Returns:
          For each query the ids, best first; the [Q, k] inner products, -inf where there are fewer items; the items.

        Raises:
          UserError: k is below 1, or no item has a field of that name.
          ValueError: vectors of another width.
        """
        products, rows = self.nearest(query_vectors, k, filters)
        items = [self.items(line) for line in rows]
        return [[item.id for item in line] for line in items], products, items

    def nearest(self, query_vectors: np.ndarray, k: int, filters: Filters = ()) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, the [Q, k] inner products and rows, -1 where there are fewer items."""
        queries = np.ascontiguousarray(np.atleast_2d(query_vectors), np.float32)
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}")
        if queries.ndim != 2 or queries.shape[1] != self.manifest.width:
            raise ValueError(f"query vectors must be [Q, {self.manifest.width}], got {list(queries.shape)}")
        k = min(k, self.manifest.items)
        chosen = self.matching(filters)
        base = self.manifest.rows
        visible = None if chosen[:base].all() else chosen[:base]
        ef = self.manifest.ef_search
        products, rows = graph.search(self._links, self._storage, queries, k, ef, visible)
        products = np.where(rows < 0, -np.inf, products)
        if self._delta is not None:
            others, delta = graph.search(None, self._delta, queries, k, 0, chosen[base:])
            products = np.concatenate([products, np.where(delta < 0, -np.inf, others)], axis=1)
            rows = np.concatenate([rows, np.where(delta < 0, -1, delta + base)], axis=1)
        # Equal products are in the order of the rows, so that the same search gives the same list.
        order = np.lexsort((rows, -products), axis=1)[:, :k]
        return np.take_along_axis(products, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def matching(self, filters: Filters = ()) -> np.ndarray:
        """[rows] bool: which rows a search with these filters may return.

        Raises:
          UserError: no item has a field of that name.
        """
        chosen = self.contents.is_visible
        for name, value in filters.items() if isinstance(filters, Mapping) else filters:
            codes, values = self._codes(name)
            chosen = chosen & (codes == values.get(_folded(value), -2))
        return chosen

    def items(self, rows: Sequence[int] | np.ndarray) -> list[Item]:
        """The items of rows; rows below 0 are left out."""
        return table_items(self.contents.table.take(pa.array([int(row) for row in rows if row >= 0], pa.int64())))

    @cached_property
    def _attributes(self) -> list[dict[str, str]]:
        return [
            {_folded(name): value for name, value in row}
            for row in self.contents.table.column("attributes").to_pylist()
        ]

    @cached_property
    def _known_codes(self) -> dict[str, tuple[np.ndarray, dict[str, int]]]:
        return {}

    def _codes(self, name: str) -> tuple[np.ndarray, dict[str, int]]:
        """[rows] a number for each value of a field, -1 where there is none; and the number of each value."""
        if name not in self._known_codes:
            if name in ("id", *ITEM_FIELDS):
                values = self.contents.table.column(name).to_pylist()
            elif name.startswith(ATTRIBUTE):
                key = _folded(name.removeprefix(ATTRIBUTE))
                values = [row.get(key, "") for row in self._attributes]
                if not any(values):
                    raise UserError(f"--filter {name}: no item has this attribute")
            else:
                raise UserError(
                    f"--filter {name}: items have no such field; there are id, {', '.join(ITEM_FIELDS)} and "
                    f"{ATTRIBUTE}NAME"
                )
            numbers: dict[str, int] = {}
            folded = [_folded(value) for value in values]
            codes = [numbers.setdefault(value, len(numbers)) if value else -1 for value in folded]
            self._known_codes[name] = (np.array(codes, np.int64), numbers)
        return self._known_codes[name]


def open_index(path: str | Path) -> Index:
    """Reads an index into memory.

    Raises:
      UserError: the folder is no index, or it is damaged; or the extra `deploy` is not installed.
    """
    extras.require("deploy", "indexes", "faiss")
    folder = Path(path)
    number = read_index_manifest(folder, check=False).number
    try:
        return _open(folder)
    except UserError:
        if read_index_manifest(folder, check=False).number == number:
            raise
        return _open(folder)  # it was changed meanwhile


def _open(folder: Path) -> Index:
    manifest = read_index_manifest(folder)
    contents = read_contents(folder, manifest)
    storage = graph.flat(contents.vectors[: manifest.rows])
    links = None
    if manifest.kind == "hnsw":
        name = manifest.file("graph", ".faiss")
        if name is None:
            raise UserError(f"{folder}: damaged: the index has no graph; build it again")
        links = graph.read(folder / name, storage)
    delta = graph.flat(contents.vectors[manifest.rows :]) if manifest.delta_rows else None
    return Index(folder, manifest, contents, storage, links, delta)


def search_texts(
    index: Index,
    scorer: Scorer,
    queries: Sequence[str],
    k: int,
    filters: Filters = (),
    *,
    reranker: Scorer | None = None,
    candidates: int = 0,
) -> list[list[Result]]:
    """The best items for queries, in the order of scores.

    Where a two-tower's score need not rise with the inner product, four candidates for each result are proposed by
    inner product, and the score decides.

    Args:
      index: the index.
      scorer: the two-tower that built it.
      queries: at least one text.
      k: at most this many results for each.
      filters: as `Index.search`.
      reranker: a cross-encoder that reads the first `candidates` results and orders them anew.
      candidates: for the reranker; by default 50, or k if that is more.

    Raises:
      UserError: the index belongs to another model, k is below 1, or a filter names no field.
    """
    check_model(index.folder, index.manifest, scorer.manifest, "the bundle given")
    if k < 1:
        raise UserError(f"-k: must be at least 1, got {k}")
    if any(not is_visible(query) for query in queries):
        raise UserError("the query is empty; give its text")
    for reason in scorer.unreadable(queries).values():
        raise UserError(f"query: {reason}")
    n = max(candidates or RERANKED, k) if reranker is not None else k
    proposed = n if scorer.manifest.score_rises else PROPOSED * n
    vectors = scorer.embed(queries, "query")
    products, rows = index.nearest(vectors, proposed, filters)
    results: list[list[Result]] = []
    for query, vector, line, values in zip(queries, vectors, rows, products):
        seen = line >= 0
        line, values = line[seen], values[seen]
        if not len(line):
            results.append([])
            continue
        others = np.ascontiguousarray(index.contents.vectors[line])
        scores = scorer.compare(np.repeat(vector[None], len(line), axis=0), others).scores
        order = np.lexsort((-values, -scores))[:n]
        if reranker is not None:
            items = index.items(line[order])
            scores[order] = reranker.predict([Pair("", query, item) for item in items]).scores
            order = order[np.argsort(-scores[order], kind="stable")]
        order = order[:k]
        items = index.items(line[order])
        results.append([Result(*each) for each in zip(items, scores[order].tolist(), values[order].tolist())])
    return results


def _folded(value: str) -> str:
    return text_key(value)

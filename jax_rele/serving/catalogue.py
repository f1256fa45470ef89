"""The items that can be searched: by inner product of a two-tower's embeddings, and by BM25."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jax_rele.data.rows import unique_keys
from jax_rele.data.sources.readers import text_lines
from jax_rele.deployment.bundle import Manifest
from jax_rele.errors import UserError
from jax_rele.serving.refusals import BadRequest
from jax_rele.text import lexical_words, text_key
from jax_rele.types import ITEM_FIELDS, Item

Filters = Mapping[str, str]
"""Field, or `attributes.NAME` -> the value that an item has there, in upper or lower case alike."""

_ATTRIBUTE = "attributes."


@dataclass(frozen=True)
class Nearest:
    """What a search found.

    Attributes:
      items: N items, best first.
      products: [N] inner products of their embeddings with the query's.
      vectors: [N, E] their embeddings.
    """

    items: Sequence[Item]
    products: np.ndarray
    vectors: np.ndarray


class Search(Protocol):
    """Finds items by the embedding of a query."""

    def nearest(self, vector: np.ndarray, k: int, filters: Filters) -> Nearest:
        """At most `k` items for an [E] embedding. Raises BadRequest for a field that cannot be filtered."""


@dataclass(frozen=True)
class ExactSearch:
    """Items in memory, all of which are compared.

    Attributes:
      items: N items.
      vectors: [N, E] their embeddings.
    """

    items: Sequence[Item]
    vectors: np.ndarray

    def nearest(self, vector: np.ndarray, k: int, filters: Filters) -> Nearest:
        """The `k` items with the largest inner products among those that pass the filters; ties in their order."""
        check_filters(filters)
        rows = np.array([row for row, item in enumerate(self.items) if not filters or passes(item, filters)], int)
        products = self.vectors[rows] @ vector
        best = np.argsort(-products, kind="stable")[:k]
        return Nearest([self.items[row] for row in rows[best]], products[best], self.vectors[rows[best]])


@dataclass(frozen=True)
class IndexSearch:
    """An index of `jax_rele.deployment.index`."""

    index: Any

    def nearest(self, vector: np.ndarray, k: int, filters: Filters) -> Nearest:
        """The `k` nearest items of the index that pass the filters."""
        try:
            products, rows = self.index.nearest(vector, k, filters)
        except UserError as error:
            raise BadRequest(f"filters: {str(error).removeprefix('--filter ')}") from None
        exists = rows[0] >= 0
        rows = rows[0][exists]
        return Nearest(self.index.items(rows), products[0][exists], self.index.contents.vectors[rows])

    def items(self) -> list[Item]:
        """Every item that a search may return."""
        return self.index.items(np.flatnonzero(self.index.contents.is_visible))


def open_search(path: Path, manifest: Manifest, bundle: Path) -> IndexSearch:
    """An index on disk. Raises UserError where it is damaged, or belongs to another bundle."""
    from jax_rele.deployment.index import open_index  # type: ignore[import-not-found,unused-ignore]
    from jax_rele.deployment.index.files import check_model  # type: ignore[import-not-found,unused-ignore]

    index = open_index(path)
    check_model(path, index.manifest, manifest, bundle)
    return IndexSearch(index)


class Bm25:
    """BM25 of items' texts.

    Args:
      items: at least one.
      fields: which of their texts count.
    """

    def __init__(self, items: Sequence[Item], fields: Sequence[str]):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets its own logger to DEBUG
        self._items = items
        self._index = bm25s.BM25(backend="numpy")  # the default backend depends on what else is installed
        corpus = [lexical_words(" ".join(text for _, text in item.texts(fields))) for item in items]
        self._is_empty = not any(corpus)
        if not self._is_empty:
            self._index.index(corpus, show_progress=False)

    def search(self, query: str, k: int) -> list[tuple[Item, float]]:
        """At most `k` items that share a word with the query, and their scores, best first; ties in their order."""
        asked = lexical_words(query)
        if not asked or self._is_empty:
            return []
        scores = self._index.get_scores(asked)
        best = np.argsort(-scores, kind="stable")[:k]
        return [(self._items[row], float(scores[row])) for row in best if scores[row] > 0]


def passes(item: Item, filters: Filters) -> bool:
    """Whether an item has the wanted value in every field that is filtered."""
    attributes = {text_key(name): text for name, text in item.attributes}
    for field, value in filters.items():
        is_attribute = field.startswith(_ATTRIBUTE)
        text = attributes.get(text_key(field.removeprefix(_ATTRIBUTE)), "") if is_attribute else getattr(item, field)
        if not text or text_key(text) != text_key(value):
            return False
    return True


def check_filters(filters: Filters) -> None:
    """Raises BadRequest for a field that cannot be filtered."""
    for field in filters:
        if field not in ("id", *ITEM_FIELDS) and not (field.startswith(_ATTRIBUTE) and len(field) > len(_ATTRIBUTE)):
            known = ", ".join(("id", *ITEM_FIELDS))
            raise BadRequest(f"filters: there is no field {field!r:.60}; there are {known} and attributes.NAME")


def read_queries(path: str | Path) -> list[str]:
    """The distinct lines of a text file, or the `query` of each row of JSON lines.

    Raises:
      UserError: the file cannot be read, a row has no query, or there is none.
    """
    queries: dict[str, None] = {}
    for number, line in enumerate(text_lines(path), 1):
        text: object = line
        if line.lstrip().startswith("{"):
            try:
                text = json.loads(line, object_pairs_hook=unique_keys)["query"]
            except (ValueError, KeyError, RecursionError):
                text = None
        if not isinstance(text, str):
            raise UserError(f"{path}, row {number}: no JSON object with a query; write one query a line")
        if text.strip():
            queries.setdefault(text.strip())
    if not queries:
        raise UserError(f"{path}: holds no query; write one query a line")
    return list(queries)

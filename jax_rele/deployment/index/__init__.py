"""Indexes of item vectors: built from a two-tower's bundle, changed without rebuilding, searched with filters."""

from jax_rele.deployment.index.build import build_index
from jax_rele.deployment.index.change import compact_index, delete_items, update_index
from jax_rele.deployment.index.items import read_items
from jax_rele.deployment.index.search import Index, Result, open_index, search_texts

__all__ = [
    "Index",
    "Result",
    "build_index",
    "compact_index",
    "delete_items",
    "open_index",
    "read_items",
    "search_texts",
    "update_index",
]

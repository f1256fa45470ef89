"""The HNSW graph of FAISS: built on one set of vectors, which it shares with exact search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jax_rele.errors import UserError
from jax_rele.io import atomic_path

LINKS = 32
"""Links of an item on each level (M)."""

EF_CONSTRUCTION = 200
EF_SEARCH = (64, 128, 256, 512, 1024)
"""Neighbours that a search keeps in view: the first that reaches the recall is used."""

LEAST_RECALL = 0.98
"""Of the 10 exact neighbours that the graph has to find, on average over queries."""

QUERIES = 256
"""Queries on which recall is measured when a graph is built."""


def build(vectors: np.ndarray) -> Any:
    """A graph of [N, E] float32 vectors by inner product."""
    faiss = _faiss()
    links = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    links.hnsw.efConstruction = EF_CONSTRUCTION
    links.add(np.ascontiguousarray(vectors))
    return links


def choose_ef(links: Any, vectors: np.ndarray, queries: np.ndarray) -> tuple[int, float]:
    """The least of `EF_SEARCH` with which the graph reaches the recall, or the largest; and the recall@10.

    Args:
      links: the graph of `vectors`.
      vectors: [N, E].
      queries: [Q, E].
    """
    exact = flat(vectors).search(queries, min(10, len(vectors)))[0]
    recall = 0.0
    for ef in EF_SEARCH:
        scores = links.search(queries, exact.shape[1], params=_parameters(ef))[0]
        # By inner products and not by rows, as equal items may stand for each other.
        recall = float((scores >= exact[:, -1:] - 1e-6).mean())
        if recall >= LEAST_RECALL:
            return ef, recall
    return EF_SEARCH[-1], recall


def flat(vectors: np.ndarray) -> Any:
    """An exact index of [N, E] float32 vectors by inner product."""
    index = _faiss().IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def writer(links: Any) -> Callable[[Path], None]:
    """What writes a graph without its vectors."""
    faiss = _faiss()

    def write(path: Path) -> None:
        with atomic_path(path) as temporary:
            try:
                faiss.write_index(links, str(temporary), faiss.IO_FLAG_SKIP_STORAGE)
            except RuntimeError as error:  # FAISS says a full disk in words
                raise OSError(str(error)) from error

    return write


def read(path: Path, storage: Any) -> Any:
    """Reads a graph and gives it its vectors.

    Raises:
      UserError: the file is damaged, or is the graph of other vectors.
    """
    faiss = _faiss()
    try:
        links = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE)
    except RuntimeError:
        raise UserError(f"{path}: damaged; build the index again") from None
    if (links.ntotal, links.d) != (storage.ntotal, storage.d):
        raise UserError(f"{path}: is the graph of {links.ntotal} items, not {storage.ntotal}; build the index again")
    links.storage, links.own_fields = storage, False
    return links


def search(
    links: Any | None, storage: Any, queries: np.ndarray, k: int, ef: int, chosen: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The best rows for queries, by the graph where it is of use, otherwise exactly.

    Args:
      links: the graph; None for exact search.
      storage: the exact index.
      queries: [Q, E].
      k: rows for each.
      ef: of the graph.
      chosen: [N] bool, which rows may be returned; None for all.

    Returns:
      [Q, k] inner products and rows; rows are -1 where there are no more.
    """
    selector = None
    if chosen is not None:
        bits = np.packbits(chosen, bitorder="little")
        selector = _faiss().IDSelectorBitmap(bits)
        # The graph has to pass by the rows that are not chosen.
        ef = int(ef / max(float(chosen.mean()), 1e-9))
    if links is None or max(ef, k) > EF_SEARCH[-1]:
        parameters = None if selector is None else _faiss().SearchParameters(sel=selector)
        return storage.search(queries, k, params=parameters)
    return links.search(queries, k, params=_parameters(max(ef, k), selector))


def _parameters(ef: int, selector: Any = None) -> Any:
    return _faiss().SearchParametersHNSW(efSearch=ef, sel=selector)


def _faiss() -> Any:
    # Its stubs lack what its Python layer adds.
    import faiss

    return faiss

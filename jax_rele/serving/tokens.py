"""Texts of a request to tokens; texts that cannot be read as they are asked to be are refused by their path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jax_rele.deployment.scorer import Scorer
from jax_rele.serving.refusals import BadRequest
from jax_rele.text import clean_text
from jax_rele.types import Pair

Where = Callable[[int, str], str]
"""Index of a pair and its side, `query` or `item` -> the path of that text in a request."""


def query_and(items: str) -> Where:
    """Names the texts of a request with one query and a list of items."""
    return lambda index, side: "query" if side == "query" else f"{items}.{index}"


def distinct_names(
    where: Where | None, query_of: np.ndarray, item_of: np.ndarray
) -> tuple[Callable[[int], str], Callable[[int], str] | None]:
    """What names a distinct query, and a distinct item, by the first pair that it is of; see `Service.predict`."""
    if where is None:
        return (lambda number: "query"), None
    name, sides = where, {"query": query_of, "item": item_of}
    by_query, by_item = (
        lambda number, side=side: name(int(np.argmax(sides[side] == number)), side) for side in ("query", "item")
    )
    return by_query, by_item


def cross_tokens(
    scorer: Scorer,
    pairs: Sequence[Pair],
    item_tokens: int,
    whole: bool,
    where: Where | None,
    losses: list[np.ndarray],
) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens that a cross-encoder reads of pairs, and their types, see `Service.predict`."""
    rows, types = scorer.pair_rows(pairs, losses)
    for index, (side, reason) in scorer.unreadable_pairs((rows, types), pairs).items():
        if side == "query" or where is not None:
            raise BadRequest(f"{where(index, side) if where else side}: {reason}")
    markers = rows[0][-1:]
    if whole:
        _refuse_cut(scorer, pairs)
    if item_tokens:
        for number, (row, kinds) in enumerate(zip(rows, types)):
            most = kinds.index(1) + item_tokens
            if len(row) - len(markers) > most:
                rows[number], types[number] = [*row[:most], *markers], kinds[: most + len(markers)]
    return rows, types


def tower_tokens(
    scorer: Scorer,
    texts: Sequence[str],
    side: str,
    item_tokens: int,
    whole: bool,
    where: Callable[[int], str] | None,
    losses: list[np.ndarray],
) -> list[list[int]]:
    """The tokens that a two-tower reads of texts. `where` names a text; None to read those that it knows nothing of."""
    rows = scorer.token_rows(texts, side, losses)
    if where is not None:
        for index, reason in scorer.unreadable_rows(rows, texts).items():
            raise BadRequest(f"{where(index)}: {reason}")
    if whole:
        _refuse_long(scorer, texts, side)
    if item_tokens:
        rows = [row if len(row) <= item_tokens + 2 else [*row[: item_tokens + 1], row[-1]] for row in rows]
    return rows


def _refuse_cut(scorer: Scorer, pairs: Sequence[Pair]) -> None:
    manifest = scorer.manifest
    most = manifest.query_length + manifest.item_length - (scorer.tokenizer.num_special_tokens_to_add(True) or 3)
    queries = _lengths(scorer, [pair.query for pair in pairs])
    items = _lengths(scorer, [scorer.item_text(pair.item) for pair in pairs])
    for lengths in zip(queries, items):
        _refuse_more("query and item", sum(lengths), most)


def _refuse_long(scorer: Scorer, texts: Sequence[str], side: str) -> None:
    manifest = scorer.manifest
    most = manifest.query_length if side == "query" else manifest.item_length + 1
    for length in _lengths(scorer, texts):
        _refuse_more(side, length, most - (scorer.tokenizer.num_special_tokens_to_add(False) or 2))


def _refuse_more(name: str, length: int, most: int) -> None:
    if length > most:
        raise BadRequest(f"{name}: {length} tokens are more than {most}, and truncate is false", 413, "too_long")


def _lengths(scorer: Scorer, texts: Sequence[str]) -> list[int]:
    cleaned = [clean_text(text) for text in texts]
    return list(map(len, scorer.tokenizer(cleaned, add_special_tokens=False, verbose=False)["input_ids"]))

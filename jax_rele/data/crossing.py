"""Unlabelled pairs for the teacher to judge: training queries crossed with other items."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_rele.data.schema import stable_id
from jax_rele.data.splits import normalise_query, words
from jax_rele.types import Item, Pair

_LEXICAL_FIELDS = ("title", "brand", "color", "category")


def cross(
    query_pairs: Sequence[Pair],
    catalogue: Sequence[Item],
    per_query: int,
    seed: int,
    *,
    lexical_share: float = 0.5,
) -> list[Pair]:
    """Pairs every query with other items: some that BM25 (Robertson & Zaragoza, 2009) finds plausible, some at random.

    Where fewer items than wanted share a word with the query, random ones take their place; where the catalogue runs
    out, a query gets fewer pairs. The result does not depend on the order of the arguments.

    Args:
      query_pairs: the judged pairs of the training split; their queries are crossed, each (normalised) query once.
      catalogue: the items to choose from, those of the training split; of several with one id one counts.
      per_query: pairs for each query.
      seed: another seed gives other random items.
      lexical_share: share of `per_query`, from 0 to 1, that BM25 chooses by title, brand, color and category.

    Returns:
      Pairs with `label` None, `split` `train`, the tags of their query, and a `pair_id` that starts with `x-`; those of
      a query lie together. An item that is judged for a query is never paired with it.

    Raises:
      ValueError: `per_query` is negative or `lexical_share` lies outside [0, 1].
    """
    if per_query < 0 or not 0 <= lexical_share <= 1:
        raise ValueError(f"need per_query >= 0 and 0 <= lexical_share <= 1, got {per_query} and {lexical_share}")
    # by content, so that neither the order of the items nor doubles that differ matter
    in_order = sorted(catalogue, key=lambda item: (item.id, repr(item)))
    items = list({item.id: item for item in in_order}.values())
    positions = {item.id: i for i, item in enumerate(items)}
    texts = [words(" ".join(text for _, text in item.texts(_LEXICAL_FIELDS))) for item in items]
    index = None
    if any(texts):
        # Not at the top: to import it runs a computation, and processes join their run before any.
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets its own logger to DEBUG
        index = bm25s.BM25(backend="numpy")  # the default backend depends on what else is installed
        index.index(texts, show_progress=False)
    by_query: dict[str, list[Pair]] = defaultdict(list)
    for pair in sorted(query_pairs, key=lambda pair: pair.pair_id):
        by_query[normalise_query(pair.query)].append(pair)
    crossed = []
    for query, group in by_query.items():
        # the first pair that somebody tagged, so that the tags fit the spelling of the query
        model = next((pair for pair in group if pair.tags is not None), group[0])
        excluded = {positions[pair.item.id] for pair in group if pair.item.id in positions}
        chosen = _lexical(index, words(query), excluded, round(lexical_share * per_query))
        chosen += _random(len(items), excluded | set(chosen), per_query - len(chosen), f"{seed} {query}")
        crossed += [
            Pair(
                pair_id=stable_id("x", query, items[i].id),
                query=model.query,
                item=items[i],
                locale=model.locale,
                split="train",
                tags=model.tags,
                query_frequency=model.query_frequency,
            )
            for i in chosen
        ]
    return crossed


def _lexical(index: Any, query: list[str], excluded: set[int], n: int) -> list[int]:
    """The n best items by BM25, ties by position; only items that share a word with the query."""
    if index is None or not query:
        return []
    scores = index.get_scores(query)
    hits = np.flatnonzero(scores > 0)
    ranked = hits[np.argsort(-scores[hits], kind="stable")]
    return [int(i) for i in ranked[: n + len(excluded)] if int(i) not in excluded][:n]


def _random(n_items: int, excluded: set[int], n: int, key: str) -> list[int]:
    """n positions outside `excluded`, or all of them if they are fewer; `key` alone decides which."""
    rng = np.random.default_rng(list(hashlib.blake2b(key.encode()).digest()))
    drawn = rng.choice(n_items, min(n_items, n + len(excluded)), replace=False) if n_items else []
    return [int(i) for i in drawn if int(i) not in excluded][:n]

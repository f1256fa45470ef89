"""Unlabelled pairs for the teacher to judge: training queries with items that nobody judged for them."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jax_rele.data.rows import stable_id
from jax_rele.text import lexical_words, query_id, text_key
from jax_rele.types import Item, Pair

_LEXICAL_FIELDS = ("title", "brand", "color", "category")


def candidates(
    judged: Sequence[Pair],
    catalogue: Sequence[Item],
    per_query: int,
    seed: int,
    *,
    bm25: float = 0.5,
    same_category: float = 0.0,
    same_brand: float = 0.0,
) -> list[Pair]:
    """Pairs every training query with items of four sources, in set proportions, none of them judged for the query.

    The sources choose in this order, and none chooses an item that was chosen already: BM25 (Robertson & Zaragoza,
    2009) over title, brand, color and category, which takes items that share a word with the query only; items of the
    category of an item judged for the query; items of the brand of one; all items. All but BM25 draw at random.
    `per_query` is divided by the largest remainder, ties to the source that comes first. Where a source runs out,
    items of the last replace it; where the catalogue runs out, a query gets fewer pairs. The result does not
    depend on the order of `judged` and `catalogue`.

    Args:
      judged: the pairs of the training split, and of no other; each of their (normalised) queries gets candidates.
      catalogue: the items to choose from; of several with one id one counts.
      per_query: pairs for each query.
      seed: another seed draws other items.
      bm25: fraction of `per_query` that BM25 chooses.
      same_category: fraction whose item has the (normalised) category of an item judged for the query.
      same_brand: fraction whose item has the (normalised) brand of one. The rest is drawn from all items.

    Returns:
      Pairs with `label` None, `split` `train`, the tags of their query, and a `pair_id` that starts with `x-`; those of
      a query lie together, in the order of the sources.

    Raises:
      ValueError: `per_query` is negative, or the fractions are not in [0, 1] or sum to more than 1.
    """
    counts = _counts(per_query, (bm25, same_category, same_brand))
    items = _distinct(catalogue)
    positions = {item.id: i for i, item in enumerate(items)}
    by_query: dict[str, list[Pair]] = defaultdict(list)
    for pair in sorted(judged, key=lambda pair: pair.pair_id):
        by_query[query_id(pair.query)].append(pair)
    lexical = _lexical(items, by_query) if counts[0] else None
    fields = [(field, n) for field, n in zip(("category", "brand"), counts[1:], strict=True) if n]
    # The positions of the items that have a (normalised) text in a field, by field and text.
    holders: dict[str, dict[str, list[int]]] = {field: defaultdict(list) for field, _ in fields}
    for field, by_value in holders.items():
        for i, item in enumerate(items):
            if value := text_key(getattr(item, field)):
                by_value[value].append(i)
    drawn_pairs = []
    for query, group in by_query.items():
        excluded = {positions[pair.item.id] for pair in group if pair.item.id in positions}
        chosen = lexical(query, excluded, counts[0]) if lexical else []
        for field, n in fields:
            values = sorted({text_key(getattr(pair.item, field)) for pair in group} & holders[field].keys())
            pools = [holders[field][value] for value in values]
            chosen += _draw(pools, excluded.union(chosen), n, f"{seed} {field} {query}")
        chosen += _draw([range(len(items))], excluded.union(chosen), per_query - len(chosen), f"{seed} {query}")
        # the first pair that somebody tagged, so that the tags fit the spelling of the query
        model = next((pair for pair in group if pair.tags is not None), group[0])
        drawn_pairs += [
            Pair(
                pair_id=stable_id("x", query, items[i].id),
                query=model.query,
                item=items[i],
                locale=model.locale,
                split="train",
                tags=model.tags,
                query_frequency=model.query_frequency,
                long_tail=model.long_tail,
            )
            for i in chosen
        ]
    return drawn_pairs


def _counts(total: int, fractions: Sequence[float]) -> list[int]:
    """`total` divided by `fractions` and what they leave, by the largest remainder; without what they leave."""
    rest = 1 - sum(fractions)
    if not (total >= 0 and all(0 <= fraction <= 1 for fraction in fractions) and rest > -1e-6):
        raise ValueError(f"need per_query >= 0 and fractions that sum to at most 1, got {total} and {list(fractions)}")
    quotas = [total * fraction for fraction in (*fractions, max(rest, 0.0))]
    counts = [int(quota) for quota in quotas]
    # rounded, so that equal remainders are equal: 5 * (1 - 0.9) is not 5 * 0.1 in floating point
    by_remainder = sorted(range(len(quotas)), key=lambda i: (round(counts[i] - quotas[i], 9), i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts[:-1]


def _distinct(catalogue: Iterable[Item]) -> list[Item]:
    """The items by id; of several that differ under one id, one that their content alone decides."""
    by_id = {item.id: item for item in sorted(catalogue, key=lambda item: (item.id, repr(item)))}
    return list(by_id.values())


def _lexical(items: Sequence[Item], queries: Iterable[str]) -> Callable[[str, set[int], int], list[int]] | None:
    """A function of (query, excluded, n): the n best items by BM25 outside `excluded`, ties by position.

    It returns positions of items that share a word with the query only. None where no item has a word.
    """
    # Words that no query asks for count for the length of a text alone: all are one word.
    vocabulary = {"": 0}
    for query in queries:
        for word in lexical_words(query):
            vocabulary.setdefault(word, len(vocabulary))
    texts = (lexical_words(" ".join(text for _, text in item.texts(_LEXICAL_FIELDS))) for item in items)
    rows = [[vocabulary.get(word, 0) for word in text] for text in texts]
    if not any(rows):
        return None
    # Not at the top: to import it runs a computation, and processes join their run before any.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets its own logger to DEBUG
    index = bm25s.BM25(backend="numpy")  # the default backend depends on what else is installed
    index.index((rows, vocabulary), show_progress=False)

    # Not `index.retrieve`: which of equal scores it cuts off depends on the machine's partition algorithm.
    def best(query: str, excluded: set[int], n: int) -> list[int]:
        asked = lexical_words(query)
        if not asked:
            return []
        scores = index.get_scores(asked)
        hits = np.flatnonzero(scores > 0)
        limit = n + len(excluded)
        if len(hits) > limit:
            hit_scores = scores[hits]
            hits = hits[hit_scores >= np.partition(hit_scores, -limit)[-limit]]
        ranked = hits[np.argsort(-scores[hits], kind="stable")]
        return [i for i in ranked[:limit].tolist() if i not in excluded][:n]

    return best


def _draw(pools: Sequence[Sequence[int]], excluded: set[int], n: int, key: str) -> list[int]:
    """n members of the pools outside `excluded`, or all if they are fewer; no pool shares one with another.

    The pools' members, `n`, the size of `excluded` and `key` alone decide which are drawn.
    """
    ends = np.cumsum([len(pool) for pool in pools])
    if n <= 0 or not pools or not ends[-1]:
        return []
    rng = np.random.default_rng(list(hashlib.blake2b(key.encode()).digest()))
    drawn = rng.choice(ends[-1], min(ends[-1], n + len(excluded)), replace=False)
    which = np.searchsorted(ends, drawn, side="right")
    # A negative index counts from the pool's end.
    members = (pools[pool][offset - ends[pool]] for pool, offset in zip(which, drawn, strict=True))
    return [int(i) for i in members if i not in excluded][:n]

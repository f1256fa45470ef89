"""Made-up pairs whose texts are cut and joined from those of training pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jax_rele.types import Item, Pair


def recombine(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """Pairs of new texts, for a model that would learn a small catalogue by heart instead of reading it.

    A title is made of pieces of up to three titles, with the brand in front in half of the cases; brand and color come
    from other items; a query is a piece of the new title, or of another query that the title sometimes repeats. Nobody
    would sell these items, but a rule annotator explains them like any other, and no two are alike.

    Args:
      pairs: training pairs, at least one.
      count: the number of pairs to return.
      seed: of the random draws.

    Returns:
      `count` pairs without label or tags, with `pair_id` `r-0`, `r-1`, …
    """
    rng = random.Random(seed)
    in_order = sorted(pairs, key=lambda pair: pair.pair_id)
    titles = [pair.item.title.split() for pair in in_order]
    queries = [pair.query.split() for pair in in_order]
    brands = [pair.item.brand for pair in in_order]
    colors = [pair.item.color for pair in in_order]

    def piece(words: Sequence[str], most: int) -> list[str]:
        length = rng.randint(1, min(most, len(words)))
        start = rng.randint(0, len(words) - length)
        return list(words[start : start + length])

    recombined = []
    for number in range(count):
        brand, color = rng.choice(brands), rng.choice(colors)
        title = brand.split() if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 3)):
            title += piece(rng.choice(titles), 6)
        kind = rng.random()
        if kind < 0.4:
            query = piece(title, 4)
        else:
            query = piece(rng.choice(queries), 5)
            if kind < 0.6:
                index = rng.randint(0, len(title))
                title[index:index] = query
        if brand and rng.random() < 0.15:
            query = [*brand.split(), *query]
        item = Item(f"r-{number}", " ".join(title), brand=brand, color=color)
        recombined.append(Pair(f"r-{number}", " ".join(query).lower(), item))
    return recombined

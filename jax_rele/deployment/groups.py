"""Groups of pairs by a property, for figures beside those of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from jax_rele.text import locale_key
from jax_rele.types import Pair

MOST_GROUPS = 20
UNKNOWN = "unknown"


def group_names(pairs: Sequence[Pair], by: str) -> np.ndarray:
    """[N] the group of each pair: its `locale`, its item's `category`, or by `long_tail` `long_tail` or `head`."""
    if by == "long_tail":
        names = {True: "long_tail", False: "head", None: UNKNOWN}
        return np.array([names[pair.long_tail] for pair in pairs], object)
    if by not in ("locale", "category"):
        raise ValueError(f"by must be locale, category or long_tail, got {by!r}")
    return np.array(
        [(locale_key(pair.locale) if by == "locale" else pair.item.category) or UNKNOWN for pair in pairs], object
    )


def largest_groups(*names: np.ndarray) -> list[str]:
    """The names of the largest groups, largest first; equal ones by name."""
    counts = Counter(np.concatenate(names).tolist())
    return sorted(counts, key=lambda name: (-counts[name], name))[:MOST_GROUPS]

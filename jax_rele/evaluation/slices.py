"""Named subsets of the evaluated pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_rele.text import locale_key
from jax_rele.types import Pair


def slices(pairs: Sequence[Pair], long_tail: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The slices of N pairs on which models are also evaluated: {name: [N] bool}.

    They are `long_tail` and `head`, if `long_tail` ([N] bool, which queries are rare) is given, and `locale:X` for
    every locale X that occurs, except the empty one.
    """
    named = {}
    if long_tail is not None:
        long_tail = np.asarray(long_tail, bool)
        if long_tail.shape != (len(pairs),):
            raise ValueError(f"long_tail must hold one bool per pair ({len(pairs)}), got {list(long_tail.shape)}")
        named = {"long_tail": long_tail, "head": ~long_tail}
    locales = [locale_key(pair.locale) for pair in pairs]
    for locale in sorted({*locales} - {""}):
        named[f"locale:{locale}"] = np.array([each == locale for each in locales])
    return named

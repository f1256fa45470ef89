"""Cuts a text at the ends of its evidence spans, so that overlapping spans can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jax_rele.types import Span


def segments(text: str, spans: Sequence[Span]) -> list[tuple[str, tuple[str, ...]]]:
    """The text in pieces, each with the dimensions whose evidence covers it.

    Args:
      text: the query or one field of an item.
      spans: spans of that text in any order; they may overlap, repeat, be empty or reach past the end. Offsets count
        characters of the Python string.

    Returns:
      (piece, dimensions) in order; the pieces joined are the text, and no two neighbours have the same dimensions.
    """
    clipped = [(max(0, span.start), min(len(text), span.end), span.dimension) for span in spans]
    clipped = [(start, end, dimension) for start, end, dimension in clipped if start < end]
    cuts = sorted({0, len(text), *(start for start, _, _ in clipped), *(end for _, end, _ in clipped)})
    pieces: list[tuple[str, tuple[str, ...]]] = []
    for low, high in pairwise(cuts):
        dimensions = tuple(sorted({dimension for start, end, dimension in clipped if start <= low and high <= end}))
        if pieces and pieces[-1][1] == dimensions:
            pieces[-1] = (pieces[-1][0] + text[low:high], dimensions)
        else:
            pieces.append((text[low:high], dimensions))
    return pieces

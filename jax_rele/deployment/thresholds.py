"""Cut-offs of the score below which pairs are not shown, with a bound on the irrelevant ones at or above.

The bound is the exact binomial one of Clopper and Pearson. Many cut-offs are tried, so they are tested in an order that
is fixed beforehand, from high to low, until one fails: learn then test (Angelopoulos et al., arXiv:2110.01052), with
fixed-sequence testing. The chance that the cut-off chosen has a larger share of irrelevant pairs than its target is
then at most 1 - confidence, if

- pairs are drawn independently, as those that the cut-off will see: pairs of one query are not, `one_per_query` is;
- above the first cut-off that has pairs enough to be tested, the share of irrelevant pairs does not rise with the
  score. Below it nothing is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import beta, binom

from jax_rele.text import query_id
from jax_rele.types import Pair

GRID = tuple(step / 200 for step in range(200, -1, -1))
"""Cut-offs in the order in which they are tested. They do not depend on the pairs."""

_POWER = 0.8
_FEWEST = 30


@dataclass(frozen=True)
class Figures:
    """What a cut-off does to a set of pairs.

    Attributes:
      n: pairs at or above it.
      n_irrelevant: irrelevant ones among them.
      fraction: of all pairs that are at or above it.
      recall: fraction of the positive pairs that are; NaN without positive pairs.
      bound: upper bound of the share of irrelevant pairs; 1 without pairs.
    """

    n: int
    n_irrelevant: int
    fraction: float
    recall: float
    bound: float

    @property
    def observed(self) -> float:
        """The share of irrelevant pairs; NaN without pairs."""
        return self.n_irrelevant / self.n if self.n else math.nan


@dataclass(frozen=True)
class Choice:
    """A cut-off for a target, or why there is none.

    Attributes:
      threshold: the smallest cut-off whose bound holds; None if there is none.
      n_tested: cut-offs that were tested.
    """

    threshold: float | None
    n_tested: int


def choose_threshold(scores: np.ndarray, is_irrelevant: np.ndarray, at_most: float, confidence: float = 0.95) -> Choice:
    """The smallest cut-off at or above which at most a share of pairs is irrelevant, at a confidence.

    Args:
      scores: [N].
      is_irrelevant: [N] bool.
      at_most: the share, between 0 and 1.
      confidence: between 0 and 1.

    Raises:
      ValueError: a number or shape is wrong.
    """
    scores, is_irrelevant = np.asarray(scores, np.float64), np.asarray(is_irrelevant, bool)
    if not 0 < at_most < 1 or not 0 < confidence < 1:
        raise ValueError(f"at_most and confidence must lie between 0 and 1, got {at_most} and {confidence}")
    if scores.ndim != 1 or scores.shape != is_irrelevant.shape or not len(scores):
        raise ValueError(f"needs one score and one truth per pair, got {scores.shape} and {is_irrelevant.shape}")
    grid = np.array(GRID)
    n = _at_least(scores, grid)
    errors = _at_least(scores[is_irrelevant], grid)
    passed = binom.cdf(errors, n, at_most) <= 1 - confidence
    first = int(np.argmax(n >= first_count(len(scores), at_most, confidence)))
    if n[first] < first_count(len(scores), at_most, confidence):
        return Choice(None, 0)
    failed = np.flatnonzero(~passed[first:])
    last = first + (int(failed[0]) if len(failed) else len(grid) - first)
    tested = min(last, len(grid) - 1) - first + 1
    if last == first:
        return Choice(None, tested)
    return Choice(float(grid[last - 1]), tested)


@lru_cache
def first_count(total: int, at_most: float, confidence: float) -> int:
    """How many pairs the first cut-off that is tested must have at or above it.

    With fewer than the least of them no outcome would pass. More make it less likely that one irrelevant pair ends the
    search: with as many as are taken, a true share of half the target passes in four cases of five, as long as they are
    no more than a quarter of all pairs. It depends on the number of pairs alone, so the bound holds.
    """
    least = math.ceil(math.log1p(-confidence) / math.log1p(-at_most))
    enough = least
    while enough < total // 4:
        allowed = _most_errors(enough, at_most, confidence)
        if binom.cdf(allowed, enough, at_most / 2) >= _POWER:
            break
        enough = math.ceil(enough * 1.1)
    return max(least, min(enough, total // 4))


def measure(
    scores: np.ndarray, is_irrelevant: np.ndarray, is_positive: np.ndarray, threshold: float, confidence: float = 0.95
) -> Figures:
    """Figures of a cut-off on N pairs; arrays are [N]."""
    chosen = np.asarray(scores) >= threshold
    n, errors, positive = int(chosen.sum()), int((chosen & is_irrelevant).sum()), int(np.sum(is_positive))
    recall = float((chosen & is_positive).sum() / positive) if positive else math.nan
    return Figures(n, errors, n / len(chosen) if len(chosen) else math.nan, recall, upper_bound(errors, n, confidence))


def upper_bound(errors: int, n: int, confidence: float = 0.95) -> float:
    """The one-sided bound of Clopper and Pearson on a share of which `errors` of `n` were seen."""
    return 1.0 if errors >= n else float(beta.ppf(confidence, errors + 1, n - errors))


def one_per_query(pairs: Sequence[Pair], seed: int = 0) -> np.ndarray:
    """Indices of one pair of each query, chosen at random, in order."""
    members: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        members.setdefault(query_id(pair.query), []).append(index)
    rng = np.random.default_rng(seed)
    return np.array(sorted(indices[rng.integers(len(indices))] for indices in members.values()), np.int64)


def _at_least(scores: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """How many scores are at or above each cut-off."""
    return len(scores) - np.searchsorted(np.sort(scores), grid, side="left")


def _most_errors(n: int, at_most: float, confidence: float) -> int:
    """The most errors of n with which a cut-off passes; -1 if none would."""
    errors = int(binom.ppf(1 - confidence, n, at_most))
    while errors >= 0 and binom.cdf(errors, n, at_most) > 1 - confidence:
        errors -= 1
    return errors


def pairs_needed(scores: np.ndarray, is_irrelevant: np.ndarray, at_most: float, confidence: float = 0.95) -> int | None:
    """About how many pairs would show a cut-off, if shares stay as they are among these; None if none has so few.

    Arguments are those of `choose_threshold`. Cut-offs with fewer than 30 of the pairs are not considered.
    """
    grid = np.array(GRID)
    n = _at_least(np.asarray(scores, np.float64), grid)
    errors = _at_least(np.asarray(scores, np.float64)[np.asarray(is_irrelevant, bool)], grid)
    usable = (n >= min(_FEWEST, len(scores))) & (errors < at_most * n)
    if not usable.any():
        return None
    least = math.ceil(math.log1p(-confidence) / math.log1p(-at_most))
    sizes = np.unique(np.geomspace(least, 1e8, 800).astype(np.int64))
    n, observed = n[usable, None], (errors / np.maximum(n, 1))[usable, None]
    passed = (binom.cdf(np.ceil(observed * sizes), sizes, at_most) <= 1 - confidence) & (sizes >= n)
    first = sizes[passed.argmax(axis=1)]
    totals = np.where(passed.any(axis=1), np.ceil(first * len(scores) / n[:, 0]), np.inf)
    return int(totals.min()) if np.isfinite(totals.min()) else None

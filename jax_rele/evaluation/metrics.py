"""The metrics, each for many bootstrap resamples at once.

Every function takes `counts` [R, N]: how often each of N pairs occurs in each of R resamples (a row of ones is the
sample itself), and returns [R] values, equal to the plain metric on the pairs repeated that often. A value that is
undefined (one class only, constant scores, no pairs) is NaN here; `evaluate` turns it into None.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def auc(score: np.ndarray, relevant: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: P(a relevant pair scores above an irrelevant one), ties counted half.

    Args:
      score: [N] scores, higher for relevant.
      relevant: [N] bool.

    Returns:
      [R] areas; NaN where a resample holds one class only.
    """
    positive, negative = _by_score(score, relevant, counts)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    return _ratio(wins, positive.sum(axis=1) * negative.sum(axis=1))


def average_precision(score: np.ndarray, relevant: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average precision of the `relevant` class: sum over thresholds of (change of recall) x precision.

    Pairs with equal scores share one threshold, so their order does not matter.

    Args:
      score: [N] scores, higher for relevant.
      relevant: [N] bool.

    Returns:
      [R] average precisions; NaN where a resample holds one class only.
    """
    positive, negative = (part[:, ::-1] for part in _by_score(score, relevant, counts))
    hits, misses = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
    precision = hits / np.maximum(hits + misses, 1.0)
    value = _ratio((positive * precision).sum(axis=1), positive.sum(axis=1))
    return np.where(negative.sum(axis=1) > 0, value, np.nan)


def macro_f1(decided: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur in the resample, as a label or as a decision.

    Args:
      decided: [N] int decisions.
      labels: [N] int labels.

    Returns:
      [R] values; NaN for an empty resample.
    """
    classes = np.unique(np.concatenate([decided, labels]))
    chosen, true = decided[:, None] == classes, labels[:, None] == classes
    hits, sizes = counts @ (chosen & true).astype(float), counts @ (chosen.astype(float) + true)
    return _ratio((2.0 * hits / np.maximum(sizes, 1.0)).sum(axis=1), (sizes > 0).sum(axis=1))


def micro_f1(decided: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Micro-averaged F1, which for one decision per pair is the share of right decisions. [R]."""
    return _ratio(counts @ (decided == labels).astype(float), counts.sum(axis=1))


def spearman(score: np.ndarray, gain: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation, with mean ranks for ties.

    Args:
      score: [N] scores.
      gain: [N] gains of the labels.

    Returns:
      [R] correlations from -1 to 1; NaN where score or gain is constant.
    """
    a, b = _centred_ranks(score, counts), _centred_ranks(gain, counts)
    covariance = (counts * a * b).sum(axis=1)
    return _ratio(covariance, np.sqrt((counts * a * a).sum(axis=1) * (counts * b * b).sum(axis=1)))


def query_ndcg(score: np.ndarray, gain: np.ndarray, query: np.ndarray, n_queries: int) -> np.ndarray:
    """nDCG of each query over all its items, with linear gains and discount 1 / log2(1 + rank).

    Tied scores get the mean over all their orders (McSherry and Najork, Computing Information Retrieval Performance
    Measures Efficiently in the Presence of Tied Scores, ECIR 2008), so the value never depends on the order of input
    and constant scores get what a random order is worth.

    Args:
      score: [N] scores.
      gain: [N] gains of the labels, at least 0.
      query: [N] int index of each pair's query.
      n_queries: Q.

    Returns:
      [Q] values; NaN for a query with fewer than two items, or whose gains are all 0, where no order is better.
    """
    score, gain = np.asarray(score, np.float64), np.asarray(gain, np.float64)
    items = np.bincount(query, minlength=n_queries)
    rank = np.arange(len(query)) - np.repeat(np.cumsum(items) - items, items)
    discount = 1.0 / np.log2(rank + 2.0)

    ideal_order = np.lexsort((-gain, query))
    ideal = np.bincount(query[ideal_order], weights=gain[ideal_order] * discount, minlength=n_queries)

    order = np.lexsort((-score, query))
    sorted_query, sorted_score = query[order], score[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (sorted_query[1:] != sorted_query[:-1]) | (sorted_score[1:] != sorted_score[:-1])
    tie = np.cumsum(starts) - 1
    mean_gain = np.bincount(tie, weights=gain[order]) / np.bincount(tie)
    reached = np.bincount(sorted_query, weights=mean_gain[tie] * discount, minlength=n_queries)
    return np.where(items > 1, _ratio(reached, ideal), np.nan)


def weighted_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of the values that are not NaN. [Q] values and [R, Q] counts -> [R]; NaN where none is left."""
    defined = ~np.isnan(values)
    return _ratio(counts[:, defined] @ values[defined], counts[:, defined].sum(axis=1))


def mean_over_folds(
    metric: Callable[..., np.ndarray], score: np.ndarray, truth: np.ndarray, counts: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Mean of a metric's values on each fold of a cross-validation, weighted by the fold's pairs. [R].

    Each fold is scored by a model of its own, and scores of two models are not on one scale: a ranking of all pairs by
    them would count their offset as an error (Forman and Scholz, Apples-to-Apples in Cross-Validation Studies, SIGKDD
    Explorations 12(1), 2010, who advise the mean over folds for the AUC). The weights are equal where the folds are of
    one size, and let a slice of few pairs in a fold count as few.

    Args:
      metric: `auc`, `average_precision` or `spearman`, `(score, truth, counts) -> [R]`.
      score: [N] scores.
      truth: [N] what they are ranked against.
      folds: [N] int.

    Returns:
      [R] values; folds whose pairs all have one truth are left out. NaN where none is left, or where the scores leave
      a fold undefined, so that a model does not gain from it.
    """
    values, weights = [], []
    for fold in np.unique(folds):
        rows = folds == fold
        drawn, own = counts[:, rows], truth[rows]
        distinct = sum((drawn[:, own == value].sum(axis=1) > 0).astype(int) for value in np.unique(own))
        weights.append(np.where(distinct > 1, drawn.sum(axis=1), 0.0))
        values.append(np.where(distinct > 1, metric(score[rows], own, drawn), 0.0))
    return _ratio((np.stack(weights) * np.stack(values)).sum(axis=0), np.stack(weights).sum(axis=0))


def _by_score(score, relevant, counts):
    """Counts of relevant and of other pairs per distinct score, from low to high: two [R, G]."""
    order, starts, _ = _tie_groups(score)
    relevant = np.asarray(relevant, bool)
    return tuple(_group_sums(counts * part, order, starts) for part in (relevant, ~relevant))


def _centred_ranks(values, counts):
    """[R, N] mean ranks of each pair within its resample, less the mean of all ranks."""
    order, starts, group = _tie_groups(values)
    sizes = _group_sums(counts, order, starts)
    ranks = np.cumsum(sizes, axis=1) - sizes / 2.0
    return ranks[:, group] - counts.sum(axis=1, keepdims=True) / 2.0


def _tie_groups(values):
    """Sorting order [N], where each run of equal values starts in it [G], and the run of each value [N]."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes, group


def _group_sums(counts, order, starts):
    return np.add.reduceat(counts[:, order], starts, axis=1) if len(starts) else np.zeros((len(counts), 0))


def _ratio(top, bottom):
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=np.asarray(bottom) > 0)

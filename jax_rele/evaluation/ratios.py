"""Ratios and kappas with intervals from resamples of whole clusters (queries)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from jax_rele.evaluation.bootstrap import Estimate, interval

_CHUNK = 1 << 22
"""Numbers that are drawn at once."""


def ratio(
    numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[str], n_bootstrap: int, seed: int
) -> Estimate:
    """Sum of [N] numerators by sum of [N] denominators, e.g. a fraction where the denominators are ones."""
    sums = np.column_stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)])
    return _estimate(sums, clusters, lambda drawn: _divide(drawn[:, 0], drawn[:, 1]), n_bootstrap, seed)


def fleiss_kappa(counts: np.ndarray, clusters: Sequence[str], n_bootstrap: int, seed: int) -> Estimate:
    """Fleiss' kappa (1971, doi 10.1037/h0031619): agreement of raters beyond chance.

    Args:
      counts: [N, C] how many raters put each subject into each category; every row has the same sum, at least 2.
      clusters: N, of the subjects.
      n_bootstrap, seed: of the interval.

    Returns:
      The value is None without subjects, or where all raters always use one category.

    Raises:
      ValueError: rows have different sums, or sums below 2.
    """
    counts = np.asarray(counts, np.float64)
    if len(counts) == 0:
        return {"value": None, "ci95": None}
    raters = counts[0].sum()
    if raters < 2 or not np.allclose(counts.sum(axis=1), raters):
        raise ValueError("every subject needs the same number of raters, at least 2")
    agreed = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))

    def kappa(sums: np.ndarray) -> np.ndarray:
        observed = _divide(sums[:, 1], sums[:, 0])
        chance = (_divide(sums[:, 2:], sums[:, :1] * raters) ** 2).sum(axis=1)
        # With one category throughout kappa is 0 / 0, which rounding may hide.
        return np.where(chance > 1 - 1e-12, np.nan, _divide(observed - chance, 1 - chance))

    columns = np.column_stack([np.ones(len(counts)), agreed, counts])
    return _estimate(columns, clusters, kappa, n_bootstrap, seed)


def _estimate(
    rows: np.ndarray,
    clusters: Sequence[str],
    statistic: Callable[[np.ndarray], np.ndarray],
    n_bootstrap: int,
    seed: int,
) -> Estimate:
    """A statistic of the sum of rows, on the rows themselves and on resamples of whole clusters."""
    index = {cluster: number for number, cluster in enumerate(sorted(set(clusters)))}
    sums = np.zeros((len(index), rows.shape[1]))
    np.add.at(sums, np.array([index[cluster] for cluster in clusters], np.intp), rows)
    values = [statistic(sums.sum(axis=0, keepdims=True))]
    # With one cluster every resample is the sample, which gives no interval.
    n_bootstrap = n_bootstrap if len(index) > 1 and not np.isnan(values[0][0]) else 0
    random, step = np.random.default_rng(seed), max(1, _CHUNK // max(1, len(index)))
    for start in range(0, n_bootstrap, step):
        size = min(step, n_bootstrap - start)
        drawn = random.multinomial(len(index), np.full(len(index), 1 / len(index)), size=size)
        values.append(statistic(drawn @ sums))
    return interval(np.concatenate(values))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), np.nan), where=np.asarray(b) != 0)

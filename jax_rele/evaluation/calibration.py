"""Calibration of label distributions: temperature scaling, reliability tables and the expected calibration error."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
"""Number of equal-width bins of every reliability table and of the expected calibration error."""

TEMPERATURE_BOUNDS = (0.05, 20.0)
"""Range in which `fit_temperature` searches; a fit at an edge means that the true optimum lies outside."""

_MIN_PROB = 1e-12


def log_probs(probs: np.ndarray) -> np.ndarray:
    """[N, C] label distributions -> [N, C] natural logarithms, with probabilities below 1e-12 raised to it."""
    return np.log(np.maximum(np.asarray(probs, np.float64), _MIN_PROB))


def apply_temperature(probs: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Temperature scaling: softmax(log p / T). [N, C] label distributions -> [N, C].

    T > 0, one or [N]; above 1 it flattens, below 1 it sharpens, 1 changes nothing.
    """
    if not np.all(np.asarray(temperature) > 0):
        raise ValueError(f"temperature must be positive, got {temperature}")
    return softmax(log_probs(probs) / np.reshape(temperature, (-1, 1)), axis=-1)


def fit_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood of the labels.

    The likelihood is unimodal in T (it is concave in 1/T), so a bounded scalar search over log T within
    `TEMPERATURE_BOUNDS` finds the optimum. Fit it on validation pairs, never on the split that is reported.

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (arXiv 1706.04599), section 4.2.

    Args:
      probs: [N, C] label distributions.
      labels: [N] int labels.

    Returns:
      T. When every temperature is equally likely (uniform distributions), 1.

    Raises:
      ValueError: there are no pairs.
    """
    if len(labels) == 0:
        raise ValueError("a temperature cannot be fitted on no pairs")
    logs = log_probs(probs)
    rows = np.arange(len(labels))

    def loss(log_temperature):
        return -log_softmax(logs / np.exp(log_temperature), axis=-1)[rows, labels].mean()

    result = minimize_scalar(
        loss, bounds=np.log(TEMPERATURE_BOUNDS), method="bounded", options={"xatol": 1e-6, "maxiter": 200}
    )
    return float(np.exp(result.x)) if result.fun < loss(0.0) - 1e-12 else 1.0


def reliability(p: np.ndarray, outcome: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """The table behind a reliability diagram: forecasts against what happened, by equal-width bin of the forecast.

    Args:
      p: [N] forecast probabilities.
      outcome: [N] bool, whether the event happened.
      bins: number of bins B over [0, 1]; the last one includes 1.

    Returns:
      `lower`, `upper` [B] edges, `count` [B], `mean_p` [B] mean forecast and `rate` [B] observed share; the last two
      are NaN for an empty bin.
    """
    count, forecast, happened = (_bin_sums(p, bins, weights) for weights in (None, p, outcome))
    edges = np.linspace(0.0, 1.0, bins + 1)
    some = np.where(count > 0, count, np.nan)
    return {
        "lower": edges[:-1],
        "upper": edges[1:],
        "count": count.astype(np.int64),
        "mean_p": forecast / some,
        "rate": happened / some,
    }


def ece(p: np.ndarray, outcome: np.ndarray, counts: np.ndarray | None = None, bins: int = BINS) -> np.ndarray:
    """Expected calibration error of a binary forecast: sum over bins of |sum of (outcome - p)|, divided by N.

    Reference: Guo et al. 2017, equation 3, for the forecast of one event and equal-width bins.

    Args:
      p: [N] forecast probabilities of the event.
      outcome: [N] bool, whether the event happened.
      counts: [R, N] how often each pair occurs in each of R resamples; None is every pair once.
      bins: number of equal-width bins over [0, 1].

    Returns:
      [R] errors from 0 to 1 (R = 1 without `counts`); NaN for an empty resample.
    """
    p = np.asarray(p, np.float64)
    counts = np.ones((1, len(p))) if counts is None else np.asarray(counts, np.float64)
    gaps = np.zeros((len(p), bins))
    gaps[np.arange(len(p)), _bin_index(p, bins)] = np.asarray(outcome, np.float64) - p
    total = counts.sum(axis=1)
    return np.abs(counts @ gaps).sum(axis=1) / np.where(total > 0, total, np.nan)


def _bin_index(p: np.ndarray, bins: int) -> np.ndarray:
    return np.clip((np.asarray(p, np.float64) * bins).astype(np.int64), 0, bins - 1)


def _bin_sums(p: np.ndarray, bins: int, weights: np.ndarray | None) -> np.ndarray:
    return np.bincount(_bin_index(p, bins), weights=weights, minlength=bins).astype(np.float64)

"""Every metric of a model with its interval, from resamples of whole queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from jax_rele.evaluation import metrics
from jax_rele.evaluation.calibration import apply_temperature, ece, log_probs
from jax_rele.evaluation.decision import decide
from jax_rele.types import LabelSchema

_CHUNK = 1 << 21
"""Largest number of counts (resamples x pairs) that is worked on at once, which bounds the memory."""


class Estimate(TypedDict):
    """A value with its 95% percentile interval; None where they are undefined."""

    value: float | None
    ci95: list[float] | None


def metric_names(gain_maps: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """The names of all metrics, in the order in which they are reported."""
    ndcg = (f"ndcg_{name}" for name in gain_maps)
    return ("auc", "neg_ap", "macro_f1", "micro_f1", "spearman", *ndcg, "ece", "ece_calibrated")


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better: true of all but the calibration errors and the log loss."""
    return metric not in ("ece", "ece_calibrated", "log_loss")


def positive_probs(probs: np.ndarray, schema: LabelSchema) -> np.ndarray:
    """[N, C] label distributions -> [N] P(positive), the forecast of the binary view."""
    return np.clip(_dot(probs, schema.is_positive), 0.0, 1.0)


def metric_samples(
    probs: np.ndarray,
    labels: np.ndarray,
    queries: Sequence[str],
    schema: LabelSchema,
    *,
    gain_maps: Mapping[str, Sequence[float]],
    bias: np.ndarray,
    temperature: float | np.ndarray,
    n_bootstrap: int,
    seed: int,
    folds: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every metric on the pairs themselves and on each bootstrap resample of their queries.

    A resample draws as many queries as there are, with replacement, and takes all pairs of each (cluster bootstrap):
    pairs of one query are not independent. The draws depend on the queries, `n_bootstrap` and `seed` alone, so models
    that are judged on the same pairs share them and their values may be subtracted sample by sample.

    - `auc`, `neg_ap`: the binary view, ranked by P(positive); `neg_ap` is the average precision of the pairs that are
      not positive, ranked by 1 - P(positive).
    - `macro_f1`, `micro_f1`: the decision argmax(log p + bias).
    - `spearman`: expected gain against the gain of the label.
    - `ndcg_NAME`, one per gain map: mean over the queries with two or more items, ranked by expected gain.
    - `ece`, `ece_calibrated`: P(positive) against the outcome, before and after temperature scaling. Resampling adds
      noise to every bin, so the resampled errors lie above the error of the sample, and so may their interval.

    Args:
      probs: [N, C] label distributions.
      labels: [N] int labels.
      queries: N queries; equal strings are one query.
      schema: the label schema, C labels.
      gain_maps: {name: C gains of the labels}, one nDCG for each. ESCI has two in use: its paper (arXiv 2206.06588)
        gives Exact 1, Substitute 0.1, Complement 0.01, Irrelevant 0; the official `ranking/prepare_trec_eval_files.py`
        of github.com/amazon-science/esci-data gives Substitute 0.01 and Complement 0.1.
      bias: bias of the decision, fitted on validation pairs: [C], or [N, C] for one of each pair's fold.
      temperature: temperature of the calibration, fitted on validation pairs: a number, or [N] likewise.
      n_bootstrap: number of resamples.
      seed: seed of the resamples.
      folds: [N] int, the fold of a cross-validation whose model judged each pair. `auc`, `neg_ap` and `spearman` rank
        the pairs of different queries by their scores and are then `metrics.mean_over_folds`; decisions and calibrated
        probabilities of all folds are pooled, and nDCG compares the pairs of a query alone, which are in one fold.

    Returns:
      {metric: [1 + n_bootstrap]}: first the value on the pairs themselves; NaN where the metric is undefined.

    Raises:
      ValueError: shapes that do not fit, or probabilities that are not finite.
    """
    probs, labels = _checked(probs, labels, queries, schema, gain_maps)
    query, draws = _resamples(queries, n_bootstrap, seed)
    relevant = schema.is_positive[labels]
    p = positive_probs(probs, schema)
    calibrated = positive_probs(apply_temperature(probs, temperature), schema)
    score, gain = _dot(probs, schema.gains), np.asarray(schema.gains, np.float64)[labels]
    decided = decide(probs, bias)
    ndcg = {
        name: metrics.query_ndcg(score, np.asarray(gains, np.float64)[labels], query, draws.shape[1])
        for name, gains in gain_maps.items()
    }

    def ranked(metric, score, truth, counts):
        if folds is None:
            return metric(score, truth, counts)
        return metrics.mean_over_folds(metric, score, truth, counts, folds)

    chunks = []
    step = max(1, _CHUNK // max(1, len(labels)))
    for start in range(0, len(draws), step):
        drawn = draws[start : start + step]
        counts = drawn[:, query]
        chunks.append(
            {
                "auc": ranked(metrics.auc, p, relevant, counts),
                "neg_ap": ranked(metrics.average_precision, -p, ~relevant, counts),
                "macro_f1": metrics.macro_f1(decided, labels, counts),
                "micro_f1": metrics.micro_f1(decided, labels, counts),
                "spearman": ranked(metrics.spearman, score, gain, counts),
                **{f"ndcg_{name}": metrics.weighted_mean(values, drawn) for name, values in ndcg.items()},
                "ece": ece(p, relevant, counts),
                "ece_calibrated": ece(calibrated, relevant, counts),
            }
        )
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in metric_names(gain_maps)}


def log_loss_samples(
    probs: np.ndarray, labels: np.ndarray, queries: Sequence[str], *, n_bootstrap: int, seed: int
) -> np.ndarray:
    """The mean of -log p(label) in nats, on the pairs themselves and on the resamples of `metric_samples`.

    Args:
      probs: [N, C] label distributions.
      labels: [N] int labels.
      queries: N queries.
      n_bootstrap, seed: of the resamples.

    Returns:
      [1 + n_bootstrap].
    """
    query, draws = _resamples(queries, n_bootstrap, seed)
    losses = -log_probs(probs)[np.arange(len(labels)), labels]
    per_query = np.bincount(query, weights=losses, minlength=draws.shape[1])
    return draws @ per_query / (draws @ np.bincount(query, minlength=draws.shape[1]))


def interval(samples: np.ndarray) -> Estimate:
    """A value with its 95% percentile interval.

    Args:
      samples: [1 + n] the value on the pairs themselves, then on each resample.

    Returns:
      {"value", "ci95": [low, high]}. The value is None where it is undefined. Resamples in which it is undefined are
      left out of the interval, which is None when they are more than half, or when there are no resamples.
    """
    if np.isnan(samples[0]):
        return {"value": None, "ci95": None}
    drawn = samples[1:][~np.isnan(samples[1:])]
    enough = len(drawn) > 0 and 2 * len(drawn) >= len(samples) - 1
    ci95 = [float(bound) for bound in np.percentile(drawn, [2.5, 97.5])] if enough else None
    return {"value": float(samples[0]), "ci95": ci95}


def intervals(samples: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """The `interval` of every metric of one model, from what `metric_samples` returned."""
    return {metric: interval(values) for metric, values in samples.items()}


def paired_difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Every metric of model a less that of model b, with the interval of the difference: {metric: {"value", "ci95"}}.

    `a` and `b` are what `metric_samples` returned for two models on the same pairs with the same seed.
    """
    return intervals({name: a[name] - b[name] for name in a})


def _dot(probs: np.ndarray, weights: ArrayLike) -> np.ndarray:
    # Not a matrix product, which may round equal rows differently and so break ties by their position.
    return (np.ascontiguousarray(probs, np.float64) * np.asarray(weights, np.float64)).sum(axis=1)


def _resamples(queries, n_bootstrap, seed):
    """Index [N] of each pair's query, and how often each query occurs in the sample and its resamples [1 + n, Q]."""
    position = {text: index for index, text in enumerate(dict.fromkeys(queries))}
    query = np.fromiter((position[text] for text in queries), np.int64, len(queries))
    total = len(position)
    draws = np.ones((1 + n_bootstrap, total))
    if total:
        draws[1:] = np.random.default_rng(seed).multinomial(total, np.full(total, 1.0 / total), size=n_bootstrap)
    return query, draws


def _checked(probs, labels, queries, schema, gain_maps):
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    if probs.shape != (len(labels), len(schema)) or len(queries) != len(labels):
        raise ValueError(
            f"probs must be [{len(labels)}, {len(schema)}] for {len(labels)} labels and {len(schema)} grades, with one "
            f"query each; got probs {list(probs.shape)} and {len(queries)} queries"
        )
    if not np.isfinite(probs).all():
        raise ValueError(f"probs has {int((~np.isfinite(probs)).any(axis=1).sum())} rows that are not finite")
    if len(labels) and (labels.min() < 0 or labels.max() >= len(schema)):
        raise ValueError(f"labels must lie in 0..{len(schema) - 1}, got {labels.min()}..{labels.max()}")
    for name, gains in gain_maps.items():
        if len(gains) != len(schema):
            raise ValueError(f"gain map {name} must hold {len(schema)} gains, got {len(gains)}")
    return probs, labels

"""From a label distribution to one label: argmax after a bias per class that is chosen on validation pairs."""

from __future__ import annotations

import numpy as np

from jax_rele.evaluation.calibration import log_probs
from jax_rele.evaluation.metrics import macro_f1

_SWEEPS = 20
_GAP = 1e-9
"""Two thresholds closer than this, or two F1 values closer than this, count as one."""


def decide(probs: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """argmax(log p + bias), the first label on ties. [N, C], [C] or [N, C] -> [N] int."""
    return np.argmax(log_probs(probs) + np.asarray(bias, np.float64), axis=-1)


def fit_bias(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The bias per class that maximises macro-F1 of `decide`, by coordinate search from zero.

    As a function of one class's bias, all others held, macro-F1 changes only where a pair's decision flips. The search
    computes it between all such points, keeps the best (of equals the one of the smaller absolute bias), goes to the
    next class, and ends when a sweep over the classes improves nothing. It is deterministic and never ends below the
    macro-F1 of zero bias; it may end in a local optimum. Fit it on validation pairs, never on the reported split.

    Args:
      probs: [N, C] label distributions.
      labels: [N] int labels.

    Returns:
      [C] bias.

    Raises:
      ValueError: there are no pairs.
    """
    labels = np.asarray(labels)
    if len(labels) == 0:
        raise ValueError("a bias cannot be fitted on no pairs")
    logs = log_probs(probs)
    bias = np.zeros(logs.shape[1])
    best = _macro_f1_of(logs + bias, labels)
    for _ in range(_SWEEPS):
        before = best
        for label in range(len(bias)):
            trial = bias.copy()
            trial[label] = _best_coordinate(logs, labels, bias, label)
            value = _macro_f1_of(logs + trial, labels)
            if value > best + _GAP:
                bias, best = trial, value
        if best <= before:
            break
    return bias


def _best_coordinate(logs, labels, bias, label):
    """The bias of `label` with the best macro-F1, the biases of the other labels held."""
    rivals = logs + bias
    rivals[:, label] = -np.inf
    rival = rivals.argmax(axis=1)
    thresholds = rivals.max(axis=1) - logs[:, label]
    order = np.argsort(thresholds, kind="stable")
    cuts = thresholds[order]
    cuts = cuts[np.append(True, np.diff(cuts) > _GAP)]
    candidates = np.concatenate([[cuts[0] - 1.0], (cuts[1:] + cuts[:-1]) / 2.0, [cuts[-1] + 1.0, 0.0]])
    # Of the pairs in `order`, the first `taken` get this label, the others keep their best rival.
    n_chosen = np.searchsorted(thresholds[order], candidates)

    score, present = np.zeros(len(candidates)), np.zeros(len(candidates))
    for other in range(logs.shape[1]):
        true = labels[order] == other
        if other == label:
            hits, chosen = _running(true)[n_chosen], n_chosen
        else:
            rivals_on = rival[order] == other
            hits, chosen = (
                (rivals_on & true).sum() - _running(rivals_on & true)[n_chosen],
                rivals_on.sum() - _running(rivals_on)[n_chosen],
            )
        size = chosen + true.sum()
        score += 2.0 * hits / np.maximum(size, 1)
        present += size > 0
    score /= present
    finalists = candidates[score > score.max() - _GAP]
    return finalists[np.lexsort((finalists, np.abs(finalists)))[0]]


def _running(flags):
    """[N] bool -> [N + 1] how many are true among the first 0..N."""
    return np.append(0, np.cumsum(flags))


def _macro_f1_of(logits, labels):
    decided = logits.argmax(axis=1)
    return float(macro_f1(decided, labels, np.ones((1, len(labels))))[0])

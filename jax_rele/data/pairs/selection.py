"""Which labelled pairs are worth learning from, by what other models predict for them."""

from __future__ import annotations

import numpy as np


def left_out(
    labels: np.ndarray,
    *,
    wrong_by: np.ndarray | None = None,
    right_by: np.ndarray | None = None,
    undisputed_by: np.ndarray | None = None,
    dispute: float = 0.5,
) -> dict[str, np.ndarray]:
    """Hard and clean pairs, as LREF selects them (arXiv 2503.09223): what each condition leaves out of N pairs.

    Each model is optional, and must not have learnt from the pairs that it judges.

    Args:
      labels: [N] int, the human labels.
      wrong_by: [N, C] label distributions of a model that must be wrong, so that the pair is hard.
      right_by: [N, C] of a model that must be right, so that it can be learnt.
      undisputed_by: [N, C] of a model that must not contradict the label, so that it is clean.
      dispute: the least probability of another label that contradicts.

    Returns:
      {reason: [N] bool}; a pair is left out by the first of them alone. `unpredicted` are those for which the
      distribution of some model is NaN.
    """
    models = [probs for probs in (wrong_by, right_by, undisputed_by) if probs is not None]
    reasons = {"unpredicted": np.any([np.isnan(probs).any(axis=1) for probs in models], axis=0)} if models else {}
    if wrong_by is not None:
        reasons["easy"] = wrong_by.argmax(axis=1) == labels
    if right_by is not None:
        reasons["not_learnt"] = right_by.argmax(axis=1) != labels
    if undisputed_by is not None:
        others = np.where(np.arange(undisputed_by.shape[1]) == labels[:, None], 0, undisputed_by)
        # A probability that was written as 0.7 is 0.7 in the precision of the array.
        reasons["disputed"] = others.max(axis=1) >= np.asarray(dispute, others.dtype)
    before = np.zeros(len(labels), bool)
    for reason, applies in reasons.items():
        reasons[reason] = applies & ~before
        before = before | applies
    return reasons

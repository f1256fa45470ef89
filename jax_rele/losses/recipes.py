"""Objectives by name. A recipe is a `combine` of terms and nothing else.

`label_only` is plain supervised training. `mkd` is our reconstruction of the multi-dimensional knowledge distillation
of ELLM-rele + MKD (arXiv 2411.13045), whose exact formulas and weights are not public: the score distribution of the
teacher (KL, and its margins and order among the items of one query) together with tasks parsed from its chain of
thought (verdicts per dimension, evidence). `score_kd` and `cot_kd` are its two halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jax_rele.losses.combine import Term, combine, term
from jax_rele.losses.ranking import listwise_kl, margin_mse
from jax_rele.losses.rationale import evidence_tagging, verdict_cross_entropy
from jax_rele.losses.score import cross_entropy, score_kl

NAMES = ("label_only", "score_kd", "cot_kd", "mkd")
"""The recipes."""

LIST_TEMPERATURE = 0.25
"""Temperature of the distribution over the items of a query, in units of gain."""


def needs_teacher(name: str) -> bool:
    """Whether the recipe reads a teacher's signals and so can learn from unlabelled pairs."""
    return name != "label_only"


def learns_verdicts(name: str) -> bool:
    """Whether the recipe trains the verdict heads; otherwise they stay as they were born."""
    return name in ("cot_kd", "mkd")


def recipe(name: str, *, gains: Sequence[float], temperature: float, evidence: bool) -> Callable[..., tuple]:
    """The objective called `name`, for `make_train_step`.

    It reads from the batch: `labels` [B]; and unless it is `label_only`, `label_probs` [B, C] and `segments` [B], or
    `verdict_probs` [B, D, V] and `evidence_tags` [B, L], or all of them.

    Args:
      name: one of `NAMES`.
      gains: [C] gain of each label.
      temperature: of the score distributions in the KL terms.
      evidence: whether the student has an evidence-tagging head.

    Raises:
      ValueError: there is no recipe of that name.
    """
    if name not in NAMES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(NAMES)}")
    gains = np.asarray(gains, np.float32)
    terms: dict[str, Term] = {"label": term(cross_entropy)}
    if name in ("score_kd", "mkd"):
        terms["score"] = term(score_kl, temperature=temperature)
        terms["margin"] = term(margin_mse, gains=gains)
        # Gains lie in [0, 1]: at temperature 1 the distribution over a query's items would be nearly flat. The weight
        # takes the factor T^2 back.
        terms["list"] = term(listwise_kl, weight=LIST_TEMPERATURE**-2, temperature=LIST_TEMPERATURE, gains=gains)
    if learns_verdicts(name):
        terms["verdict"] = term(verdict_cross_entropy)
        if evidence:
            terms["evidence"] = term(evidence_tagging, weight=0.5)
    return combine(**terms)

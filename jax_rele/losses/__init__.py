"""Losses: pure functions from arrays to one number per example, and `combine`, which joins them into a scalar.

Every loss takes arrays named after the fields that they come from, and `where`, a mask of the elements; it returns
float32 elements without a reduction. Masked elements are 0 and pass no gradient, whatever the masked inputs hold.

Every loss raises AssertionError at trace time for shapes that do not agree, for labels, tags, segments or targets that
are not integers, and for masks that are not booleans.
"""

from jax_rele.losses.calibration import brier, confidence
from jax_rele.losses.combine import add_totals, combine, means, term
from jax_rele.losses.contrast import rationale_contrast, rationale_mse, view_contrast
from jax_rele.losses.joint import joint
from jax_rele.losses.language import next_token_cross_entropy, sequence_log_probs
from jax_rele.losses.policy import group_advantages, grpo
from jax_rele.losses.preference import dpo, dpo_hinge, ipo, kto, orpo, simpo
from jax_rele.losses.ranking import in_list, listwise_kl, listwise_softmax, margin_mse, pairwise_logistic, ranknet
from jax_rele.losses.rationale import attention_to_evidence, evidence_tagging, verdict_cross_entropy
from jax_rele.losses.recipes import learns_verdicts, needs, needs_teacher, recipe
from jax_rele.losses.score import (
    cross_entropy,
    jensen_shannon,
    logit_mse,
    ordinal_cross_entropy,
    reverse_kl,
    score_kl,
    soft_cross_entropy,
)

__all__ = [
    "add_totals",
    "attention_to_evidence",
    "brier",
    "combine",
    "confidence",
    "cross_entropy",
    "dpo",
    "dpo_hinge",
    "evidence_tagging",
    "group_advantages",
    "grpo",
    "in_list",
    "ipo",
    "jensen_shannon",
    "joint",
    "kto",
    "learns_verdicts",
    "listwise_kl",
    "listwise_softmax",
    "logit_mse",
    "margin_mse",
    "means",
    "needs",
    "needs_teacher",
    "next_token_cross_entropy",
    "ordinal_cross_entropy",
    "orpo",
    "pairwise_logistic",
    "ranknet",
    "rationale_contrast",
    "rationale_mse",
    "recipe",
    "reverse_kl",
    "score_kl",
    "sequence_log_probs",
    "simpo",
    "soft_cross_entropy",
    "term",
    "verdict_cross_entropy",
    "view_contrast",
]

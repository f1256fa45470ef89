"""Losses: pure functions from arrays to one number per example, and `combine`, which joins them into a scalar.

Every loss takes arrays named after the fields that they come from, and `where`, a mask of the elements; it returns
float32 elements without a reduction. Masked elements are 0 and pass no gradient, whatever the masked inputs hold.
"""

from jax_rele.losses.combine import add_totals, combine, means, term
from jax_rele.losses.language import next_token_cross_entropy
from jax_rele.losses.ranking import in_list, listwise_kl, margin_mse
from jax_rele.losses.rationale import evidence_tagging, verdict_cross_entropy
from jax_rele.losses.recipes import learns_verdicts, needs_teacher, recipe
from jax_rele.losses.score import cross_entropy, score_kl

__all__ = [
    "add_totals",
    "combine",
    "cross_entropy",
    "evidence_tagging",
    "in_list",
    "learns_verdicts",
    "listwise_kl",
    "margin_mse",
    "means",
    "needs_teacher",
    "next_token_cross_entropy",
    "recipe",
    "score_kl",
    "term",
    "verdict_cross_entropy",
]

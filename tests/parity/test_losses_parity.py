"""Losses and their gradients by the student against torch's own, in float64 there."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jax_rele import losses

B, C, D, V, L, W = 12, 4, 3, 3, 5, 8
RNG = np.random.default_rng(0)
GAINS = np.array([1.0, 0.6, 0.1, 0.0])
LOGITS, PROBS = RNG.normal(size=(B, C)) * 2, RNG.dirichlet(np.ones(C), B)
LABELS, SEGMENTS = RNG.integers(C, size=B), np.zeros(B, int)
T = 2.5


def tensor(array):
    return torch.tensor(array, dtype=torch.float64 if array.dtype == float else torch.int64)


def softened():
    return F.softmax(tensor(PROBS).log() / T, dim=-1)


def student(logits):
    return F.log_softmax(logits / T, dim=-1)


def gained(logits):
    return F.softmax(logits, dim=-1) @ tensor(GAINS)


def kl(log_q, p):
    return F.kl_div(log_q, p, reduction="none").sum(-1)


def mixture(logits):
    return torch.logaddexp(student(logits), softened().log()) - np.log(2)


def differences(scores):
    return scores[:, None] - scores[None, :]


def of_others(elements):
    return (elements * (1 - torch.eye(B))).sum(-1) / (B - 1)


def worse(logits):
    """RankNet's hard preferences: margin ranking through the logistic function."""
    gains = tensor(GAINS[LABELS])
    better = (gains[:, None] > gains[None, :]).double()
    loss = F.soft_margin_loss(differences(gained(logits) / 0.2), torch.ones(B, B), reduction="none")
    return (loss * better).sum(-1) / better.sum(-1).clamp(min=1)


VERDICTS, TAGS = RNG.dirichlet(np.ones(V), (B, D)), RNG.integers(1 + D, size=(B, L))
PLAIN, AUGMENTED = RNG.normal(size=(2, B, W))

CASES = {
    "cross_entropy": (
        lambda x: losses.cross_entropy(x, LABELS, label_smoothing=0.1),
        lambda x: F.cross_entropy(x, tensor(LABELS), reduction="none", label_smoothing=0.1),
        LOGITS,
    ),
    "score_kl": (
        lambda x: losses.score_kl(x, PROBS, temperature=T),
        lambda x: T**2 * kl(student(x), softened()),
        LOGITS,
    ),
    "reverse_kl": (
        lambda x: losses.reverse_kl(x, PROBS, temperature=T),
        lambda x: T**2 * kl(softened().log(), student(x).exp()),
        LOGITS,
    ),
    "jensen_shannon": (
        lambda x: losses.jensen_shannon(x, PROBS, temperature=T),
        lambda x: T**2 / 2 * (kl(mixture(x), softened()) + kl(mixture(x), student(x).exp())),
        LOGITS,
    ),
    "soft_cross_entropy": (
        lambda x: losses.soft_cross_entropy(x, PROBS, temperature=T),
        lambda x: T**2 * F.cross_entropy(x / T, softened(), reduction="none"),
        LOGITS,
    ),
    "margin_mse": (
        lambda x: losses.margin_mse(x, PROBS, GAINS, SEGMENTS),
        lambda x: of_others(
            F.mse_loss(differences(gained(x)), differences(tensor(PROBS) @ tensor(GAINS)), reduction="none")
        ),
        LOGITS,
    ),
    "ranknet": (
        lambda x: losses.ranknet(x, PROBS, GAINS, SEGMENTS, temperature=0.2),
        lambda x: (
            0.2**2
            * of_others(
                F.binary_cross_entropy_with_logits(
                    differences(gained(x) / 0.2),
                    torch.sigmoid(differences(tensor(PROBS) @ tensor(GAINS) / 0.2)),
                    reduction="none",
                )
            )
        ),
        LOGITS,
    ),
    "pairwise_logistic": (
        lambda x: losses.pairwise_logistic(x, LABELS, GAINS, SEGMENTS, temperature=0.2),
        worse,
        LOGITS,
    ),
    "listwise_kl": (
        lambda x: losses.listwise_kl(x, PROBS, GAINS, SEGMENTS, temperature=0.2),
        lambda x: (
            0.2**2
            * F.kl_div(
                F.log_softmax(gained(x) / 0.2, dim=0),
                F.softmax(tensor(PROBS) @ tensor(GAINS) / 0.2, dim=0),
                reduction="none",
            )
        ),
        LOGITS,
    ),
    "listwise_softmax": (
        lambda x: losses.listwise_softmax(x, LABELS, GAINS, SEGMENTS, temperature=0.2),
        lambda x: F.cross_entropy(gained(x) / 0.2, tensor(GAINS[LABELS])).expand(B) / B,
        LOGITS,
    ),
    "brier": (
        lambda x: losses.brier(x, PROBS),
        lambda x: F.mse_loss(F.softmax(x, dim=-1), tensor(PROBS), reduction="none").sum(-1),
        LOGITS,
    ),
    "verdict_cross_entropy": (
        lambda x: losses.verdict_cross_entropy(x, VERDICTS),
        lambda x: F.cross_entropy(x.movedim(-1, 1), tensor(VERDICTS).movedim(-1, 1), reduction="none"),
        RNG.normal(size=(B, D, V)),
    ),
    "verdict_cross_entropy hard": (
        lambda x: losses.verdict_cross_entropy(x, VERDICTS, hard=True),
        lambda x: F.cross_entropy(x.movedim(-1, 1), tensor(VERDICTS.argmax(-1)), reduction="none"),
        RNG.normal(size=(B, D, V)),
    ),
    "evidence_tagging": (
        lambda x: losses.evidence_tagging(x, TAGS),
        lambda x: F.cross_entropy(x.movedim(-1, 1), tensor(TAGS), reduction="none"),
        RNG.normal(size=(B, L, 1 + D)),
    ),
    "rationale_mse": (
        lambda x: losses.rationale_mse(x, AUGMENTED),
        lambda x: F.mse_loss(x, tensor(AUGMENTED), reduction="none").mean(-1),
        PLAIN,
    ),
    "rationale_contrast": (
        lambda x: losses.rationale_contrast(x, AUGMENTED, temperature=0.1),
        lambda x: F.cross_entropy(
            F.cosine_similarity(x[:, None], tensor(AUGMENTED)[None], dim=-1) / 0.1, torch.arange(B), reduction="none"
        ),
        PLAIN,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name):
    ours, theirs, array = CASES[name]
    x = tensor(array).requires_grad_()
    elements = theirs(x)
    elements.sum().backward()
    values, pull = jax.vjp(jax.jit(ours), np.float32(array))
    np.testing.assert_allclose(values, elements.detach(), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(pull(np.ones_like(values))[0], x.grad, rtol=1e-4, atol=1e-5)

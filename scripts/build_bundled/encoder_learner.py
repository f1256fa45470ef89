"""The model that trains the bundled encoder: the encoder with heads, its loss and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import encoder_texts as material
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jax_rele import config, losses
from jax_rele.models import Encoder, EncoderConfig
from jax_rele.models.encoder import dense
from jax_rele.training.optimizer import learning_rate
from jax_rele.types import VERDICTS

WEIGHTS = {"embedding": 5.0, "similarity": 10.0, "cosine": 0.5, "verdict": 1.0, "evidence": 0.5, "occurs": 1.0}
"""Weights of the loss terms."""

ADAM_FRACTION = 0.4
"""AdamW's learning rate over Muon's; at the full rate the initial word vectors would be lost."""


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Outputs:
    """Of texts `embedding` [B, W]; of pairs `cosine` [B], `verdict_logits` [B, D, V], `token_logits` [B, L, 1 + D] and
    `occurs_logits` [B, L, 2]."""

    embedding: jax.Array
    cosine: jax.Array
    verdict_logits: jax.Array
    token_logits: jax.Array
    occurs_logits: jax.Array


class Learner(nn.Module):
    """An encoder with the pooling of the two-tower and of the cross-encoder, and heads that are used in training
    alone."""

    encoder: EncoderConfig

    def setup(self):
        dimensions = len(material.DIMENSIONS)
        self.reader = Encoder(self.encoder, name="encoder")
        self.cosine_head = dense(1, ("embed", "head"), "cosine_head")
        self.verdict_head = dense(dimensions * len(VERDICTS), ("embed", "head"), "verdict_head")
        self.evidence_head = dense(1 + dimensions, ("embed", "head"), "evidence_head")
        self.occurs_head = dense(2, ("embed", "head"), "occurs_head")

    def embed(self, tokens, types, valid, *, deterministic: bool = True):
        """[B, L] -> [B, W] unit vectors."""
        hidden = self.reader(tokens, types, valid, deterministic=deterministic)
        weights = valid[..., None].astype(hidden.dtype)
        mean = (hidden * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)
        return mean * jax.lax.rsqrt(jnp.sum(mean**2, axis=-1, keepdims=True) + 1e-12)

    def judge(self, tokens, types, valid, *, deterministic: bool = True):
        """[B, L] -> the fields of `Outputs` for pairs."""
        hidden = self.reader(tokens, types, valid, deterministic=deterministic)
        pooled = self.reader.pool(hidden)
        return {
            "cosine": self.cosine_head(pooled)[:, 0],
            "verdict_logits": self.verdict_head(pooled).reshape(len(tokens), -1, len(VERDICTS)),
            "token_logits": self.evidence_head(hidden),
            "occurs_logits": self.occurs_head(hidden),
        }

    def __call__(self, text: Mapping[str, jax.Array], pair: Mapping[str, jax.Array], *, deterministic: bool = True):
        """`text` and `pair` hold `tokens`, `types` and `valid` [B, L]."""
        embedding = self.embed(**text, deterministic=deterministic)
        return Outputs(embedding=embedding, **self.judge(**pair, deterministic=deterministic))


def distance(embedding, target):
    """[B]: 1 - cosine."""
    return 1.0 - (embedding * target).sum(axis=-1)


def similarity_error(embedding, target):
    """[B]: the mean squared error of a text's cosines with the others of the batch."""
    cosines, expected = (jnp.einsum("iw,jw->ij", x, x, precision="highest") for x in (embedding, target))
    return ((cosines - expected) ** 2).sum(axis=-1) / max(1, len(embedding) - 1)


def squared_error(cosine, expected_cosine):
    """[B]."""
    return (cosine - expected_cosine) ** 2


def objective():
    """The loss, with the terms of `WEIGHTS`."""
    return losses.combine(
        embedding=losses.term(distance, weight=WEIGHTS["embedding"]),
        similarity=losses.term(similarity_error, weight=WEIGHTS["similarity"]),
        cosine=losses.term(squared_error, weight=WEIGHTS["cosine"]),
        verdict=losses.term(losses.verdict_cross_entropy, weight=WEIGHTS["verdict"], confidence="asked"),
        evidence=losses.term(losses.evidence_tagging, weight=WEIGHTS["evidence"]),
        occurs=losses.term(
            losses.evidence_tagging,
            weight=WEIGHTS["occurs"],
            token_logits="occurs_logits",
            evidence_tags="occurs",
            confidence="occurs_weight",
        ),
    )


def optimizer(optimization: config.OptimizationConfig) -> optax.GradientTransformation:
    """Muon for the layers' kernels, AdamW for everything else, with updates `ADAM_SHARE` as large."""
    rate = learning_rate(optimization)

    def matrices(params):
        def numbers(path, leaf):
            names = [str(getattr(key, "key", "")) for key in path]
            return optax.contrib.MuonDimensionNumbers(1, 2) if leaf.ndim == 3 and "kernel" in names else None

        return jax.tree_util.tree_map_with_path(numbers, params)

    return optax.chain(
        optax.clip_by_global_norm(optimization.clip_norm),
        optax.contrib.muon(
            # optax counts steps from 0, the schedule from 1.
            lambda count: rate(count + 1),
            adam_learning_rate=lambda count: ADAM_FRACTION * rate(count + 1),
            weight_decay=optimization.weight_decay,
            adam_b2=0.98,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=matrices,
        ),
    )

"""The students' architectures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jax_rele.config.base import NonNegative, Positive, Section


class RandomEncoderConfig(Section):
    """Shape of a randomly initialised encoder; loaded weights have their own."""

    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Size of the byte-level BPE vocabulary trained on the training split."""
    layers: Positive = 2
    """Transformer blocks."""
    width: Positive = 64
    """Width of the residual stream."""
    heads: Positive = 4
    """Attention heads."""
    mlp_width: Positive = 256
    """Inner width of the feed-forward block."""

    @model_validator(mode="after")
    def _check(self):
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class CrossEncoderConfig(Section):
    """The student that encodes query and item jointly."""

    latent_width: NonNegative = 0
    """Width of the latent-reasoning extractor, which is part of the served student; 0 for none."""


class TwoTowerConfig(Section):
    """The student that encodes query and item separately."""

    embedding_width: NonNegative = 64
    """Width of the text vector; 0: no projection, it is as wide as the encoder."""
    view_width: Positive = 16
    """Width of a side's vector for one dimension, its view."""
    towers: Literal["shared", "separate"] = "shared"
    """Whether query and item are encoded with the same weights."""
    pooling: Literal["mean", "first"] = "mean"
    """How token vectors are pooled to an embedding."""
    normalize: bool = True
    """Whether the text vector has unit length."""
    head: Literal["cosine", "mlp", "maxsim"] = "cosine"
    """How two embeddings become label logits: cosine can be indexed; maxsim needs a vector per token."""


class StudentConfig(Section):
    """The encoder of both students and their heads."""

    init: Annotated[str, Field(min_length=1)] = "random"
    """Initial weights of the encoder: `random`; `bundled:encoder`, shipped with the package; `hf:ORG/NAME` on the
    Hugging Face hub; or a folder in its format."""
    random: RandomEncoderConfig = RandomEncoderConfig()
    """The shape where `init` is `random`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout while training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, softmax and norms are in float32."""
    query_length: Annotated[int, Field(ge=4)] = 24
    """Tokens of a query; a longer one loses its end."""
    item_length: Annotated[int, Field(ge=4)] = 72
    """Tokens of an item; a longer one loses its end. The cross-encoder reads query_length + item_length tokens of a
    pair; where it has more, the longer of the two texts loses its end."""
    rationale_length: Annotated[int, Field(ge=4)] = 96
    """Tokens of a rationale where a recipe encodes it with the pair; longer ones are truncated."""
    verdict_pooling: Literal["tokens", "pooled"] = "tokens"
    """What the verdict on a dimension is read from: the tokens, with attention of the dimension's own, and then the
    two-tower's embeddings hold a part for every dimension; or the vector that the label is read from, which needs no
    layer that other libraries lack. The weight of the verdict
    term of `mkd` and `cot_kd` falls from 10 to 1 with `tokens` and is 1 with `pooled`, each the better one there
    (docs/studies/attribute_world.md)."""
    cross_encoder: CrossEncoderConfig = CrossEncoderConfig()
    two_tower: TwoTowerConfig = TwoTowerConfig()

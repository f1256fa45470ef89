"""Models from the config."""

from __future__ import annotations

from flax import linen as nn

from jax_rele import config
from jax_rele.models.decoder import Decoder, DecoderConfig
from jax_rele.models.encoder import EncoderConfig
from jax_rele.models.lora import LoraSpec
from jax_rele.models.students import CrossEncoder, TwoTower


def build_teacher(teacher: config.Teacher, vocab_size: int) -> Decoder:
    """The teacher's decoder with its adapters."""
    lora = teacher.lora
    return Decoder(
        DecoderConfig(
            vocab_size=vocab_size,
            layers=teacher.layers,
            width=teacher.width,
            heads=teacher.heads,
            kv_heads=teacher.kv_heads,
            head_dim=teacher.head_dim,
            mlp_width=teacher.mlp_width,
            rope_theta=teacher.rope_theta,
            remat=teacher.remat,
            lora=LoraSpec(lora.rank, lora.alpha, lora.dropout, lora.targets),
        )
    )


def build_student(
    name: config.StudentName, student: config.Student, vocab_size: int, labels: int, dimensions: int
) -> nn.Module:
    """The student called `name`."""
    encoder = EncoderConfig(
        vocab_size=vocab_size,
        max_length=student.query_length + student.item_length,
        layers=student.layers,
        width=student.width,
        heads=student.heads,
        mlp_width=student.mlp_width,
        dropout=student.dropout,
    )
    if name == "cross_encoder":
        return CrossEncoder(encoder, labels, dimensions)
    return TwoTower(encoder, labels, dimensions, student.embedding_width, student.view_width)

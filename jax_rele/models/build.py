"""Models from the config."""

from __future__ import annotations

import jax.numpy as jnp

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.models.decoder import Decoder, DecoderConfig
from jax_rele.models.encoder import EncoderConfig
from jax_rele.models.encoder_families import encoder_config
from jax_rele.models.families import decoder_config
from jax_rele.models.lora import LoraSpec
from jax_rele.models.rope import Rope


def lora_spec(lora: config.LoraConfig) -> LoraSpec:
    """The adapters of a config."""
    return LoraSpec(lora.rank, lora.alpha, lora.dropout, lora.targets, lora.rank_stabilized)


def build_teacher(teacher: config.TeacherConfig, vocab_size: int) -> Decoder:
    """The teacher's decoder with its adapters, without weights.

    Args:
      teacher: what it is to be; the shape is that of `teacher.random`, or of the weights at `teacher.init`.
      vocab_size: tokens of its tokenizer.

    Raises:
      UserError: the weights' config is missing, not supported, or has fewer tokens than the tokenizer.
    """
    dtype = jnp.dtype(teacher.dtype)
    computed = {
        "attention": teacher.attention,
        "remat": teacher.remat,
        "lora": lora_spec(teacher.lora),
        "dtype": dtype,
        "param_dtype": dtype,
    }
    if teacher.init != "random":
        pretrained = decoder_config(teacher.init, **computed)
        if vocab_size > pretrained.vocab_size:
            raise UserError(
                f"{teacher.init}: the tokenizer has {vocab_size} tokens, the embedding {pretrained.vocab_size} rows; "
                "these are not of one model"
            )
        if teacher.attention != "xla" and len(set(pretrained.windows)) > 1:
            raise UserError(
                f"teacher.attention: {teacher.attention} takes one window for all layers, and those of {teacher.init} "
                "differ; set it to xla"
            )
        return Decoder(pretrained)
    shape = teacher.random
    return Decoder(
        DecoderConfig(
            vocab_size=vocab_size,
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            mlp_width=shape.mlp_width,
            rope=Rope(theta=shape.rope_theta),
            **computed,
        )
    )


def build_encoder(student: config.StudentConfig, vocab_size: int) -> EncoderConfig:
    """The encoder of the students; see `jax_rele.students.build_student`."""
    computed = {"dropout": student.dropout, "dtype": jnp.dtype(student.dtype)}
    length = student.query_length + student.item_length
    if student.init == "random":
        shape = student.random
        return EncoderConfig(
            vocab_size=vocab_size,
            # A rationale that is read beside the pair stands behind it.
            max_length=length + student.rationale_length,
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            mlp_width=shape.mlp_width,
            **computed,
        )
    pretrained = encoder_config(student.init, **computed)
    if vocab_size > pretrained.vocab_size:
        raise UserError(
            f"{student.init}: the tokenizer has {vocab_size} tokens, the embedding {pretrained.vocab_size} rows; "
            "these are not of one model"
        )
    if pretrained.max_length and length > pretrained.max_length:
        raise UserError(
            f"{student.init}: the encoder has {pretrained.max_length} positions, fewer than student.query_length + "
            f"student.item_length = {length}; make them shorter"
        )
    return pretrained

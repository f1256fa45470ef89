"""Models from the config."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.models.decoder import Decoder, DecoderConfig
from jax_rele.models.encoder import EncoderConfig
from jax_rele.models.encoder_families import encoder_config
from jax_rele.models.families import decoder_config
from jax_rele.models.lora import LoraSpec
from jax_rele.models.rope import Rope


def build_teacher(teacher: config.TeacherConfig, vocab_size: int) -> Decoder:
    """The teacher's decoder with its adapters, without weights.

    Args:
      teacher: its section of the config; the shape is that of `teacher.random`, or of the weights at `teacher.init`.
      vocab_size: number of tokens of its tokenizer.

    Raises:
      UserError: the config of the weights is missing or not supported, has fewer tokens than the tokenizer, or has
        windows that `teacher.attention` cannot compute.
    """
    if teacher.init == "random":
        shape = teacher.random
        decoder = DecoderConfig(
            vocab_size=vocab_size,
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            mlp_width=shape.mlp_width,
            rope=Rope(theta=shape.rope_theta),
        )
    else:
        decoder = decoder_config(teacher.init)
        _check_vocabulary(teacher.init, vocab_size, decoder.vocab_size)
        if teacher.attention != "xla" and len(set(decoder.windows)) > 1:
            raise UserError(
                f"teacher.attention: {teacher.attention} takes one window for all layers, and those of {teacher.init} "
                "differ; set it to xla"
            )
    lora, dtype = teacher.lora, jnp.dtype(teacher.dtype)
    decoder = dataclasses.replace(
        decoder,
        attention=teacher.attention,
        remat=teacher.remat,
        lora=LoraSpec(lora.rank, lora.alpha, lora.dropout, lora.targets, lora.rank_stabilized),
        dtype=dtype,
        param_dtype=dtype,
    )
    return Decoder(decoder)


def build_encoder(student: config.StudentConfig, vocab_size: int) -> EncoderConfig:
    """The encoder of the students; see `jax_rele.students.build_student`."""
    length, dtype = student.query_length + student.item_length, jnp.dtype(student.dtype)
    if student.init == "random":
        shape = student.random
        return EncoderConfig(
            vocab_size=vocab_size,
            # A rationale that is read with the pair comes after it.
            max_length=length + student.rationale_length,
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            mlp_width=shape.mlp_width,
            dropout=student.dropout,
            dtype=dtype,
        )
    encoder = encoder_config(student.init, dropout=student.dropout, dtype=dtype)
    _check_vocabulary(student.init, vocab_size, encoder.vocab_size)
    if encoder.max_length and length > encoder.max_length:
        raise UserError(
            f"{student.init}: the encoder has {encoder.max_length} positions, fewer than student.query_length + "
            f"student.item_length = {length}; make them shorter"
        )
    return encoder


def _check_vocabulary(source: str, tokens: int, rows: int) -> None:
    """Raises UserError where a tokenizer has more tokens than the embedding has rows."""
    if tokens > rows:
        raise UserError(
            f"{source}: the tokenizer has {tokens} tokens, the embedding {rows} rows; these are not of one model"
        )

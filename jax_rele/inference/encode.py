"""The students at work: pairs in, outputs as numpy arrays out, one compile per student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from flax import linen as nn
from transformers import PreTrainedTokenizerBase

from jax_rele.data.encoding import encode_cross, encode_towers
from jax_rele.models import CrossEncoder
from jax_rele.types import Pair, StudentOutputs


@dataclass(frozen=True)
class Student:
    """A student with what it takes to read pairs.

    Attributes:
      model, variables: the Linen module and its parameters.
      tokenizer: the encoder's.
      fields: the item's texts that it reads.
      query_length, item_length: most tokens of a side.
      batch_size: pairs per forward pass.
    """

    model: nn.Module
    variables: dict
    tokenizer: PreTrainedTokenizerBase
    fields: tuple[str, ...]
    query_length: int
    item_length: int
    batch_size: int = 64


@partial(jax.jit, static_argnames=("model",))
def _apply(model: nn.Module, variables: dict, inputs: dict) -> StudentOutputs:
    return model.apply(variables, **inputs)


def encode_inputs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
) -> dict[str, np.ndarray]:
    """The keyword arguments of `model` for these pairs."""
    encode = encode_cross if isinstance(model, CrossEncoder) else encode_towers
    return encode(tokenizer, pairs, fields, query_length, item_length)


def predict(
    student: Student, pairs: Sequence[Pair], *, progress: Callable[[int], None] = lambda pairs: None
) -> StudentOutputs:
    """Judges pairs, in order. Returns numpy arrays with as many rows; `pairs` must not be empty."""
    outputs = []
    for start in range(0, len(pairs), student.batch_size):
        batch = list(pairs[start : start + student.batch_size])
        count = len(batch)
        batch += batch[:1] * (student.batch_size - count)
        inputs = encode_inputs(
            student.model, student.tokenizer, batch, student.fields, student.query_length, student.item_length
        )
        result = jax.device_get(_apply(student.model, student.variables, inputs))
        outputs.append(result)
        progress(count)
    return jax.tree.map(lambda *xs: np.concatenate(xs)[: len(pairs)], *outputs)


def label_probs(outputs: StudentOutputs) -> np.ndarray:
    """[N, C] float64 label distribution of a student's logits."""
    logits = np.asarray(outputs.logits, np.float64)
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)

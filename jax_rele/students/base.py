"""What every student offers: its inputs for pairs, the arrays of a batch, and the heads that losses can read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.packing import pad
from jax_rele.models.encoder import EncoderConfig
from jax_rele.types import Pair, Params, PyTree

RaggedInputs = dict[str, list[list[int]]]
"""Rows of token ids (or types), one per pair, by the name of the array."""


@dataclass(frozen=True)
class InputSpec:
    """How pairs become tokens.

    Attributes:
      fields: the item's texts that are read.
      query_length, item_length: most tokens of a side.
      rationale_length: most tokens of a rationale that is read after the pair.
    """

    fields: tuple[str, ...]
    query_length: int
    item_length: int
    rationale_length: int = 0


@dataclass(frozen=True)
class TokenArray:
    """A [batch, length] array of a student's inputs; `is_token`: padded with the tokenizer's padding token, not 0."""

    length: int
    dtype: type
    is_token: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return (self.length,)


BatchSpec = dict[str, TokenArray]
"""A student's keyword arguments by name."""


class StudentModel(Protocol):
    """A Linen module that judges pairs; `StudentOutputs` says what it returns."""

    encoder: EncoderConfig
    labels: int
    dimensions: int

    def init(self, rngs: jax.Array, *args: PyTree, **kwargs: PyTree) -> PyTree: ...

    def init_with_output(self, rngs: jax.Array, *args: PyTree, **kwargs: PyTree) -> PyTree: ...

    def apply(self, variables: Params, *args: PyTree, **kwargs: PyTree) -> PyTree: ...

    def tokenize(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        spec: InputSpec,
        losses: list[np.ndarray] | None = None,
    ) -> RaggedInputs:
        """The pairs as ragged rows, not padded; what is lost is appended to `losses`, see `data.tokens.text_loss`."""

    def batch_spec(self, spec: InputSpec) -> BatchSpec:
        """The arrays of a padded batch: what training reads, the token cache stores and `plan` compiles."""

    def dummy_inputs(self) -> dict[str, PyTree]:
        """Inputs of the smallest shape."""

    @property
    def embeds(self) -> bool:
        """Whether query and item have embeddings of their own."""

    @property
    def heads(self) -> frozenset[str]:
        """The fields of `StudentOutputs` that the student can fill in training."""


def input_rows(
    model: StudentModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    spec: InputSpec,
    losses: list[np.ndarray] | None = None,
) -> RaggedInputs:
    """The keyword arguments of `model` for these pairs, not padded; what of them is lost is appended to `losses`."""
    rows = model.tokenize(tokenizer, pairs, spec, losses)
    valid = [name for name in model.batch_spec(spec) if name not in rows]  # `valid` goes with `tokens`
    return rows | {name: [[1] * len(row) for row in rows[name.replace("valid", "tokens")]] for name in valid}


def padded_inputs(
    model: StudentModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], spec: InputSpec
) -> dict[str, np.ndarray]:
    """The keyword arguments of `model` for these pairs, at full length."""
    rows = input_rows(model, tokenizer, pairs, spec)
    return {
        name: pad(rows[name], array.length, tokenizer.pad_token_id if array.is_token else 0, array.dtype)
        for name, array in model.batch_spec(spec).items()
    }


@functools.lru_cache(maxsize=32)  # a run asks once for each recipe, and tracing takes a second
def traced_heads(model: StudentModel) -> frozenset[str]:
    """The fields of `StudentOutputs` that are not None where the model reads its `dummy_inputs`."""
    inputs = model.dummy_inputs()
    outputs = jax.eval_shape(lambda rng: model.init_with_output(rng, **inputs)[0], jax.random.key(0))
    return frozenset(field.name for field in dataclasses.fields(outputs) if getattr(outputs, field.name) is not None)

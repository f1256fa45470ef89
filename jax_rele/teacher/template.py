"""The template of the rationale grammar as tokens: fixed parts are forced, the model decides the slots between them.

The result is a valid rationale whatever the model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.prompts import AnswerEncoder
from jax_rele.rationale.grammar import VALUE_DELIMITERS, Segment
from jax_rele.teacher.verbalizers import make_verdict_verbalizers

# A semicolon only begins the next value of the same slot.
_BLOCKED = frozenset(VALUE_DELIMITERS + "\\\r") - {";"}


@partial(jax.tree_util.register_dataclass, meta_fields=["prefix", "value_length"], data_fields=[
    "is_choice", "forced_suffixes", "suffix_lengths", "verbalizers", "verbalizer_lengths", "value_tokens"
])  # fmt: skip
@dataclass(frozen=True)
class DecodingTemplate:
    """D decisions, one per slot of a template, and the text that is forced around them.

    A value is decided token by token. From its second token on, the first token of the following text ends it, even
    where that token may also occur in a value: in sentencepiece vocabularies both may begin with the same space token.
    A verdict is one decision.

    Attributes:
      prefix: the tokens before the first decision.
      value_length: maximum tokens of a value.
      is_choice: [D] bool, True for a verdict.
      forced_suffixes: [D, F] int32, the tokens between each slot and the next.
      suffix_lengths: [D] int32.
      verbalizers: [K, W] int32, the tokens of each verdict, without their common first tokens, which end the suffix
        before the verdict.
      verbalizer_lengths: [K] int32.
      value_tokens: [vocabulary] bool, tokens that may occur in a value.
    """

    prefix: tuple[int, ...]
    value_length: int
    is_choice: np.ndarray
    forced_suffixes: np.ndarray
    suffix_lengths: np.ndarray
    verbalizers: np.ndarray
    verbalizer_lengths: np.ndarray
    value_tokens: np.ndarray

    @property
    def max_pending(self) -> int:
        """Maximum tokens that one decision adds: those decided and the forced suffix."""
        heads = np.where(self.is_choice, self.verbalizer_lengths.max(), 1)
        return int((heads + self.suffix_lengths).max())

    @property
    def longest(self) -> int:
        """Maximum tokens of the filled template."""
        heads = np.where(self.is_choice, self.verbalizer_lengths.max(), self.value_length)
        return len(self.prefix) + int((heads + self.suffix_lengths).sum())

    def tokens(self, slots: Sequence[Sequence[int]]) -> list[int]:
        """The tokens of the template, filled with the tokens of each slot."""
        ids = list(self.prefix)
        for slot, suffix, length in zip(slots, self.forced_suffixes, self.suffix_lengths):
            ids += [*slot, *suffix[:length].tolist()]
        return ids

    def verdict_tokens(self, choice: int) -> list[int]:
        """The tokens of a verdict, without those common to all."""
        return self.verbalizers[choice, : self.verbalizer_lengths[choice]].tolist()


@lru_cache(maxsize=4)
def value_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> np.ndarray:
    """[size] bool: the tokens that may occur in a value.

    The delimiters are ASCII, and in UTF-8 no part of another character is an ASCII byte. Tokens without delimiters
    therefore never form one when joined, even where a single token is not valid text. Added tokens (special tokens,
    markers of tools and roles) and ids without a token are excluded.
    """
    allowed = np.zeros(size, bool)
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for token, name in enumerate(vocabulary):
        allowed[token] = name is not None and _BLOCKED.isdisjoint(tokenizer.convert_tokens_to_string([name]))
    allowed[[*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]] = False
    return allowed


def compile_template(
    tokenizer: PreTrainedTokenizerBase, encoder: AnswerEncoder, segments: Sequence[Segment], vocab_size: int
) -> DecodingTemplate:
    """Compiles the comparisons of a grammar template to tokens.

    Args:
      tokenizer: the teacher's.
      encoder: gives the token ids of the fixed parts, as in training.
      segments: fixed parts, values and verdicts, beginning with a fixed part.
      vocab_size: rows of the model's output embedding.

    Raises:
      UserError: two verdicts begin with the same token.
    """
    verdicts = make_verdict_verbalizers(tokenizer)
    fixed: list[list[int]] = [[]]
    is_choice = []
    for segment in segments:
        if segment.kind == "fixed":
            fixed[-1] += encoder.segment_ids(segment.text, "fixed")
            continue
        if segment.kind == "verdict":
            fixed[-1] += verdicts.common
        is_choice.append(segment.kind == "verdict")
        fixed.append([])
    prefix, *suffixes = fixed
    return DecodingTemplate(
        prefix=tuple(prefix),
        value_length=encoder.value_length,
        is_choice=np.array(is_choice),
        forced_suffixes=pad(suffixes, max(1, *map(len, suffixes)), 0),
        suffix_lengths=np.array([len(suffix) for suffix in suffixes], np.int32),
        verbalizers=pad(verdicts.rests, max(map(len, verdicts.rests)), 0),
        verbalizer_lengths=np.array([len(rest) for rest in verdicts.rests], np.int32),
        value_tokens=value_tokens(tokenizer, vocab_size),
    )

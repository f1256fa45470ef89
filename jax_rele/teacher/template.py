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
from jax_rele.teacher.verbalizers import Verbalizers, make_verdict_verbalizers
from jax_rele.types import VERDICTS

VERDICT, LABEL = 0, 1
"""The sets of alternatives of `DecodingTemplate.choice`."""

# A semicolon only begins the next value of the same slot.
_BLOCKED = frozenset(VALUE_DELIMITERS + "\\\r") - {";"}


@partial(jax.tree_util.register_dataclass, meta_fields=["prefix", "value_length"], data_fields=[
    "choice", "forced_suffixes", "suffix_lengths", "verbalizers", "verbalizer_lengths", "value_tokens"
])  # fmt: skip
@dataclass(frozen=True)
class DecodingTemplate:
    """D decisions, one per slot of a template, and the text that is forced around them.

    A value is decided token by token. From its second token on, the first token of the following text ends it, even
    where that token may also occur in a value: in sentencepiece vocabularies both may begin with the same space token.
    A verdict is one decision, and so is the label.

    Attributes:
      prefix: the tokens before the first decision.
      value_length: maximum tokens of a value.
      choice: [D] int32, `VERDICT` or `LABEL` for a choice among S sets of alternatives, -1 for a value.
      forced_suffixes: [D, F] int32, the tokens between each slot and the next.
      suffix_lengths: [D] int32.
      verbalizers: [S, K, W] int32, the tokens of each alternative, without their common first tokens, which end the
        suffix before the choice; -1 where a set has fewer than K.
      verbalizer_lengths: [S, K] int32.
      value_tokens: [vocabulary] bool, tokens that may occur in a value.
    """

    prefix: tuple[int, ...]
    value_length: int
    choice: np.ndarray
    forced_suffixes: np.ndarray
    suffix_lengths: np.ndarray
    verbalizers: np.ndarray
    verbalizer_lengths: np.ndarray
    value_tokens: np.ndarray

    @property
    def is_choice(self) -> np.ndarray:
        """[D] bool, False for a value."""
        return self.choice >= 0

    @property
    def decides_label(self) -> bool:
        """Whether the last decision is the label."""
        return bool(self.choice[-1] == LABEL)

    @property
    def max_pending(self) -> int:
        """Maximum tokens that one decision adds: those decided and the forced suffix."""
        return int((self._heads(1) + self.suffix_lengths).max())

    @property
    def longest(self) -> int:
        """Maximum tokens of the filled template."""
        return len(self.prefix) + int((self._heads(self.value_length) + self.suffix_lengths).sum())

    def _heads(self, value: int) -> np.ndarray:
        """[D] int: maximum tokens of each decision, `value` for those of values."""
        return np.where(self.is_choice, self.verbalizer_lengths.max(axis=1)[self.choice], value)

    def tokens(self, slots: Sequence[Sequence[int]]) -> list[int]:
        """The tokens of the template, filled with the tokens of each slot."""
        ids = list(self.prefix)
        for slot, suffix, length in zip(slots, self.forced_suffixes, self.suffix_lengths):
            ids += [*slot, *suffix[:length].tolist()]
        return ids

    def before_choices(self, slots: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """The tokens of the filled template before its last choice, and how many of them precede each choice."""
        ids, before = list(self.prefix), []
        for choice, slot, suffix, length in zip(self.choice, slots, self.forced_suffixes, self.suffix_lengths):
            if choice >= 0:
                before.append(len(ids))
            ids += [*slot, *suffix[:length].tolist()]
        return ids[: before[-1]], before

    def slots(self, encoder: AnswerEncoder, segments: Sequence[Segment]) -> list[tuple[int, ...]]:
        """The tokens of each slot of a rationale's segments, without those that all alternatives begin with."""
        free = [segment for segment in segments if segment.kind not in ("fixed", "label")]
        slots = []
        for segment, choice in zip(free, self.choice.tolist()):
            if choice < 0:
                slots.append(encoder.segment_ids(segment.text, segment.kind))
            else:
                slots.append(tuple(self.alternative(choice, VERDICTS.index(segment.text.strip()))))
        return [*slots, *[()] * (len(self.choice) - len(free))]

    def alternative(self, choice: int, index: int) -> list[int]:
        """The tokens of an alternative of `VERDICT` or `LABEL`, without those common to all."""
        return self.verbalizers[choice, index, : self.verbalizer_lengths[choice, index]].tolist()


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
    tokenizer: PreTrainedTokenizerBase,
    encoder: AnswerEncoder,
    segments: Sequence[Segment],
    vocab_size: int,
    labels: Verbalizers | None = None,
) -> DecodingTemplate:
    """Compiles the comparisons of a grammar template, and the label after them, to tokens.

    Args:
      tokenizer: the teacher's.
      encoder: gives the token ids of the fixed parts, as in training.
      segments: fixed parts, values and verdicts, beginning with a fixed part, and at most one label, as the last.
      vocab_size: rows of the model's output embedding.
      labels: the alternatives of the label, which begin with different tokens; needed where `segments` has one.

    Raises:
      UserError: two verdicts begin with the same token.
    """
    sets = [make_verdict_verbalizers(tokenizer), *([labels] if labels else [])]
    fixed: list[list[int]] = [[]]
    choice = []
    for segment in segments:
        if segment.kind == "fixed":
            fixed[-1] += encoder.segment_ids(segment.text, "fixed")
            continue
        choice.append({"verdict": VERDICT, "label": LABEL}.get(segment.kind, -1))
        if choice[-1] >= 0:
            fixed[-1] += sets[choice[-1]].common
        fixed.append([])
    lengths = pad([[len(rest) for rest in one.rests] for one in sets], max(len(one.rests) for one in sets), 0)
    verbalizers = np.full((*lengths.shape, lengths.max()), -1, np.int32)
    for index, one in enumerate(sets):
        verbalizers[index, : len(one.rests)] = pad(one.rests, lengths.max(), 0)
    prefix, *suffixes = fixed
    return DecodingTemplate(
        prefix=tuple(prefix),
        value_length=encoder.value_length,
        choice=np.array(choice, np.int32),
        forced_suffixes=pad(suffixes, max(1, *map(len, suffixes)), 0),
        suffix_lengths=np.array([len(suffix) for suffix in suffixes], np.int32),
        verbalizers=verbalizers,
        verbalizer_lengths=lengths,
        value_tokens=value_tokens(tokenizer, vocab_size),
    )

"""What a teacher may write, as tokens: the grammar's template with its fixed parts forced and its slots free.

Whatever the model's weights, what comes out is a rationale: fixed text is read as it stands, a verdict is one of the
known words, and a value ends where its slot does.
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
from jax_rele.teacher.verbalizers import verdict_words

# A semicolon only begins the next value of the same slot.
_BLOCKED = frozenset(VALUE_DELIMITERS + "\\\r") - {";"}


@partial(jax.tree_util.register_dataclass, meta_fields=["lead", "value_length"], data_fields=[
    "is_choice", "tails", "tail_lengths", "words", "word_lengths", "value_tokens"
])  # fmt: skip
@dataclass(frozen=True)
class DecodingTemplate:
    """D decisions, one per slot of a template, and the text that is forced around them.

    A value is decided token by token. From its second token on, the first token of the text behind it ends it, also
    where that token may stand in a value: sentencepiece vocabularies begin both with the same blank. A verdict is one
    decision.

    Attributes:
      lead: the tokens before the first decision.
      value_length: most tokens of a value.
      is_choice: [D] bool, True for a verdict.
      tails: [D, F] int32, what is forced behind each slot up to the next.
      tail_lengths: [D] int32.
      words: [K, W] int32, the verdicts' tokens, those that all begin with left out (they are in the tail before).
      word_lengths: [K] int32.
      value_tokens: [vocabulary] bool, tokens that may stand in a value.
    """

    lead: tuple[int, ...]
    value_length: int
    is_choice: np.ndarray
    tails: np.ndarray
    tail_lengths: np.ndarray
    words: np.ndarray
    word_lengths: np.ndarray
    value_tokens: np.ndarray

    @property
    def longest_run(self) -> int:
        """Most tokens that one decision adds: the decided ones and the text that is forced behind them."""
        heads = np.where(self.is_choice, self.word_lengths.max(), 1)
        return int((heads + self.tail_lengths).max())

    @property
    def longest(self) -> int:
        """Most tokens of the whole."""
        heads = np.where(self.is_choice, self.word_lengths.max(), self.value_length)
        return len(self.lead) + int((heads + self.tail_lengths).sum())

    def tokens(self, slots: Sequence[Sequence[int]]) -> list[int]:
        """The whole, given the tokens of each slot."""
        ids = list(self.lead)
        for slot, tail, length in zip(slots, self.tails, self.tail_lengths):
            ids += [*slot, *tail[:length].tolist()]
        return ids

    def word(self, choice: int) -> list[int]:
        """The tokens of a verdict's slot."""
        return self.words[choice, : self.word_lengths[choice]].tolist()


@lru_cache(maxsize=4)
def value_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> np.ndarray:
    """[size] bool: the tokens that may stand in a value.

    The delimiters are ASCII. In UTF-8 no part of another character is an ASCII byte, so tokens that are each free of
    delimiters are free of them together, also where a token alone is no valid text. Tokens that were added to the
    vocabulary by name (special tokens, marks of tools and roles) and ids without a token are left out.
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
    """The program of a part of a template that holds comparisons.

    Args:
      tokenizer: the teacher's.
      encoder: gives the token ids of the fixed parts, as in training.
      segments: fixed parts, values and verdicts, beginning with a fixed part.
      vocab_size: rows of the model's output embedding.

    Raises:
      UserError: the tokenizer does not tell the verdicts apart.
    """
    verdicts = verdict_words(tokenizer)
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
    lead, *tails = fixed
    return DecodingTemplate(
        lead=tuple(lead),
        value_length=encoder.value_length,
        is_choice=np.array(is_choice),
        tails=pad(tails, max(1, *map(len, tails)), 0),
        tail_lengths=np.array([len(tail) for tail in tails], np.int32),
        words=pad(verdicts.rests, max(map(len, verdicts.rests)), 0),
        word_lengths=np.array([len(rest) for rest in verdicts.rests], np.int32),
        value_tokens=value_tokens(tokenizer, vocab_size),
    )

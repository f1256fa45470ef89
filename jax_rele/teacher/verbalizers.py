"""The words of a choice as tokens: which label, which verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from jax_rele.errors import UserError
from jax_rele.rationale import grammar
from jax_rele.types import VERDICTS

Scoring = Literal["first_token", "full"]


@dataclass(frozen=True)
class Verbalizers:
    """The words that a choice is between.

    Attributes:
      common: tokens that every word begins with; they tell nothing, so they are read before the choice.
      rests: the other tokens of each word.
    """

    common: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]

    @property
    def scoring(self) -> Scoring:
        """`first_token` where the first tokens of the rests tell the words apart, otherwise `full`."""
        first = [rest[:1] for rest in self.rests]
        return "first_token" if () not in first and len(set(first)) == len(first) else "full"

    def tokens(self, word: int) -> tuple[int, ...]:
        """All tokens of a word."""
        return self.common + self.rests[word]


def _words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Verbalizers:
    ids = [tuple(tokenizer.encode(" " + text, add_special_tokens=False)) for text in texts]
    same = 0
    while all(len(word) > same for word in ids) and len({word[same] for word in ids}) == 1:
        same += 1
    return Verbalizers(ids[0][:same], tuple(word[same:] for word in ids))


def make_verbalizers(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Verbalizers:
    """The label words under a tokenizer; `scoring` of the result says how they must be scored.

    Raises:
      UserError: two labels are the same tokens.
    """
    words = _words(tokenizer, [grammar.escape(name) for name in names])
    seen: dict[tuple[int, ...], str] = {}
    for name, rest in zip(names, words.rests):
        if rest in seen:
            raise UserError(
                f"labels.names: {seen[rest]!r} and {name!r} are the same tokens to the teacher's tokenizer; rename one"
            )
        seen[rest] = name
    return words


def verdict_words(tokenizer: PreTrainedTokenizerBase) -> Verbalizers:
    """The verdicts under a tokenizer.

    Raises:
      UserError: their first tokens do not tell them apart.
    """
    words = _words(tokenizer, VERDICTS)
    if words.scoring != "first_token":
        raise UserError(
            f"the teacher's tokenizer begins two of the verdicts {', '.join(VERDICTS)} with the same token; give it a "
            "larger vocabulary (teacher.random.vocab_size) or take another teacher.init"
        )
    return words


def check_verbalizers(tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> Scoring:
    """Checks, before any long work, that labels and verdicts can be told apart; how the labels will be scored.

    Raises:
      UserError: they cannot, or the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the teacher's tokenizer has no end token (eos_token); take one that has")
    verdict_words(tokenizer)
    return make_verbalizers(tokenizer, label_names).scoring

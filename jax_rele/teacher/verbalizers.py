"""Verbalizers: the tokens by which the teacher names labels and verdicts."""

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
    """The token sequences of the alternatives of one choice.

    Attributes:
      common: tokens that all alternatives begin with; they are read before the choice.
      rests: the remaining tokens of each alternative.
    """

    common: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]

    @property
    def scoring(self) -> Scoring:
        """`first_token` where the first tokens of the rests all differ, otherwise `full`."""
        first = [rest[:1] for rest in self.rests]
        return "first_token" if () not in first and len(set(first)) == len(first) else "full"

    def tokens(self, index: int) -> tuple[int, ...]:
        """All tokens of an alternative."""
        return self.common + self.rests[index]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Verbalizers:
    ids = [tuple(tokenizer.encode(" " + text, add_special_tokens=False)) for text in texts]
    same = 0
    while all(len(tokens) > same for tokens in ids) and len({tokens[same] for tokens in ids}) == 1:
        same += 1
    return Verbalizers(ids[0][:same], tuple(tokens[same:] for tokens in ids))


def make_verbalizers(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Verbalizers:
    """Makes the verbalizers of labels; `scoring` of the result is how they must be scored.

    Raises:
      UserError: two labels have the same tokens.
    """
    verbalizers = _tokenize(tokenizer, [grammar.escape(name) for name in names])
    seen: dict[tuple[int, ...], str] = {}
    for name, rest in zip(names, verbalizers.rests):
        if rest in seen:
            raise UserError(
                f"labels.names: {seen[rest]!r} and {name!r} are the same tokens to the teacher's tokenizer; rename one"
            )
        seen[rest] = name
    return verbalizers


def make_verdict_verbalizers(tokenizer: PreTrainedTokenizerBase) -> Verbalizers:
    """Makes the verbalizers of the verdicts.

    Raises:
      UserError: two verdicts begin with the same token.
    """
    verbalizers = _tokenize(tokenizer, VERDICTS)
    if verbalizers.scoring != "first_token":
        raise UserError(
            f"the teacher's tokenizer begins two of the verdicts {', '.join(VERDICTS)} with the same token; give it a "
            "larger vocabulary (teacher.random.vocab_size) or take another teacher.init"
        )
    return verbalizers


def check_verbalizers(tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> Scoring:
    """Checks that a tokenizer distinguishes labels and verdicts; returns how the labels will be scored.

    Raises:
      UserError: it does not, or it has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the teacher's tokenizer has no end token (eos_token); take one that has")
    make_verdict_verbalizers(tokenizer)
    return make_verbalizers(tokenizer, label_names).scoring

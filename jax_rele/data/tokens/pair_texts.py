"""The texts of pairs as students read them: cleaned, joined, and tokenized once for all that needs their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from jax_rele.errors import UserError
from jax_rele.text import clean_text
from jax_rele.types import QUERY, Pair


@dataclass(frozen=True)
class Side:
    """The queries of some pairs, or their items.

    Attributes:
      tokenizer: of the student.
      parts: the (source, text) parts of each, see `Span.source`.
    """

    tokenizer: PreTrainedTokenizerBase
    parts: Sequence[Sequence[tuple[str, str]]]

    @cached_property
    def cleaned(self) -> list[list[str]]:
        """The parts' texts as they are read."""
        return [[clean_text(text) for _, text in parts] for parts in self.parts]

    @cached_property
    def texts(self) -> list[str]:
        """What is tokenized of each: its cleaned parts joined by spaces."""
        return [" ".join(parts) for parts in self.cleaned]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The different texts, of which each is tokenized once: text -> number."""
        return {text: number for number, text in enumerate(dict.fromkeys(self.texts))}

    @cached_property
    def _encodings(self):
        tokenizer, texts = self.tokenizer, list(self._numbers)
        if not tokenizer.is_fast:
            return [tokenizer(text, add_special_tokens=False, verbose=False) for text in texts]
        # What a call of the tokenizer does, without its copy of every token into a dictionary. As there, nothing is set
        # that is set already: other threads may be tokenizing.
        backend = tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens != tokenizer.split_special_tokens:
            backend.encode_special_tokens = tokenizer.split_special_tokens
        return backend.encode_batch(texts, add_special_tokens=False)

    @cached_property
    def ids(self) -> list[list[int]]:
        """The tokens of each, without special ones; equal texts share a list."""
        fast = self.tokenizer.is_fast
        rows = [encoding.ids if fast else encoding["input_ids"] for encoding in self._encodings]
        # A sentencepiece vocabulary finds its pieces wherever a text spells them out, `</s>` too: sellers forge no
        # markers.
        tokenizer = self.tokenizer
        unknown = tokenizer.pad_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
        special = {*tokenizer.all_special_ids} - {unknown}
        rows = [
            ids if special.isdisjoint(ids) else [unknown if token in special else token for token in ids]
            for ids in rows
        ]
        return [rows[self._numbers[text]] for text in self.texts]

    def offsets(self, index: int) -> list[tuple[int, int]]:
        """The characters [start, end) of the text that each token of one of them stands for.

        Raises:
          UserError: the tokenizer is not one of the package `tokenizers`, which alone say so.
        """
        if not self.tokenizer.is_fast:
            raise UserError(
                f"student.init: {type(self.tokenizer).__name__} does not say where its tokens stand in a text, as "
                "evidence needs; give a folder with tokenizer.json, or take recipes that learn no evidence"
            )
        return self._encodings[self._numbers[self.texts[index]]].offsets


class PairTexts(Sequence[Pair]):
    """Pairs as a sequence that holds their tokens too.

    The functions that make rows of tokens take any pairs. They tokenize those that are given as this class only once.

    Args:
      tokenizer: of the student.
      pairs: N pairs.
      fields: the item's texts that are read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], fields: Sequence[str]):
        self.tokenizer, self.pairs, self.fields = tokenizer, pairs, tuple(fields)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], fields: Sequence[str]) -> PairTexts:
        """The pairs themselves if they hold these tokens."""
        if isinstance(pairs, cls) and pairs.tokenizer is tokenizer and pairs.fields == tuple(fields):
            return pairs
        return cls(tokenizer, pairs, fields)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]

    @cached_property
    def queries(self) -> Side:
        """The queries."""
        return Side(self.tokenizer, [[(QUERY, pair.query)] for pair in self.pairs])

    @cached_property
    def items(self) -> Side:
        """The items."""
        return Side(self.tokenizer, [list(pair.item.texts(self.fields)) for pair in self.pairs])

    def identities(self) -> list[str]:
        """A text of each pair that is another one where its query or a field of its item is."""
        return [
            "\n".join([pair.query, *(text for _, text in item)]) for pair, item in zip(self.pairs, self.items.parts)
        ]

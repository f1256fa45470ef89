"""What of texts does not reach a model: characters that the tokenizer does not know, and ends that are cut."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.config import TextLossConfig
from jax_rele.data.tokens.pair_texts import PairTexts
from jax_rele.errors import UserError
from jax_rele.text import text_key

COLUMNS = (
    *("tokens", "unknown_tokens", "characters", "unknown_characters", "query_tokens_cut", "item_tokens_cut"),
    *("read_hash", "text_hash"),
)
"""What is counted of a pair, and 64 bits that stand for the tokens that a model reads of it, and for its text."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What stands for bytes that were no text; tokenizers leave it out, as they do some characters that are not shown."""

WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"

_RARE = ("\u0e40", "\u4f60", "\u16a0", "\ua66e", "\U00013000")
"""Characters of which a tokenizer that knows not all of Unicode does not know one at least."""


@dataclass(frozen=True)
class TextLoss:
    """What of the texts of some pairs does not reach a model.

    Attributes:
      pairs: how many there are.
      tokens: of their queries and items, cut ones too.
      unknown_tokens: tokens among them that stand for what the tokenizer does not know, one for a whole word or text.
      characters: of their queries and items, white space apart.
      unknown_characters: characters among them that are in no other token.
      cut_pairs: pairs whose query or item is cut; `cut_queries` and `cut_items` count each.
      cut_tokens: tokens that are cut.
      merged_pairs: pairs with the same tokens as an earlier pair of another text.
    """

    pairs: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    characters: int = 0
    unknown_characters: int = 0
    cut_pairs: int = 0
    cut_queries: int = 0
    cut_items: int = 0
    cut_tokens: int = 0
    merged_pairs: int = 0

    @property
    def unknown_fraction(self) -> float:
        """Of the characters, those that the tokenizer does not know."""
        return self.unknown_characters / self.characters if self.characters else 0.0

    @property
    def cut_fraction(self) -> float:
        """Of the pairs, those whose query or item is cut."""
        return self.cut_pairs / self.pairs if self.pairs else 0.0

    def __add__(self, other: TextLoss) -> TextLoss:
        return TextLoss(**{name: count + getattr(other, name) for name, count in asdict(self).items()})

    def counts(self) -> dict[str, int]:
        """The counts by name, for the manifest of a stage; the pairs apart, which it counts itself."""
        return {name: count for name, count in asdict(self).items() if name != "pairs"}

    def __str__(self) -> str:
        return (
            f"{self.unknown_characters} of {self.characters} characters unknown ({self.unknown_fraction:.1%}); "
            f"{self.cut_queries} queries and {self.cut_items} items of {self.pairs} pairs cut, "
            f"{self.cut_tokens} tokens"
        )


def summarize(losses: Sequence[np.ndarray]) -> TextLoss:
    """The sums of arrays of `COLUMNS`, each [n, 8]; pairs of different arrays are merged too."""
    counts = np.concatenate([np.zeros((0, len(COLUMNS)), np.int64), *losses])
    tokens, unknown_tokens, characters, unknown_characters, query_cut, item_cut, read, texts = counts.T
    return TextLoss(
        pairs=len(counts),
        tokens=int(tokens.sum()),
        unknown_tokens=int(unknown_tokens.sum()),
        characters=int(characters.sum()),
        unknown_characters=int(unknown_characters.sum()),
        cut_pairs=int((query_cut + item_cut > 0).sum()),
        cut_queries=int((query_cut > 0).sum()),
        cut_items=int((item_cut > 0).sum()),
        cut_tokens=int(query_cut.sum() + item_cut.sum()),
        merged_pairs=_count_merged(read, texts),
    )


def _count_merged(read: np.ndarray, texts: np.ndarray) -> int:
    """How many rows have another text than the first one of which the same is read."""
    if not len(read):
        return 0
    order = np.argsort(read, kind="stable")
    starts = np.flatnonzero(np.diff(read[order], prepend=~read[order[:1]]))
    sizes = np.diff(starts, append=len(read))
    return int((texts[order] != np.repeat(texts[order[starts]], sizes)).sum())


def hash_tokens(ids: Sequence[int]) -> int:
    """64 bits, signed, that stand for tokens."""
    return _hash(np.array(ids, np.int32).tobytes())


def hash_text(text: str) -> int:
    """64 bits, signed, that stand for a text's identity."""
    return _hash(text_key(text).encode("utf-8", "surrogatepass"))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)


def count_losses(texts: PairTexts, lengths: Sequence[tuple[int, int]]) -> np.ndarray:
    """[n, 8] int64 `COLUMNS` of pairs, of whose queries and items so many tokens are read."""
    tokenizer, sides = texts.tokenizer, (texts.queries, texts.items)
    queries, items = (side.ids for side in sides)
    unknown = tokenizer.unk_token_id
    characters = zip(*(count_characters(tokenizer, side.texts, side.ids) for side in sides))
    counts = [
        (
            len(query) + len(item),
            0 if unknown is None else query.count(unknown) + item.count(unknown),
            of_query[0] + of_item[0],
            of_query[1] + of_item[1],
            len(query) - m,
            len(item) - n,
            hash_tokens([*query[:m], -1, *item[:n]]),
            hash_text(identity),
        )
        for query, item, (m, n), (of_query, of_item), identity in zip(
            queries, items, lengths, characters, texts.identities()
        )
    ]
    return np.array(counts, np.int64).reshape(-1, len(COLUMNS))


def count_characters(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rows: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """The characters of each text, white space apart, and how many of them the tokenizer does not know.

    A character is known if it is in a token other than the unknown one, or is a mark that the tokenizer leaves out of a
    character that it knows, as some do with accents. Without offsets of tokens, the characters are divided as the
    tokens are.

    Args:
      tokenizer: the tokenizer.
      texts: as they are tokenized.
      rows: their tokens, or those of a longer text in which they are; without those that the tokenizer adds.
    """
    unknown = tokenizer.unk_token_id
    counts = [(sum(map(len, text.split())), 0) for text in texts]
    drops = _drops_characters(tokenizer)
    # The mark of sentencepiece before a word has the place of the word's first character.
    mark = tokenizer.convert_tokens_to_ids(WORD_MARK)
    suspects = [
        number
        for number, (text, row) in enumerate(zip(texts, rows))
        if drops or (unknown is not None and unknown in row) or _may_be_left_out(text)
    ]
    if not suspects:
        return counts
    if not tokenizer.is_fast:
        for number in suspects:
            total, row = counts[number][0], rows[number]
            counts[number] = total, round(total * row.count(unknown) / len(row)) if row else total
        return counts
    encoded = tokenizer(
        [texts[number] for number in suspects], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for number, ids, offsets in zip(suspects, encoded["input_ids"], encoded["offset_mapping"]):
        text, row = texts[number], rows[number]
        is_known, is_unknown = np.zeros((2, len(text)), bool)
        for token, (start, end) in zip(row if len(row) == len(ids) else ids, offsets):
            if token == unknown:
                is_unknown[start:end] = True
            elif token != mark:
                is_known[start:end] = True
        lost, known = 0, False
        for in_token, in_unknown, character in zip(is_known.tolist(), is_unknown.tolist(), text):
            known = in_token or (known and not in_unknown and unicodedata.category(character)[0] == "M")
            lost += not (known or character.isspace())
        counts[number] = counts[number][0], lost
    return counts


def _may_be_left_out(text: str) -> bool:
    """Whether a text holds characters that normalizers leave out, white space apart."""
    return REPLACEMENT in text or not (text.isprintable() or "".join(text.split()).isprintable())


@lru_cache(maxsize=16)
def _drops_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer leaves out what it does not know, without a token for it."""
    return not all(tokenizer(list(_RARE), add_special_tokens=False, verbose=False)["input_ids"])


def check_text_loss(
    where: str,
    loss: TextLoss,
    limits: TextLossConfig,
    *,
    remedies: tuple[str, str],
    say: Callable[[str], None] = print,
    within: str = "",
) -> None:
    """Says what is lost above the limits of warnings, and refuses what is above the others.

    Args:
      where: who reads the texts, the beginning of the message.
      loss: what is lost.
      limits: fractions of unknown characters and of cut pairs.
      remedies: what helps against unknown text, and against cut texts.
      say: receives a warning.
      within: among which pairs those with the same tokens are counted, where that is not all of them.

    Raises:
      UserError: more is lost than the limits allow.
    """
    against_unknown, against_cut = remedies
    unknown = f"{loss.unknown_fraction:.1%} of the characters are unknown to the tokenizer"
    cut = f"{loss.cut_fraction:.1%} of the pairs lose the end of their query or item"
    for fraction, limit, what, remedy, option in (
        (loss.unknown_fraction, limits.max_unknown, unknown, against_unknown, "max_unknown"),
        (loss.cut_fraction, limits.max_cut, cut, against_cut, "max_cut"),
    ):
        if fraction > limit:
            raise UserError(f"{where}: {what}, more than data.text_loss.{option} {limit:g}; {remedy}")
    for fraction, limit, what, remedy in (
        (loss.unknown_fraction, limits.warn_unknown, unknown, against_unknown),
        (loss.cut_fraction, limits.warn_cut, cut, against_cut),
    ):
        if fraction > limit:
            say(f"warning: {where}: {what}; {remedy}")
    if loss.merged_pairs:
        other = f"another pair {within}".rstrip()
        say(f"warning: {where}: {loss.merged_pairs} pairs have the same tokens as {other} with another text")

"""What of texts does not reach a model: tokens that the tokenizer does not know, and ends that are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from jax_rele.config import TextLossConfig
from jax_rele.errors import UserError
from jax_rele.text import text_key

COLUMNS = ("tokens", "unknown_tokens", "query_tokens_cut", "item_tokens_cut", "merged")
"""What is counted of a pair. `merged` is 1 where an earlier pair with another text has the same tokens."""


@dataclass(frozen=True)
class TextLoss:
    """What of the texts of some pairs does not reach a model.

    Attributes:
      pairs: how many there are.
      tokens: of their queries and items, cut ones too.
      unknown_tokens: tokens among them that the tokenizer does not know.
      cut_pairs: pairs whose query or item is cut; `cut_queries` and `cut_items` count each.
      cut_tokens: tokens that are cut.
      merged_pairs: pairs with the same tokens as an earlier pair of another text.
    """

    pairs: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    cut_pairs: int = 0
    cut_queries: int = 0
    cut_items: int = 0
    cut_tokens: int = 0
    merged_pairs: int = 0

    @property
    def unknown_fraction(self) -> float:
        """Of the tokens, those that are unknown."""
        return self.unknown_tokens / self.tokens if self.tokens else 0.0

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
            f"{self.unknown_tokens} of {self.tokens} tokens unknown ({self.unknown_fraction:.1%}); "
            f"{self.cut_queries} queries and {self.cut_items} items of {self.pairs} pairs cut, "
            f"{self.cut_tokens} tokens"
        )


def summarize(losses: Sequence[np.ndarray]) -> TextLoss:
    """The sums of arrays of `COLUMNS`, each [n, 5]."""
    counts = np.concatenate([np.zeros((0, len(COLUMNS)), np.int64), *losses])
    tokens, unknown, query_cut, item_cut, merged = counts.T
    return TextLoss(
        pairs=len(counts),
        tokens=int(tokens.sum()),
        unknown_tokens=int(unknown.sum()),
        cut_pairs=int((query_cut + item_cut > 0).sum()),
        cut_queries=int((query_cut > 0).sum()),
        cut_items=int((item_cut > 0).sum()),
        cut_tokens=int(query_cut.sum() + item_cut.sum()),
        merged_pairs=int(merged.sum()),
    )


def count_losses(
    queries: Sequence[Sequence[int]],
    items: Sequence[Sequence[int]],
    lengths: Sequence[tuple[int, int]],
    texts: Sequence[str],
    unknown: int | None,
) -> np.ndarray:
    """[n, 5] `COLUMNS` of pairs.

    Args:
      queries, items: the tokens of each pair's texts, not cut.
      lengths: how many of both are kept.
      texts: query and item of each pair.
      unknown: the token that stands for what the tokenizer does not know; None where it knows everything.
    """
    rows = [(*query[:m], -1, *item[:n]) for query, item, (m, n) in zip(queries, items, lengths)]
    counts = [
        (
            len(query) + len(item),
            0 if unknown is None else query.count(unknown) + item.count(unknown),
            len(query) - m,
            len(item) - n,
            merged,
        )
        for query, item, (m, n), merged in zip(queries, items, lengths, merged_rows(rows, texts))
    ]
    return np.array(counts, np.int32).reshape(-1, len(COLUMNS))


def merged_rows(rows: Sequence[Sequence[int]], texts: Sequence[str]) -> list[bool]:
    """Whether an earlier row of another text has the same tokens."""
    first: dict[tuple[int, ...], str] = {}
    keys = map(text_key, texts)
    return [first.setdefault(tuple(row), key) != key for row, key in zip(rows, keys)]


def check_text_loss(
    where: str,
    loss: TextLoss,
    limits: TextLossConfig,
    *,
    remedies: tuple[str, str],
    say: Callable[[str], None] = print,
) -> None:
    """Says what is lost above the limits of warnings, and refuses what is above the others.

    Args:
      where: who reads the texts, the beginning of the message.
      loss: what is lost.
      limits: fractions of unknown tokens and of cut pairs.
      remedies: what helps against unknown tokens, and against cut texts.
      say: receives a warning.

    Raises:
      UserError: more is lost than the limits allow.
    """
    against_unknown, against_cut = remedies
    unknown = f"{loss.unknown_fraction:.1%} of the tokens are unknown to the tokenizer"
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
        say(f"warning: {where}: {loss.merged_pairs} pairs have the same tokens as another pair with another text")

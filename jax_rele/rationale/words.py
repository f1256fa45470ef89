"""Words of a text, their normal forms, and the occurrences of a phrase.

The normal form of a word ignores case, accents, compatibility forms (full width, ligatures, fractions), apostrophes,
possessive and plural endings, and the spelling of units and of a few words. Texts with equal keys are equal values. The
key of a text joins its words without spaces, so `T-shirts`, `t shirt` and `TShirt` have one key; two numbers are joined
by `_`. Leading articles and a leading `for` are left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import regex

from jax_rele.text import UNSPACED, drop_ignorable, is_ignorable, normal_width

T = TypeVar("T")

# Of scripts without spaces each letter is a word. Combining marks and characters that are not shown belong to the
# letter before them; `words` masks them all as U+0300 first.
_LETTERS = rf"(?:[^\W_{UNSPACED}]|[\p{{N}}\u0300])+"
_WORD = regex.compile(
    rf"[{UNSPACED}]\u0300*"
    # 9.5, 1/2 and 1,000 are one word; so are men's and 12", where the quote is inches.
    rf"|{_LETTERS}(?:(?:(?<=\d)(?:[./]|,(?=\d{{3}}(?!\d)))(?=\d)|['’](?=[^\W_{UNSPACED}])){_LETTERS})*(?:(?<=\d)[\"”″])?"
)
_APOSTROPHES = re.compile("['’]")
_POSSESSIVE = re.compile("['’]s?$")
_NUMBER_UNIT = re.compile(r"(\d[\d./]*)([^\W\d_]+|[\"”″])")
_LEADING = frozenset({"the", "a", "an", "for"})

_SPELLINGS = {
    "colour": "color", "grey": "gray", "jewellery": "jewelry", "aluminium": "aluminum", "silicon": "silicone",
    "wooden": "wood", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "knive": "knife", "leave": "leaf", "shelve": "shelf", "ft": "foot", "lb": "pound", "lbs": "pound",
    "oz": "ounce", "gal": "gallon", "yr": "year", "pc": "piece", "pcs": "piece", "pk": "pack",
}  # fmt: skip
# `in` is a unit only right after a number: as a word of its own it is a preposition.
_UNITS = {'"': "inch", "”": "inch", "″": "inch", "in": "inch", "ins": "inch"}


class Word(NamedTuple):
    """A word of a text: its normal form and its characters [start, end) in the original text."""

    norm: str
    start: int
    end: int


@lru_cache(maxsize=1 << 17)
def normalize_word(word: str) -> str:
    """The normal form of one word; empty for a word of marks alone."""
    word = drop_ignorable(unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", word).casefold()))
    word = _APOSTROPHES.sub("", _POSSESSIVE.sub("", word))
    word = "".join(c for c in word.replace("\u2044", "/") if not "\u0300" <= c <= "\u036f" and c != ",")
    if measured := _NUMBER_UNIT.fullmatch(word):
        return measured[1] + (_UNITS.get(measured[2]) or _singular(measured[2]))
    return _singular(word)


def words(text: str) -> list[Word]:
    """The words of a text, in order; offsets are those of the original characters."""
    masked = text
    if not (text.isascii() and text.isprintable()):
        # Characters are replaced one by one, so that offsets stay: full width by normal width, a sign for a unit (`㎏`)
        # by a letter.
        masked = "".join(_mask(c) for c in normal_width(text))
    candidates = (Word(normalize_word(text[m.start() : m.end()]), m.start(), m.end()) for m in _WORD.finditer(masked))
    return [word for word in candidates if word.norm]


@lru_cache(maxsize=1 << 12)
def _mask(character: str) -> str:
    """What stands for a character where words are looked for: U+0300 where it belongs to the letter before it."""
    if unicodedata.category(character).startswith("M") or is_ignorable(character):
        return "\u0300"
    return "k" if unicodedata.decomposition(character).startswith("<square>") else character


def join(norms: Sequence[str]) -> str:
    """The key of a run of normal forms: joined without spaces, with `_` between two digits."""
    key = ""
    for norm in norms:
        key += "_" + norm if key[-1:].isdigit() and norm[0].isdigit() else norm
    return key


def key(text: str) -> str:
    """The key that texts are compared by; empty for a text without words."""
    return join([word.norm for word in content(words(text))])


def content(text_words: Sequence[Word]) -> Sequence[Word]:
    """The words without leading articles and `for`, unless there are no others."""
    for position, word in enumerate(text_words):
        if word.norm not in _LEADING:
            return text_words[position:]
    return text_words


def runs(text_words: Sequence[Word], phrase_key: str) -> Iterator[tuple[int, int]]:
    """The [start, end) word positions of every run of words whose key is `phrase_key`."""
    for start, word in enumerate(text_words):
        if not phrase_key.startswith(word.norm):
            continue
        joined = ""
        for end in range(start, len(text_words)):
            joined = join([joined, text_words[end].norm]) if joined else text_words[end].norm
            # The key of a run that begins with an article is not that of its joined words: `a x` is not `ax`.
            if joined == phrase_key and join([w.norm for w in content(text_words[start : end + 1])]) == phrase_key:
                yield start, end + 1
            if not phrase_key.startswith(joined):
                break


def longest_first(hits: Iterable[tuple[int, int, T]]) -> list[tuple[int, int, T]]:
    """The (start, end, what) hits that do not overlap a better one, in text order.

    The longer hit (in words) is better, then the earlier one in `hits`.
    """
    covered: set[int] = set()
    selected = []
    for start, end, what in sorted(hits, key=lambda hit: hit[0] - hit[1]):
        if covered.isdisjoint(range(start, end)):
            covered.update(range(start, end))
            selected.append((start, end, what))
    return sorted(selected, key=lambda hit: hit[0])


def _singular(word: str) -> str:
    if len(word) > 3 and word.isalpha():
        if word.endswith("ies") and len(word) > 4:
            word = word[:-3] + "y"
        elif word.endswith(("sses", "shes", "ches", "xes", "zzes")):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
    return _SPELLINGS.get(word, word)

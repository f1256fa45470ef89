"""When two texts are the same, what a word is, and what models read of a text: one notion for the whole package.

Splits, duplicates, the long tail, candidates, baselines, annotators, metrics and models use these, so that a query that
looks the same is the same everywhere. Width, composition and invisible characters never make a difference:

- `clean_text`, what models read: without full and half width, decomposition, and characters that are not shown;
- `text_key`, the identity of a text: also without case, compatibility forms (`²`, `ﬁ`), and the length of white space;
- `lexical_words`, for lexical matching: the words of the key.
"""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Line_Break=Complex_Context}\u30fc"
"""The characters of scripts that are written without spaces, as the inside of a set of the `regex` package: Chinese and
Japanese, and Thai, Lao, Khmer, Burmese and their relatives, which Unicode's line breaking calls complex."""

_IGNORABLE = regex.compile(r"[[\p{Default_Ignorable_Code_Point}\p{Cc}]--\s]", regex.V1)
_SPELT = r"\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Line_Break=Complex_Context}\u30fc"
_WORD = regex.compile(
    rf"(?P<ideograph>\p{{Han}}\p{{M}}*)|(?P<spelt>[{_SPELT}][{_SPELT}\p{{M}}]*)|[[\w\p{{N}}]--[{UNSPACED}]]+", regex.V1
)
_ASCII_WORD = regex.compile(r"[0-9A-Z_a-z]+")
_LETTER = regex.compile(r"\X")
_WHOLE_FLOAT = regex.compile(r"(-?(?:0|[1-9]\d*))(?:\.0+)?")
"""A whole number as floats and decimals are written: without zeros before it."""
LARGEST_EXACT_FLOAT = 2**53
"""Beyond it a float has no room for every whole number, and several are written alike."""
_LOCALE_SEPARATORS = regex.compile(r"[\s_-]+")


def _widths() -> dict[int, str]:
    """The full-width and half-width characters and what each stands for."""
    forms = {code: unicodedata.decomposition(chr(code)).split() for code in (0x3000, *range(0xFF00, 0xFFF0))}
    return {code: chr(int(form[1], 16)) for code, form in forms.items() if form and form[0] in ("<wide>", "<narrow>")}


_WIDTHS = _widths()


def clean_text(text: str) -> str:
    """What models read of a text: normal width, composed (NFC), without characters that are not shown.

    Not shown are Unicode's default-ignorable characters (zero-width spaces and joiners, byte order marks, soft hyphens,
    variation selectors, direction marks) and control characters other than white space.
    """
    if text.isascii() and text.isprintable():
        return text
    return unicodedata.normalize("NFC", _IGNORABLE.sub("", text.translate(_WIDTHS)))


def clean_text_spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """`clean_text`, and for each of its characters the [start, end) characters of `text` that it stands for."""
    visible = [
        (character, index)
        for index, character in enumerate(text.translate(_WIDTHS))
        if not _IGNORABLE.fullmatch(character)
    ]
    cleaned: list[str] = []
    spans: list[tuple[int, int]] = []
    position = 0
    # Marks are composed with the letter before them, never across letters.
    for letter in _LETTER.findall("".join(character for character, _ in visible)):
        composed = unicodedata.normalize("NFC", letter)
        indices = [index for _, index in visible[position : position + len(letter)]]
        position += len(letter)
        cleaned.append(composed)
        if composed == letter:
            spans += [(index, index + 1) for index in indices]
        else:
            spans += [(indices[0], indices[-1] + 1)] * len(composed)
    return "".join(cleaned), spans


def normal_width(text: str) -> str:
    """The text with full-width and half-width characters replaced, one by one, by those that they stand for."""
    return text.translate(_WIDTHS)


def drop_ignorable(text: str) -> str:
    """The text without the characters that are not shown, see `clean_text`."""
    return text if _is_shown_latin(text) else _IGNORABLE.sub("", text)


def _is_shown_latin(text: str) -> bool:
    """Whether all characters are shown ones of Latin-1, or common white space: a search for others takes long."""
    if text.isascii() and text.isprintable():
        return True
    rest = text.replace("\n", "").replace("\xa0", "")
    try:
        return rest.isprintable() and bool(rest.isascii() or rest.encode("latin-1"))
    except UnicodeEncodeError:
        return False


def is_ignorable(character: str) -> bool:
    """Whether a character is not shown, see `clean_text`."""
    return _IGNORABLE.fullmatch(character) is not None


def is_visible(text: str) -> bool:
    """Whether a text shows anything; the blank braille pattern does not."""
    if text.isascii() and text.isprintable():
        return bool(text) and not text.isspace()
    return bool(text_key(text).replace("\u2800", "").strip())


def text_key(text: str) -> str:
    """The identity of a text: two texts with one key are the same query, brand or category.

    NFKC (UAX 15), case-folded, without characters that are not shown, white space collapsed.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.casefold().split())
    folded = unicodedata.normalize("NFKC", drop_ignorable(text)).casefold()
    # Again, since folding may decompose, and a half-width filler becomes one that is not shown.
    return " ".join(drop_ignorable(unicodedata.normalize("NFKC", folded)).split())


def query_id(query: str) -> str:
    """What makes two pairs pairs of one query: the identity of its text alone, whatever the locale.

    One query is in one split, one group of a ranking and one unit of an interval's resamples, has one list of
    candidates and one row among those of which a threshold takes one per query.
    """
    return text_key(query)


def locale_key(locale: str) -> str:
    """A locale as all spellings of it are compared and counted: `en_US` and `EN-us` are `en-us`; `US` is `us`."""
    return _LOCALE_SEPARATORS.sub("-", text_key(locale))


def whole_number(text: str) -> str:
    """The text; without its decimals if it is a whole number that was written as a float, as `1001.0`; `-0` is `0`."""
    match = _WHOLE_FLOAT.fullmatch(text) if text.endswith("0") and ("." in text or text == "-0") else None
    if match is None or len(match[1]) > 17 or abs(int(match[1])) >= LARGEST_EXACT_FLOAT:
        return text
    return match[1] if match[1] != "-0" else "0"


def lexical_words(text: str) -> list[str]:
    """The words of a text's key, for lexical matching: runs of letters, their marks, digits and underscores.

    Of scripts without spaces, an ideograph is a word, and a run of spelt letters (kana, Thai, ...) gives its pairs of
    neighbouring letters: single ones recur in every text, and pairs come closest to words without a dictionary.
    """
    return [word for run in word_runs(text) for word in run]


def word_runs(text: str) -> list[list[str]]:
    """`lexical_words`, those of a run of spelt letters together: n letters give n - 1 pairs, one gives itself."""
    key = text_key(text)
    if key.isascii():
        return [[word] for word in _ASCII_WORD.findall(key)]
    runs = []
    for match in _WORD.finditer(key):
        letters = _LETTER.findall(match[0]) if match["spelt"] else []
        pairs = [first + second for first, second in pairwise(letters)]
        runs.append(pairs or [match[0]])
    return runs

"""Agreement of a query's and an item's values, dimension by dimension."""

from __future__ import annotations

from collections.abc import Sequence

from jax_rele.rationale.vocabulary import is_model_number
from jax_rele.rationale.words import content, key, runs, words

# Sizes of one family can disagree; sizes of different families (inches and pounds, a shirt's and a bed's) cannot be
# compared.
_SIZE_FAMILIES = {
    "small": "letter", "xsmall": "letter", "medium": "letter", "large": "letter", "xlarge": "letter",
    "xxlarge": "letter", "xxxlarge": "letter", "xxsmall": "letter", "4xl": "letter", "5xl": "letter",
    "onesize": "letter",
    "twin": "bed", "twinxl": "bed", "full": "bed", "queen": "bed", "king": "bed", "californiaking": "bed",
    "longsleeve": "sleeve", "shortsleeve": "sleeve",
    "mini": "scale", "jumbo": "scale", "oversized": "scale",
}  # fmt: skip
_SAME_SIZE = {
    "xl": "xlarge", "extralarge": "xlarge", "xxl": "xxlarge", "2xl": "xxlarge", "2x": "xxlarge",
    "xxxl": "xxxlarge", "3xl": "xxxlarge", "3x": "xxxlarge", "4x": "4xl", "xs": "xsmall", "extrasmall": "xsmall",
    "xxs": "xxsmall", "twinsize": "twin", "fullsize": "full", "queensize": "queen", "kingsize": "king",
    "calking": "californiaking", "miniature": "mini", "tiny": "mini",
}  # fmt: skip
_AUDIENCES = {
    "man": ("man", "male", "guy", "him"),
    "woman": ("woman", "female", "lady", "her"),
    "boy": ("boy", "littleboy"),
    "girl": ("girl", "littlegirl"),
    "kid": ("kid", "child", "youth", "junior", "preschooler", "tween"),
    "baby": ("baby", "infant", "newborn", "babyboy", "babygirl"),
    "toddler": ("toddler", "toddlerboy", "toddlergirl"),
    "teen": ("teen", "teenage", "teenager", "teenboy", "teengirl"),
}
_AUDIENCE_OF = {name: audience for audience, names in _AUDIENCES.items() for name in names}
_AUDIENCE_PARTS = {
    "kid": {"boy", "girl", "toddler", "baby", "teen"},
    "adult": {"man", "woman"},
    "unisex": {"man", "woman", "boy", "girl"},
}
_DIGITS = str.maketrans("", "", "0123456789._/")


def verdict(dimension: str, query_values: Sequence[str], item_values: Sequence[str]) -> str:
    """The verdict on a dimension: match if any two values agree, else mismatch if any two differ, else absent."""
    agreements = {agree(dimension, asked, stated) for asked in query_values for stated in item_values}
    return "match" if True in agreements else "mismatch" if False in agreements else "absent"


def agree(dimension: str, asked: str, stated: str) -> bool | None:
    """Whether a value of the query and one of the item agree; None where they cannot be compared.

    Values agree when their keys are equal or one contains the words of the other in a row (`North Face` and `The North
    Face`, `black` and `Rinsed Black`). Besides:

      category: the longer must also end with the shorter: `chair` agrees with `gaming chair`, not with `chair cover`.
      model: a model number alone cannot be compared with a name without digits.
      size: only sizes of one family can be compared, and only equal sizes agree.
      audience: synonyms agree, and groups agree with their parts (`kids` and `girls`).
    """
    asked_key, stated_key = key(asked), key(stated)
    if asked_key == stated_key:
        return bool(asked_key) or asked == stated
    if dimension == "size":
        return _agree_size(*(_SAME_SIZE.get(size, size) for size in (asked_key, stated_key)))
    if dimension == "audience":
        asked, stated = (_AUDIENCE_OF.get(name, name) for name in (asked_key, stated_key))
        parts = _AUDIENCE_PARTS.get(asked, set()), _AUDIENCE_PARTS.get(stated, set())
        return asked == stated or stated in parts[0] or asked in parts[1]
    if _contains(asked, stated, dimension) or _contains(stated, asked, dimension):
        return True
    if dimension == "model" and is_model_number(stated_key) and not any(c.isdigit() for c in asked):
        return None
    return False


def _contains(text: str, part: str, dimension: str) -> bool:
    text_words, part_key = content(words(text)), key(part)
    ends = [end for _, end in runs(text_words, part_key)] if part_key else []
    return len(text_words) in ends if dimension == "category" else bool(ends)


def _agree_size(asked: str, stated: str) -> bool | None:
    if asked == stated:
        return True
    return False if _size_family(asked) == _size_family(stated) is not None else None


def _size_family(size: str) -> str | None:
    shape = size.translate(_DIGITS)
    return _SIZE_FAMILIES.get(size) or (shape if shape != size else None)

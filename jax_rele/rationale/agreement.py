"""Whether what a query asks and what an item states agree, dimension by dimension."""

from __future__ import annotations

from collections.abc import Sequence

from jax_rele.rationale.vocabulary import is_model_number
from jax_rele.rationale.words import content, key, runs, words

# Sizes of one family can disagree; sizes of different families (inches and pounds, a shirt's and a bed's) say nothing
# of one another.
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
    found = {agree(dimension, wanted, stated) for wanted in query_values for stated in item_values}
    return "match" if True in found else "mismatch" if False in found else "absent"


def agree(dimension: str, wanted: str, stated: str) -> bool | None:
    """Whether a value of the query and one of the item agree; None where they cannot be compared.

    Values agree when their keys are equal or the words of one hold those of the other in a row (`North Face` and `The
    North Face`, `black` and `Rinsed Black`). Besides:

      category: the longer must also end like the shorter: `chair` is a `gaming chair`, no `chair cover`.
      model: a bare model number cannot be compared with a name without digits.
      size: only sizes of one family can be compared, and only equal sizes agree.
      audience: synonyms agree, and groups agree with their parts (`kids` and `girls`).
    """
    if key(wanted) == key(stated):
        return bool(key(wanted)) or wanted == stated
    if dimension == "size":
        return _agree_size(key(wanted), key(stated))
    if dimension == "audience":
        return _agree_audience(key(wanted), key(stated))
    if _holds(wanted, stated, dimension == "category") or _holds(stated, wanted, dimension == "category"):
        return True
    if dimension == "model" and is_model_number(key(stated)) and not any(c.isdigit() for c in wanted):
        return None
    return False


def _holds(text: str, part: str, at_end: bool) -> bool:
    found = content(words(text))
    wanted = key(part)
    return bool(wanted) and any(not at_end or end == len(found) for _, end in runs(found, wanted))


def _agree_size(wanted: str, stated: str) -> bool | None:
    wanted, stated = _SAME_SIZE.get(wanted, wanted), _SAME_SIZE.get(stated, stated)
    if wanted == stated:
        return True
    return False if _size_family(wanted) == _size_family(stated) is not None else None


def _size_family(size: str) -> str | None:
    if size in _SIZE_FAMILIES:
        return _SIZE_FAMILIES[size]
    shape = size.translate(_DIGITS)
    return shape if shape != size else None


def _agree_audience(wanted: str, stated: str) -> bool:
    wanted, stated = _AUDIENCE_OF.get(wanted, wanted), _AUDIENCE_OF.get(stated, stated)
    return wanted == stated or stated in _AUDIENCE_PARTS.get(wanted, ()) or wanted in _AUDIENCE_PARTS.get(stated, ())

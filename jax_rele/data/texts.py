"""What counts as a text: something that can be seen."""

from __future__ import annotations

import re

_INVISIBLE = (
    r"\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
)
"""White space, controls, the blank braille pattern, and what Unicode calls ignorable by default
(DerivedCoreProperties.txt, Default_Ignorable_Code_Point)."""

_VISIBLE = re.compile(f"[^{_INVISIBLE}]")


def is_visible(text: str) -> bool:
    """Whether a text has a character that can be seen."""
    return _VISIBLE.search(text) is not None

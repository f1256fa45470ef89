"""A text without a visible character is a missing text, wherever it is read."""

import sys
import unicodedata

import pytest

from jax_rele.data.rows import RowError, parse_row
from jax_rele.data.texts import is_visible

INVISIBLE = ["", " ", "\t\n", "\u200b", "\ufeff\u2060", "\xad", "\u3164", "\u2800", "\ufe0f", "\x7f\x00"]


@pytest.mark.parametrize("text", INVISIBLE)
def test_what_cannot_be_seen(text):
    assert not is_visible(text)
    assert is_visible(f"{text}a{text}")
    for row in ({"query": text, "item": {"title": "a"}}, {"query": "a", "item": {"title": text}}):
        with pytest.raises(RowError, match="blank"):
            parse_row(row, fields={}, label_map={}, label_names=(), for_prediction=True)


def test_letters_digits_signs_and_marks_can_be_seen():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Lu", "Ll", "Lt", "Nd", "Nl", "No", "Po", "Sc", "Sm", "Pd", "Ps", "Pe"):
            assert is_visible(character), hex(code)
        if unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cc"):
            assert not is_visible(character), hex(code)

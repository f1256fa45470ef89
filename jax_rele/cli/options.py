"""Options that several commands have, as values."""

from __future__ import annotations

from collections.abc import Sequence

from jax_rele.config.data import one_character
from jax_rele.errors import UserError
from jax_rele.types import Html, Quoting, ReadOptions

MAX_UNKNOWN = 0.25
"""Largest fraction of the characters that a tokenizer may not know where a command names none, as in a config."""


def check_fraction(option: str, value: float | None) -> None:
    """Raises UserError for a number that is no fraction."""
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{option}: is a fraction from 0 to 1, not {value:g}")


def named_values(words: Sequence[str], option: str) -> dict[str, str]:
    """Values by name. Raises UserError where a word is not NAME=VALUE, or a name comes twice."""
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise UserError(f"{option} {word}: write NAME=VALUE")
        if name in values:
            raise UserError(f"{option} {name}: is given twice")
        values[name] = value
    return values


def read_options(
    fields: Sequence[str] = (),
    encoding: str | None = None,
    delimiter: str | None = None,
    quoting: Quoting | None = None,
    html: Html | None = None,
    max_characters: int | None = None,
) -> ReadOptions:
    """How the files of a command are read. Raises UserError for a wrong option."""
    plain = ReadOptions()
    try:
        character = one_character(delimiter or "")
    except ValueError as error:
        raise UserError(f"--delimiter {delimiter!r:.20}: {error}") from None
    return ReadOptions(
        named_values(fields, "--fields"),
        encoding or plain.encoding,
        character,
        quoting or plain.quoting,
        html or plain.html,
        max_characters or plain.max_characters,
        from_command=True,
    )

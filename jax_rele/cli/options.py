"""Options whose values are NAME=VALUE."""

from __future__ import annotations

from collections.abc import Sequence

from jax_rele.errors import UserError


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

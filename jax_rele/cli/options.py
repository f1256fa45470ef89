"""Options whose values are NAME=VALUE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from jax_rele.errors import UserError

READING = ("encoding", "delimiter", "quoting", "html")
"""Keys of `data` by which files are read, for commands without a config."""


class Reading(TypedDict, total=False):
    """Values of `READING`."""

    encoding: str
    delimiter: str
    quoting: Literal["auto", "none", "standard", "backslash"]
    html: Literal["keep", "text"]


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


def reading_options(words: Sequence[str]) -> Reading:
    """How files are read, by the names of a config's `data`. Raises UserError for what a config would refuse."""
    from jax_rele.config import from_dict

    values = named_values(words, "--data")
    if unknown := [name for name in values if name not in READING]:
        raise UserError(f"--data {unknown[0]}: must be one of {', '.join(READING)}")
    data = from_dict({"data": values}).data
    return Reading(**{name: getattr(data, name) for name in values})  # type: ignore[typeddict-item]

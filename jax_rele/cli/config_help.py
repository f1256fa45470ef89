"""Every field of the config with its value, type and meaning."""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic

from jax_rele import config as configs


def config_fields(
    section: type[pydantic.BaseModel] = configs.Config, value: pydantic.BaseModel | None = None, prefix: str = ""
) -> Iterator[tuple[str, str, Any, str]]:
    """(path, type, value, description) of every field below a section; by default with the default values."""
    for name, field in section.model_fields.items():
        current = field.get_default(call_default_factory=True) if value is None else getattr(value, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            yield from config_fields(field.annotation, current, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", type_name(field.annotation), current, " ".join((field.description or "").split())


def type_name(annotation: Any) -> str:
    """A type as a user would write it: `int`, `text`, `a | b`, `list of text`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return type_name(inner[0])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin is tuple:
        return f"list of {type_name(inner[0])}"
    if origin is dict:
        return "mapping"
    if inner:
        return " | ".join(type_name(each) for each in inner if each is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return "mapping"
    return {str: "text", bool: "true | false", int: "int", float: "number"}.get(annotation, "any")


def format_fields(config: configs.Config) -> str:
    """The fields as the help of `run` and of the stages shows them."""
    lines = []
    for path, kind, value, description in config_fields(value=config):
        text = value if isinstance(value, str | int | float) else pydantic.RootModel(value).model_dump_json()
        lines.append(f"  --{path} ({kind}; {text if text != '' else 'empty'})")
        lines.append(textwrap.fill(description, 110, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)

"""Writes docs/config.md and docs/cli.md from the config classes and the parser: python scripts/generate_docs.py."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pydantic

from jax_rele.cli import commands  # noqa: F401  (registers the commands)
from jax_rele.cli.parser import COMMANDS
from jax_rele.config import Config

DOCS = Path(__file__).resolve().parent.parent / "docs"
COMMAND = "python scripts/generate_docs.py"


def sections(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """The config classes in a type."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections(inner)


def type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"\b(typing|[a-z_]+(\.[a-z_]+)+)\.|, FieldInfo\(.*?\)(?=\])", "", name)


def wrap(text: str, indent: str = "  ") -> str:
    return textwrap.fill(
        " ".join(text.split()), 120, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def config_page() -> str:
    lines = ["# Config", "", f"Written by `{COMMAND}`. Each key is also an option: `--path.to.key VALUE`.", ""]

    def visit(section: type[pydantic.BaseModel], prefix: str) -> None:
        for name, field in section.model_fields.items():
            path, inner = f"{prefix}{name}", list(sections(field.annotation))
            if inner and inner[0] is field.annotation:
                lines.extend([f"- `{path}`", wrap(inner[0].__doc__ or "")])
            else:
                default = (
                    "required" if field.is_required() else f"default `{field.get_default(call_default_factory=True)!r}`"
                )
                lines.append(wrap(f"- `{path}` ({type_name(field.annotation)}; {default})", "").replace("\n", "\n  "))
                lines.append(wrap(field.description or ""))
            for one in inner:
                visit(one, f"{path}." if one is field.annotation else f"{path}[].")

    visit(Config, "")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    lines = ["# Command line", "", f"Written by `{COMMAND}`; `jax-rele COMMAND --help` prints the same.", ""]

    for selected in COMMANDS.values():
        lines.extend([f"## `jax-rele {selected.name}`", "", selected.help, ""])
        for names, keywords in selected.arguments:
            name = ", ".join(names) if names[0].startswith("-") else keywords.get("metavar", names[0])
            lines.append(wrap(f"- `{name}`: {keywords.get('help', '')}", "").replace("\n", "\n  "))
        lines.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def pages() -> dict[Path, str]:
    return {DOCS / "config.md": config_page(), DOCS / "cli.md": cli_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, "utf-8")

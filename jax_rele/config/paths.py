"""Paths in a config: one that is relative is looked up beside the config's file, then in the working directory."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from jax_rele.names import PROMPT_LANGUAGES

INPUTS = (
    *("data.path", "data.manual_dir", "teacher.init", "student.init", "score.signals"),
    *("annotate.teacher_run", "annotate.prompt", "annotate.reviews", "prefer.path"),
    *(f"finetune.selection.{name}" for name in ("wrong_by", "right_by", "undisputed_by")),
    "distill.objectives.*.terms.*.loss",
)
"""Fields that may name a file or folder that is read; `*` stands for any key."""

OUTPUTS = ("run_root", "cache_dir", "annotate.store")
"""Fields that name a folder that is written."""

_NAMES = {
    "data.path": ("sample",),
    "teacher.init": ("random",),
    "student.init": ("random",),
    "annotate.prompt": PROMPT_LANGUAGES,
}
"""Field -> values that are names and no paths."""

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:tfds|bundled|embedded):")
_PREFIXES = ("gguf:", "hf:")
_PYTHON = re.compile(r"(.+\.py)(:\w+)")


def resolve_paths(values: Any, base: Path, only: Container[str] | None = None) -> None:
    """Makes the relative paths in a nested dict of a config absolute, in place.

    A path of an input becomes that beside `base`, or in the working directory, where it exists; otherwise it stays as
    it is. A folder that is written is made beside `base`, unless it exists in the working directory alone.

    Args:
      values: of a config, before they are validated.
      base: the folder of the config's file.
      only: the fields to look at; by default all that hold paths.
    """
    for path in (*INPUTS, *OUTPUTS):
        if only is not None and path not in only:
            continue
        for section, key in _holders(values, path.split(".")):
            if isinstance(section[key], str) and section[key] not in _NAMES.get(path, ()):
                section[key] = _resolved(section[key], base, is_output=path in OUTPUTS)


def local_name(value: Any) -> Any:
    """The last part of a path on this machine; any other value as it is. For paths whose content is what counts."""
    if not isinstance(value, str):
        return value
    prefix, path, suffix = _parts(value)
    if not path or (prefix == "hf:" and not os.path.isabs(path)):
        return value
    return f"{prefix}{os.path.basename(path.rstrip('/')) or path}{suffix}"


def is_input(path: str) -> bool:
    """Whether a config path, with the keys of mappings in it, names an input."""
    return any(re.fullmatch(name.replace(".", r"\.").replace("*", "[^.]+"), path) for name in INPUTS)


def _holders(values: Any, parts: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The dicts that hold a field, and its key there."""
    if not isinstance(values, dict):
        return
    head, *rest = parts
    for key in list(values) if head == "*" else [head] * (head in values):
        if rest:
            yield from _holders(values[key], rest)
        else:
            yield values, key


def _parts(value: str) -> tuple[str, str, str]:
    """(prefix, path, suffix) of a value; the path is empty where it names none on this machine."""
    if not value or _REMOTE.match(value):
        return "", "", ""
    if ".py:" in value:
        match = _PYTHON.fullmatch(value)
        return ("", match[1], match[2]) if match else ("", "", "")
    prefix = next((prefix for prefix in _PREFIXES if value.startswith(prefix)), "")
    return prefix, value.removeprefix(prefix), ""


def _resolved(value: str, base: Path, is_output: bool) -> str:
    prefix, path, suffix = _parts(value)
    expanded = os.path.expanduser(path)
    if not path or os.path.isabs(expanded):
        return f"{prefix}{expanded}{suffix}" if path else value
    beside, here = os.path.abspath(base / path), os.path.abspath(path)
    if prefix == "hf:" and not path.startswith(".") and not any(map(os.path.isdir, (beside, here))):
        return value  # a name on the hub
    chosen = next((each for each in (beside, here) if _exists(each)), beside if is_output else "")
    return f"{prefix}{chosen}{suffix}" if chosen else value


def _exists(path: str) -> bool:
    return os.path.exists(path) or (glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None)

"""Reading a config: YAML or a nested dict in, one clear line for a mistake."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pydantic
import yaml

from jax_rele.config.paths import resolve_paths
from jax_rele.config.root import Config
from jax_rele.errors import UserError
from jax_rele.io import refuse_placeholder

RENAMED = {
    "annotate.answers": "annotate.store",
    "annotate.min_share": "annotate.min_vote_fraction",
    "data.max_bad_share": "data.max_bad_fraction",
    "data.splits.given": "data.splits.existing",
    "distill.labelled_share": "distill.labelled_fraction",
    "distill.together": "distill.joint_training",
    "labels.written_as": "labels.aliases",
    **{
        f"{stage}.optimization.warmup_share": f"{stage}.optimization.warmup_fraction"
        for stage in ("adapt", "finetune", "distill")
    },
}
"""Key of an older config -> what it is called."""

REPLACED = {"annotate.label_rules": "`rules`, which has another form (docs/rules.md)"}
"""Key of an older config -> what replaces it, in another form."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's truth values, so that `yes`, `no`, `on` and `off` are texts; a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def parse_yaml(text: str) -> Any:
    """The values in a YAML text. Raises yaml.YAMLError where it is none, or a key stands twice in a mapping."""
    return yaml.load(text, _Loader)  # a SafeLoader


def load(path: str | Path) -> Config:
    """Reads a YAML file; relative paths in it become absolute, see `resolve_paths`.

    Raises:
      UserError: the file is missing or malformed, a key is unknown, or a value is bad.
    """
    refuse_placeholder(Path(path))
    try:
        values = parse_yaml(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give a config file, as the config.yaml of a run's folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits, a date that is none
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a mapping of config keys at the top level")
    resolve_paths(values, Path(path).absolute().parent)
    return from_dict(values, str(path))


def from_dict(values: dict[str, object], source: str = "config") -> Config:
    """Validates a nested dict. Raises UserError naming `source` and the path of the first problem."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(describe(error, source)) from None


def describe(error: pydantic.ValidationError, source: str) -> str:
    """The first problem of a validation error in one line: source, config path, reason."""
    first = error.errors(include_url=False)[0]
    # Messages about several sections name their paths themselves.
    # Members of unions have names of their own in it, which are no keys.
    path = ".".join(str(part) for part in first["loc"] if not re.fullmatch(r"constrained-\w+|[\w-]+\[.*", str(part)))
    if first["type"] == "extra_forbidden":
        reason = explain_unknown(path)
    else:
        reason = first["msg"].removeprefix("Value error, ")
        if "input" in first and not isinstance(first["input"], (dict, pydantic.BaseModel)):
            reason += f", got {first['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{source}: {path + ': ' if path else ''}{reason}{more}"


def explain_unknown(path: str) -> str:
    """What to do about a key that does not exist: its current name, the nearest key, or all keys of its section."""
    if path in RENAMED:
        return f"unknown key; {path} is called {RENAMED[path]}"
    if path in REPLACED:
        return f"unknown key; it is replaced by {REPLACED[path]}"
    section: Any = Config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not (isinstance(section, type) and issubclass(section, pydantic.BaseModel)):
            break  # below a mapping or a list
        if part not in section.model_fields:
            nearest = get_close_matches(part, section.model_fields, n=1)
            if nearest:
                return f"unknown key; did you mean {'.'.join([*parts[:depth], nearest[0], *parts[depth + 1 :]])}?"
            return f"unknown key; {'.'.join(parts[:depth]) or 'the config'} has {', '.join(section.model_fields)}"
        section = section.model_fields[part].annotation
    return "unknown key; remove it or correct its spelling"


def flatten(values: Any, prefix: str = "") -> dict[str, object]:
    """Nested dicts -> {dotted path: value}."""
    if isinstance(values, dict) and values:
        return {
            path: leaf
            for key, value in values.items()
            for path, leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: values}

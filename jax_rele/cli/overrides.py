"""A run's config from a file and `--path.to.field VALUE` on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

import pydantic
import yaml

from jax_rele import config as configs
from jax_rele.errors import UserError


def read_config(path: str, overrides: Sequence[str] = ()) -> configs.Config:
    """The config of a YAML file, with the fields that the command line sets.

    Raises:
      UserError: the file or a value is bad, or a key is unknown; it names the nearest key.
    """
    config = configs.load(path)
    options = parse_overrides(overrides)
    if not {"name", "run_root"} & options.keys():
        _refuse_moved_run(Path(path).absolute(), config)
    if not options:
        return config
    values = config.model_dump(mode="json")
    for option, texts in options.items():
        _set_field(values, option, texts)
    # What is typed is meant in the working directory; where something is written stays as it was typed.
    configs.resolve_paths(values, Path.cwd(), only=set(options) & set(configs.INPUTS))
    return configs.from_dict(values, "command line")


def _refuse_moved_run(path: Path, config: configs.Config) -> None:
    """Raises UserError for the config in a run's folder that names another folder, as after a copy or a move."""
    folder = path.parent
    is_run = path.name == "config.yaml" and (folder / "prepare" / "manifest.json").is_file()
    if is_run and folder.resolve() != config.run_dir.resolve():
        raise UserError(
            f"{path}: names another folder, {config.run_dir}, as the run was copied or moved; to go on where it is "
            f"add --run_root {folder.parent} --name {folder.name}"
        )


def parse_overrides(arguments: Sequence[str]) -> dict[str, list[str]]:
    """`--a.b 1 --c x y` or `--a.b=1` -> {"a.b": ["1"], "c": ["x", "y"]}."""
    overrides: dict[str, list[str]] = {}
    option = None
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument[2:].partition("=")
            overrides[option] = [value] if equals else []
        elif option is None:
            raise UserError(f"command line: {argument!r} stands without an option; write --path.to.field {argument}")
        else:
            overrides[option].append(argument)
    return overrides


def _set_field(values: dict[str, Any], option: str, texts: Sequence[str]) -> None:
    """Sets one field in the nested dict of a config; values are read as YAML."""
    try:
        parsed = [configs.parse_yaml(text) for text in texts]
    except yaml.YAMLError:
        raise UserError(
            f"command line: --{option}: {' '.join(texts)!r} is not a YAML value; put it in quotes"
        ) from None
    node: dict[str, Any] = values
    section: type[pydantic.BaseModel] = configs.Config
    parts = option.split(".")
    for depth, part in enumerate(parts):
        field = section.model_fields.get(part)
        if field is None:
            raise UserError(f"command line: --{option}: {configs.explain_unknown(option)}")
        if depth == len(parts) - 1:
            if not parsed:
                raise UserError(f"command line: --{option} needs a value")
            is_list = get_origin(field.annotation) is tuple
            if field.annotation is str and len(texts) == 1:
                parsed = list(texts)  # `hf:` and `yes` are texts, whatever YAML makes of them
            single = len(parsed) == 1 and not (is_list and not isinstance(parsed[0], list))
            node[part] = parsed[0] if single else parsed
            return
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel)):
            raise UserError(f"command line: --{option}: {'.'.join(parts[: depth + 1])} has no fields of its own")
        node, section = node[part], field.annotation

"""Commands as functions: their docstring is their help, a decorator declares their arguments."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

Argument = tuple[tuple[str, ...], dict[str, Any]]
"""(names, keywords) of `argparse.ArgumentParser.add_argument`."""


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
      name: its words, e.g. `annotate batch write`.
      function: takes the arguments by name, and where it reads a config `overrides`, words `--path.to.field VALUE`.
      arguments: (names, keywords) of `argparse.ArgumentParser.add_argument`.
      reads_config: whether the first argument is a config, whose fields can be set on the command line.
    """

    name: str
    function: Callable[..., object]
    arguments: tuple[Argument, ...]
    reads_config: bool

    @property
    def help(self) -> str:
        return inspect.getdoc(self.function) or ""

    def parser(self) -> Parser:
        epilog = "`--path.to.field VALUE` sets a field of the config; `jax-rele run --help` explains every one."
        parser = Parser(
            prog=f"jax-rele {self.name}",
            description=self.help,
            epilog=epilog if self.reads_config else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for names, keywords in self.arguments:
            parser.add_argument(*names, **keywords)
        return parser


COMMANDS: dict[str, Command] = {}
"""Every command by name, in the order of the help."""

CONFIG: Argument = (("config",), {"metavar": "CONFIG.yaml", "help": "the run"})


class Parser(argparse.ArgumentParser):
    """Names the nearest option or choice where one is misspelt."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            known += [str(choice) for choice in action.choices or ()]
        for word in message.replace("'", " ").replace(":", " ").split():
            if word not in known and (nearest := get_close_matches(word, known, 1, 0.75)):
                message = f"{message}; did you mean {nearest[0]}?"
                break
        super().error(message)


def argument(*names: str, **keywords: Any) -> Argument:
    """An argument as `argparse` takes it."""
    return names, keywords


def command(
    *arguments: Argument, name: str = "", reads_config: bool = False
) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Registers a function as a command, by default under its own name."""

    def register(function: Callable[..., object]) -> Callable[..., object]:
        words = name or function.__name__.replace("_", "-")
        every = (CONFIG, *arguments) if reads_config else arguments
        COMMANDS[words] = Command(words, function, every, reads_config)
        return function

    return register


def find_command(words: Sequence[str]) -> tuple[Command | None, list[str]]:
    """The command with the longest name that the words begin with, and the words after it."""
    for length in range(min(3, len(words)), 0, -1):
        if (match := COMMANDS.get(" ".join(words[:length]))) is not None:
            return match, list(words[length:])
    return None, list(words)


def run_command(selected: Command, words: Sequence[str]) -> object:
    """Parses the words and calls the command."""
    parser = selected.parser()
    if not selected.reads_config:
        return selected.function(**vars(parser.parse_args(words)))
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        parser.error(f"the config file comes first: jax-rele {selected.name} CONFIG.yaml [--path.to.field VALUE ...]")
    parsed, overrides = parser.parse_known_args(words)
    return selected.function(**vars(parsed), overrides=overrides)

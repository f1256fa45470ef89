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

    words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line, which names what is nearest to a misspelt option or choice."""
        options = [option for action in self._actions for option in action.option_strings]
        choices = [str(choice) for action in self._actions for choice in action.choices or ()]
        for word in (word.partition("=")[0] for word in self.words):
            known = options if word.startswith("-") else choices
            if word not in known and (nearest := get_close_matches(word, known, 1, 0.75)):
                message = f"{message}; {word}: did you mean {nearest[0]}?"
                break
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` explains it\n")


def argument(*names: str, **keywords: Any) -> Argument:
    """An argument as `argparse` takes it."""
    return names, keywords


def positive_number(text: str) -> int:
    """The type of an argument that counts something."""
    if not text.isdecimal() or (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


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
    parser.words = words
    if not selected.reads_config:
        return selected.function(**vars(parser.parse_args(words)))
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        parser.error(f"the config file comes first: jax-rele {selected.name} CONFIG.yaml [--path.to.field VALUE ...]")
    parsed, overrides = parser.parse_known_args(words)
    _refuse_misspelt_options(parser, [word.partition("=")[0] for word in overrides])
    return selected.function(**vars(parsed), overrides=overrides)


def _refuse_misspelt_options(parser: Parser, words: Sequence[str]) -> None:
    """Ends the process where a word is no field of the config and like one of the command's own options."""
    from jax_rele.config import Config

    own = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        is_field = not word.startswith("--") or word.lstrip("-").partition(".")[0] in Config.model_fields
        if not is_field and get_close_matches(word, own, 1, 0.75):
            parser.error(f"there is no option {word}")

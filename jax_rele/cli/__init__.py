"""The command line `jax-rele`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches

from jax_rele import __version__

# Each registers its commands, in the order of the help.
from jax_rele.cli import commands as commands  # isort: skip
from jax_rele.cli import student_commands as student_commands  # isort: skip
from jax_rele.cli import completion as completion  # isort: skip
from jax_rele.cli.compile_cache import check_compile_cache
from jax_rele.cli.parser import COMMANDS, find_command, run_command
from jax_rele.errors import Preempted, UserError
from jax_rele.io import system_error, write_error
from jax_rele.runs.stages import STAGES

_DESCRIPTION = "Explainable LLM relevance for e-commerce search, distilled into deployable students."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 2 for a user's mistake, 130 for an interruption.

    After SIGTERM it is 0, or `JAX_RELE_PREEMPTED_STATUS`, where the command saves what it has done.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None or sys.stderr is None:  # closed, as by some daemons
        quiet = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process runs
        sys.stdout, sys.stderr = sys.stdout or quiet, sys.stderr or quiet
    if hasattr(sys.stdout, "reconfigure"):
        # Item texts hold any script; a terminal in another encoding must not end the run.
        sys.stdout.reconfigure(errors="replace")
    try:
        _dispatch(arguments)
    except UserError as error:
        print(f"jax-rele: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Preempted as stop:
        print(f"jax-rele: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("jax-rele: interrupted; the same command resumes the work", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse, after --help or a wrong option
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib before 3.13
            line: UserError | None = UserError(f"{str(error).partition(' from ')[2]}: is a link to itself; remove it")
        else:
            line = system_error(error)
        if line is None:
            raise
        print(f"jax-rele: {line}", file=sys.stderr)
        return 2
    return 0


def command() -> None:
    """The console script. Ends the process at once: threads that still read a damaged checkpoint would delay it."""
    status = main()
    try:
        sys.stdout.flush()
    except OSError as error:  # e.g. a full disk behind `> file`
        if not isinstance(error, BrokenPipeError):
            print(f"jax-rele: {write_error('standard output', error)}", file=sys.stderr)
            status = status or 2
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(format_help())
        return
    if arguments[0] in ("-V", "--version", "version"):
        print(f"jax-rele {__version__}")
        return
    selected, rest = find_command(arguments)
    if selected is None:
        nearest = get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"there is no command {arguments[0]!r}{hint}; `jax-rele --help` lists them")
    _refuse_unknown_subcommand(selected.name, rest)
    if selected.reads_config and not rest:
        raise UserError(
            f"{selected.name} needs a config file: jax-rele {selected.name} CONFIG.yaml [--path.to.field VALUE ...]"
        )
    if {"-h", "--help"} & set(rest) and selected.name in ("run", *STAGES):
        _print_config_help(selected.name, rest[0] if not rest[0].startswith("-") else None)
        return
    check_compile_cache()
    run_command(selected, rest)


def _refuse_unknown_subcommand(name: str, rest: Sequence[str]) -> None:
    """Raises UserError where a word that is no file follows a command that has subcommands."""
    known = [other for other in COMMANDS if other.startswith(f"{name} ")]
    if known and rest and not rest[0].startswith("-") and not os.path.splitext(rest[0])[1]:
        if os.path.exists(rest[0]):
            return
        nearest = [other for other in known if other.startswith(f"{name} {rest[0]} ")]
        nearest = nearest or get_close_matches(f"{name} {rest[0]}", known, 1, 0.8) or known
        raise UserError(f"{name}: there is no command or file {rest[0]!r}; there are {', '.join(nearest)}")


def format_help() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"    {name:{width}}{each.help.splitlines()[0]}" for name, each in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jax-rele COMMAND ...",
            "",
            _DESCRIPTION,
            "",
            "commands:",
            *lines,
            "",
            "`jax-rele COMMAND --help` explains a command, `jax-rele run --help` every field of the config,",
            "`jax-rele --version` prints the version.",
        ]
    )


def _print_config_help(name: str, path: str | None) -> None:
    from jax_rele import config as configs
    from jax_rele.cli.config_help import format_fields

    print(f"usage: jax-rele {name} {path or 'CONFIG.yaml'} [--path.to.field VALUE ...]\n")
    print(f"{COMMANDS[name].help}\n")
    for other, each in COMMANDS.items():
        if other.startswith(f"{name} "):
            print(f"See also: jax-rele {other}: {each.help.splitlines()[0]}")
    print("Fields of the config (type; value):\n")
    print(format_fields(configs.load(path) if path else configs.Config()))

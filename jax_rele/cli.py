"""The command line: `jax-rele run | STAGE | compare | check-signals | predict | explain | export | plan`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pydantic
import tyro
import yaml

from jax_rele import config as configs
from jax_rele.errors import UserError
from jax_rele.types import ITEM_FIELDS, Item

STAGES = {
    "prepare": "read, check and split the pairs; train the tokenizers",
    "annotate": "write rationales for the labelled pairs",
    "adapt": "train the teacher's base on catalogue text and crossed pairs",
    "finetune": "LoRA fine-tuning of the teacher on the rationales",
    "score": "the teacher's signals for labelled and unlabelled pairs",
    "distill": "train the students",
    "evaluate": "figures and report",
}


ANNOTATE = ("--show-prompt", "--worker", "--write-batch", "--read-batch")
"""Options of the command annotate that do something else than run the stage; docs/annotation.md."""

PLANNED = ("adapt", "finetune", "score_prefix", "score", "generate", "distill")
"""Steps that `plan` knows; `distill` stands for each student's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 2 for a user's mistake, 130 for an interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
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
    except KeyboardInterrupt:
        print("jax-rele: interrupted; the same command goes on from where it was", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse and tyro, after --help or a wrong option
        return stop.code if isinstance(stop.code, int) else 2
    return 0


def command() -> None:
    """The console script. Ends the process at once: what still reads a damaged checkpoint has nothing more to say."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _dispatch(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "--help"
    if command == "annotate" and any(word.partition("=")[0] in ANNOTATE for word in arguments):
        return _annotate(arguments[1:])
    if command == "run" or command in STAGES:
        if {"--help", "-h"} & set(arguments):
            return _print_help(command, _config_path(arguments[1:]))
        from jax_rele.training import distributed

        # Before anything else, so that a mistake which one process alone finds ends the others too.
        with distributed.together():
            # The options are the config's own fields, so they are read apart from argparse.
            config = _read_config(command, arguments[1:])
            from jax_rele import pipeline

            return pipeline.run(config, tuple(pipeline.STAGES) if command == "run" else (command,))
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments if arguments else ["--help"])
    if parsed.command == "plan":
        config = _read_config("plan", [parsed.config, *rest])
        from jax_rele.plan import command as planning

        return planning.plan(parsed.config, config, parsed.topology, names=parsed.steps, json_path=parsed.json)
    if parsed.command == "compare":
        from jax_rele import compare

        config = _read_config("compare", [parsed.config, *_selection(parsed), *rest])
        compare.run(
            config,
            seeds=parsed.seeds,
            labelled=parsed.labelled,
            teacher_labelled=parsed.teacher_labelled,
            reference=parsed.reference
            or ("label_only" if "label_only" in config.distill.recipes else config.distill.recipes[0]),
        )
        return
    if parsed.command == "check-signals":
        from jax_rele import commands

        return commands.check_signals(_read_config("check-signals", [parsed.config, *rest]), parsed.file)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from jax_rele import commands

    if parsed.command == "predict":
        return commands.predict(parsed.run, parsed.model, parsed.input, parsed.output, embeddings=parsed.embeddings)
    if parsed.command == "export":
        return commands.export(parsed.run, parsed.output, adapters=parsed.adapters)
    texts = {field: getattr(parsed, field) or "" for field in ITEM_FIELDS}
    return commands.explain(parsed.run, parsed.query, Item("", **texts))


def _annotate(arguments: list[str]) -> None:
    """What the command annotate does beside running its stage."""
    parser = argparse.ArgumentParser(prog="jax-rele annotate", allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("--show-prompt", nargs="?", const="", metavar="PAIR_ID", help="print one prompt, filled in")
    parser.add_argument("--worker", action="store_true", help="ask for answers beside other processes, and no more")
    parser.add_argument("--write-batch", nargs=2, metavar=("ENDPOINT", "FILE"), help="requests for an offline batch")
    parser.add_argument("--read-batch", nargs="+", metavar="FILE", help="store the answers of an offline batch")
    parsed, rest = parser.parse_known_args(arguments)
    config = _read_config("annotate", [parsed.config, *rest])
    from jax_rele import commands

    if parsed.show_prompt is not None:
        commands.show_prompt(config, parsed.show_prompt)
    elif parsed.write_batch:
        commands.write_batch(config, *parsed.write_batch)
    elif parsed.read_batch:
        commands.read_batch(config, parsed.read_batch)
    else:
        commands.annotate_worker(config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jax-rele",
        description="Explainable LLM relevance for e-commerce search, distilled into deployable students.",
        epilog="`jax-rele run --help` explains every field of the config.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {"run": "all stages of a config, in order", **STAGES}.items():
        commands.add_parser(name, help=text)
    compare = commands.add_parser(
        "compare",
        help="recipes side by side, over several seeds",
        description="Trains every student by every recipe with every seed and compares them on the evaluated split.",
        epilog="`--path.to.field VALUE` changes the config, as for `jax-rele run`. It goes on where it was.",
        allow_abbrev=False,
    )
    compare.add_argument("config", metavar="CONFIG.yaml", help="the run")
    compare.add_argument("--recipes", nargs="+", metavar="RECIPE", help="in place of distill.recipes")
    compare.add_argument("--students", nargs="+", metavar="STUDENT", help="in place of distill.students")
    compare.add_argument("--seeds", type=_positive, default=5, metavar="N", help="how many training seeds; 5")
    compare.add_argument(
        "--reference", metavar="RECIPE", help="the recipe that the others are compared with; label_only"
    )
    compare.add_argument(
        "--labelled", nargs="+", type=int, default=(), metavar="N", help="numbers of labelled pairs, for a curve"
    )
    compare.add_argument(
        "--teacher-labelled", nargs="+", type=int, default=(), metavar="N", help="numbers of unlabelled pairs, likewise"
    )
    check = commands.add_parser(
        "check-signals",
        help="check a file of another teacher's signals",
        description="Checks a file of another teacher's signals against the pairs of a run that has finished prepare.",
        epilog="`--path.to.field VALUE` changes the config, as for `jax-rele run`. docs/signals.md describes the file.",
        allow_abbrev=False,
    )
    check.add_argument("config", metavar="CONFIG.yaml", help="the run")
    check.add_argument("file", metavar="FILE", help="JSONL or Parquet file of signals")
    predict = commands.add_parser("predict", help="score a file of pairs", description="Scores a file of pairs.")
    predict.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, e.g. runs/demo")
    predict.add_argument(
        "--model",
        required=True,
        choices=("teacher", "cross_encoder", "two_tower"),
        help="students: of the recipe mkd, or the last one that the run trained",
    )
    predict.add_argument("--input", required=True, metavar="PAIRS", help="JSONL, CSV, TSV or Parquet file of pairs")
    predict.add_argument("--output", required=True, type=Path, metavar="SCORES.parquet", help="file to write")
    predict.add_argument("--embeddings", action="store_true", help="write the two-tower's embeddings too")
    explain = commands.add_parser("explain", help="explain one pair", description="Explains one pair.")
    explain.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, e.g. runs/demo")
    explain.add_argument("--query", required=True, help="what was typed")
    for field in ITEM_FIELDS:
        explain.add_argument(f"--{field}", required=field == "title", help=f"the item's {field}")
    export = commands.add_parser(
        "export",
        help="write the teacher for other programs",
        description="Writes the fine-tuned teacher and its tokenizer in the Hugging Face form.",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="folder of a run that has finished finetune")
    export.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="new folder to write")
    export.add_argument(
        "--adapters", action="store_true", help="the adapters alone, for PEFT, instead of the merged weights"
    )
    plan = commands.add_parser(
        "plan",
        help="what every step would cost on a TPU slice or on GPUs that are not here",
        description="Compiles every step of a run for a topology; prints memory, operations, communication and time.",
        epilog="`--path.to.field VALUE` changes the config, as for `jax-rele run`.",
        allow_abbrev=False,
    )
    plan.add_argument("config", metavar="CONFIG.yaml", help="the run")
    plan.add_argument("--topology", required=True, help="e.g. v5e:4x4, v6e:2x4, v5p:2x2x2, gpu:8xH100")
    plan.add_argument(
        "--steps",
        nargs="+",
        choices=PLANNED,
        default=PLANNED,
        metavar="STEP",
        help=f"which steps, of {', '.join(PLANNED)}; by default all",
    )
    plan.add_argument("--json", type=Path, metavar="FILE", help="file to write the plan to as well")
    return parser


def _selection(parsed: argparse.Namespace) -> list[str]:
    """What `compare` takes in place of config fields."""
    given = {"--distill.recipes": parsed.recipes, "--distill.students": parsed.students}
    return [word for option, values in given.items() if values for word in (option, *values)]


def _read_config(command: str, arguments: list[str]) -> configs.Config:
    """CONFIG.yaml and what `--path.to.field VALUE` changes in it."""
    path = _config_path(arguments)
    if path is None:
        raise UserError(f"{command} needs a config file: jax-rele {command} CONFIG.yaml [--path.to.field VALUE ...]")
    config = configs.load(path)
    overrides = _overrides(arguments[1:])
    if not overrides:
        return config
    values = config.model_dump(mode="json")
    for option, given in overrides.items():
        _put(values, option, given)
    return configs.from_dict(values, "command line")


def _config_path(arguments: list[str]) -> str | None:
    return arguments[0] if arguments and not arguments[0].startswith("-") else None


def _print_help(command: str, path: str | None) -> None:
    print(f"usage: jax-rele {command} {path or 'CONFIG.yaml'} [--path.to.field VALUE ...]\n")
    if command == "annotate":
        print(f"Or with one of {', '.join(ANNOTATE)}: docs/annotation.md.\n")
    default = configs.load(path) if path else configs.Config()
    print("Fields that hold mappings, best written in the file:\n")
    for option, description in _mappings(configs.Config):
        print(f"  --{option} {{...}}\n      {description}")
    print()
    tyro.cli(
        configs.Config,
        prog=f"jax-rele {command} {path or 'CONFIG.yaml'}",
        default=default,
        args=["--help"],
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
        use_underscores=True,
    )


def _mappings(section: type[pydantic.BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, description) of every field that is or holds dicts; tyro shows them only where they hold something."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            yield from _mappings(field.annotation, f"{prefix}{name}.")
        elif get_origin(field.annotation) is dict or _holds_mappings(field.annotation):
            yield f"{prefix}{name}", field.description


def _holds_mappings(annotation: Any) -> bool:
    """Whether it is a tuple of mappings, e.g. of sections, or may be a section."""
    inner = get_args(annotation) if get_origin(annotation) is not Literal else ()
    return any(
        get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)) for kind in inner
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _overrides(arguments: list[str]) -> dict[str, list[str]]:
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


def _put(values: dict[str, Any], option: str, given: list[str]) -> None:
    """Sets one field in the nested dict of a config; values are read as YAML."""
    try:
        read = [yaml.safe_load(value) for value in given]
    except yaml.YAMLError:
        raise UserError(
            f"command line: --{option}: {' '.join(given)!r} is not a YAML value; put it in quotes"
        ) from None
    node, section, parts = values, configs.Config, option.split(".")
    for place, part in enumerate(parts):
        field = section.model_fields.get(part)
        if field is None:
            raise UserError(
                f"command line: --{option}: unknown key; {'.'.join(parts[:place]) or 'the config'} has "
                f"{', '.join(section.model_fields)}"
            )
        if place == len(parts) - 1:
            if not read:
                raise UserError(f"command line: --{option} needs a value")
            is_list = get_origin(field.annotation) is tuple
            if field.annotation is str and len(given) == 1:
                read = given  # `hf:` and `yes` are texts, whatever YAML makes of them
            one = read[0] if len(read) == 1 and not (is_list and not isinstance(read[0], list)) else read
            node[part] = one
            return
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel)):
            raise UserError(f"command line: --{option}: {'.'.join(parts[: place + 1])} has no fields of its own")
        node, section = node[part], field.annotation


if __name__ == "__main__":
    command()

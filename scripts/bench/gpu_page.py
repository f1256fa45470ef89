"""The page of scripts/bench/gpu.sh from what it has measured.

    python scripts/bench/gpu_page.py [FOLDER] [--failed LINE ...]

Reads device.json, teacher.json and students.json of FOLDER, as far as they are there, and prints Markdown; without
FOLDER the page that has no figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import students
import teacher
from cases import format_notes, load_cases
from students_work import STUDENTS

HEAD = """# One GPU: the teacher and the students beside torch

    scripts/bench/gpu.sh [FOLDER]                # one GPU of 48 GB or more; under nine minutes
    SHAPES=tiny scripts/bench/gpu.sh [FOLDER]    # whole on a CPU with tiny shapes, to check the script

Nothing is downloaded: weights are random, of Qwen3-8B's shape for the teacher and of BERT-base's for the students, and
the packages are those of `PYTHON` (`python3` by default). torch, peft and sentence-transformers are the other side;
without them only our columns are filled. What a machine without a network lacks can be installed from wheels into a
folder of `PYTHONPATH`: `pip install --no-index --no-deps --target SITE *.whl`. FOLDER (`runs/gpu` by default) gets the
raw times as JSON, the logs and this page, which after a run on a GPU replaces `docs/benchmarks/gpu.md` too.
"""
NOT_RUN = """The script has not been run on a GPU yet, so there are no figures here; it has run whole on a CPU with tiny
shapes. What was measured on two CPU cores is in [teacher.md](teacher.md) and [students.md](students.md).
"""
TINY = """**Tiny shapes on a CPU, to check that the script runs: none of these figures says anything about a GPU.**
"""
END = """
## Targets

| what | target |
|---|---|
| SFT step | 55% MFU or more, and 1.3 times transformers + peft |
| scoring of whole prompts | 60% of the measured matmul rate or more |
| shared prefix at 100 items a query | 4 times whole prompts or more |
| decoding, 32 rows | 60% of the measured bandwidth or more |
| students, inference and training | 1.5 times sentence-transformers or more |

## How it is measured

- One process at a time holds the GPU's memory: all cases of jax_rele run first, then those of torch, in the same order.
  A case is compiled and run twice, then timed. A ratio is torch's time over ours, run by run; median and quartiles.
- The rate of a large matrix product and the bandwidth of scaling a large array in place are measured in both processes;
  the better one is what fractions refer to. Where the GPU's name is known the fraction of its datasheet is given too.
- Operations and bytes are counted as in [teacher.md](teacher.md), which also says what each case of the teacher is; for
  the students see [students.md](students.md). Logits, embeddings and losses of both sides' students are compared, and
  figures are given only where they agree. The teachers draw their own weights.
- *Attention.* cuDNN's and XLA's over the packed rows of the training step, forward and backward, as many times as the
  teacher has layers; and the training step with XLA's in place of cuDNN's.
- *Numbers of 8 bits.* Products of two float8 or int8 matrices beside bfloat16, and decoding with the projections in
  int8: they pay where the row "… over …" is above 1.
- Each part has a time limit, and what it leaves is the next one's. A case that fails or hangs is named and has no
  figure.
"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def render(folder: Path | None = None, failed: Sequence[str] = ()) -> str:
    """The page; `failed` are sentences on parts that ended early."""
    files = {name: read(folder / f"{name}.json") if folder else {} for name in ("device", "teacher", "students")}
    device = files["device"]
    if not any(files.values()):
        return f"{HEAD}\n{NOT_RUN}{END}"
    versions = ", ".join(f"{package} {version}" for package, version in device["versions"].items() if version)
    memory = f", {device['memory'] / 2**30:.0f} GiB" if device["memory"] else ""
    lines = [f"{device['name']}{memory}; {versions}.", *device["missing"], *failed]
    parts = [HEAD, TINY if device["shapes"] == "tiny" else "", "\n".join(f"- {line}" for line in lines) + "\n"]
    if document := files["teacher"]:
        cases, about = load_cases(document["cases"]), document["sides"]
        table = teacher.table(cases, document["device"], next(iter(about.values()), ""))
        shape = document["shape"]
        title = f"{shape['layers']} layers of width {shape['width']}, {shape['dtype']}"
        parts.append(f"## The teacher: {title}\n\n{table}\n\n{format_notes(cases, about)}\n")
    if document := files["students"]:
        cases, about, work = load_cases(document["cases"]), document["sides"], document["work"]
        table = students.table(cases, document["memory"], document["device"])
        _, layers, width, *_ = work["random"]
        notes = [f"{STUDENTS[name]}: {text}" for name, text in document["padding"].items()]
        title = f"{layers} layers of width {width}, {work['dtype']}"
        parts.append(f"## The students: {title}\n\n{table}\n\n{format_notes(cases, about, notes)}\n")
    return "\n".join(part for part in parts if part) + END


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--failed", nargs="*", default=[], metavar="LINE", help="parts that ended early, in words")
    options = parser.parse_args()
    print(render(options.folder, options.failed), end="")


if __name__ == "__main__":
    main()

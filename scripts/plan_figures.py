"""What compiled steps cost on slices of TPUs: writes the figures that `tests/plan/test_tpu_figures.py` compares with.

    python scripts/plan_figures.py          # where the TPU compiler is installed; no TPU is needed

Run it after a change that is meant to change them, and say in the commit why they changed.
"""

import json
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from jax_rele import cli
from jax_rele.plan.report import kind_label
from jax_rele.plan.topology import parse_topology

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "tests" / "plan" / "tpu_figures.json"
SHAPE = {"layers": 2, "width": 256, "heads": 4, "kv_heads": 2, "head_dim": 128, "mlp_width": 512}
TEACHER = ("finetune", "score", "generate")
SLICES = {
    "v5e:2x4": ((2, 2, 2), (*TEACHER, "prefer", "reinforce")),
    "v6e:2x4": ((2, 2, 2), ("finetune", "score")),
    "v5e:16x16": ((4, 32, 2), TEACHER),
    "2xv5e:2x2": ((2, 2, 2), ("distill",)),
}
"""Topology -> (the sizes of the mesh's axes data, fsdp and tensor; which steps)."""
ROWS = {8: 16, 256: 256}
"""Devices -> rows of a batch."""


def plan(topology: str) -> dict[str, dict]:
    """Step -> bytes per chip, FLOPs, and of each kind of collectives how many a chip takes part in and their bytes."""
    sizes, steps = SLICES[topology]
    rows = str(ROWS[parse_topology(topology).devices])
    options = [text for name, size in SHAPE.items() for text in (f"--teacher.random.{name}", str(size))]
    options += [text for name, size in zip(("data", "fsdp", "tensor"), sizes) for text in (f"--mesh.{name}", str(size))]
    options += ["--finetune.optimization.batch_size", rows, "--score.batch_size", rows]
    options += ["--prefer.enabled", "true", "--prefer.optimization.batch_size", rows]
    options += ["--reinforce.enabled", "true", "--reinforce.optimization.batch_size", rows]
    options += ["--distill.optimization.batch_size", rows, "--student.random.layers", "1"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        config = str(ROOT / "configs" / "demo_from_scratch.yaml")
        more = ["--topology", topology, "--json", str(path), "--teacher.dtype", "bfloat16"]
        if cli.main(["plan", config, *more, "--steps", *steps, *options]):
            raise SystemExit(f"{topology}: the plan failed")
        steps = json.loads(path.read_text("utf-8"))["steps"]
    return {step["step"]: _summarize(step) for step in steps}


def _summarize(step: dict) -> dict:
    collectives: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    for one in step["collectives"]:
        collectives[kind_label(one)]["count"] += one["count"]
        collectives[kind_label(one)]["bytes"] += one["count"] * one["bytes"]
    return {
        "bytes_per_chip": step["bytes_per_chip"]["total"],
        "flops": step["flops"]["executed"],
        "collectives": dict(sorted(collectives.items())),
    }


def main() -> None:
    figures = {"libtpu": version("libtpu"), "slices": {topology: plan(topology) for topology in SLICES}}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

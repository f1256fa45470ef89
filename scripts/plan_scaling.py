"""What a step of training takes on 256, 1,024 and 4,096 TPU chips: prints the table of docs/pods.md.

    python scripts/plan_scaling.py          # where the TPU compiler is installed; no TPU is needed

Each program is compiled for 16 slices of 256 chips, the largest of v5e and v6e, which the data-centre network joins. A
chip has as many rows as under the config, so a batch grows with the chips.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jax_rele import cli
from jax_rele.config import load
from jax_rele.plan.report import RESOURCES, PlanData, format_seconds
from jax_rele.plan.scaling import scale

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {"v5e:16x16": ("qwen3_8b_v5e_4x4.yaml", 16), "v6e:16x16": ("qwen3_8b_v6e_2x4.yaml", 8)}
"""Slice -> the config, and for how many chips its batch sizes are."""
CHIPS = 256
"""Of a slice."""
SLICES = (1, 4, 16)
COLUMNS = ("chips", "step", *RESOURCES.values(), "limit", "MFU", "tokens/s")


def options(path: Path, chips: int, slices: int) -> list[str]:
    """Options of `jax-rele plan` with which `slices` slices have the rows a chip that the config has on `chips`."""
    config = load(path)
    times = slices * CHIPS // chips
    sizes = {
        "finetune.optimization.batch_size": config.finetune.optimization.batch_size * times,
        "distill.optimization.batch_size": config.distill.optimization.batch_size * times,
        "mesh.data": config.mesh.data * (slices if config.mesh.data > 0 else 1),
    }
    return [text for name, size in sizes.items() for text in (f"--{name}", str(size))]


def plan(slice_name: str, slices: int) -> PlanData:
    """The plan of training on so many slices."""
    name, chips = CONFIGS[slice_name]
    path, topology = ROOT / "configs" / name, f"{slices}x{slice_name}"
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "plan.json"
        more = ["--topology", topology, "--json", str(result), "--steps", "finetune", "distill"]
        more += ["--teacher.init", str(ROOT / "configs" / "models" / "qwen3_8b")]
        if cli.main(["plan", str(path), *more, *options(path, chips, slices)]):
            raise SystemExit(f"{topology}: the plan failed")
        return json.loads(result.read_text("utf-8"))


def rows(plan: PlanData) -> Iterator[list[str]]:
    """A row of `COLUMNS` for each step of a plan that fits, and each number of `SLICES`."""
    for step in filter(lambda step: step["fits"], plan["steps"]):
        for slices in SLICES:
            scaled = scale(plan, step, slices)
            times = [format_seconds(scaled.seconds[name]) for name in RESOURCES]
            rate = [RESOURCES[scaled.bound_by], f"{scaled.mfu:.0%}", f"{scaled.tokens_per_second:,.0f}"]
            yield [f"{plan['chip']['name']} {scaled.chips:,}", step["step"], *times, *rate]


def table(plans: Sequence[PlanData]) -> str:
    """Plans in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row for plan in plans for row in rows(plan))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    print(table([plan(name, max(SLICES)) for name in CONFIGS]))


if __name__ == "__main__":
    main()

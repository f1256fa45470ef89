"""What a step costs on a topology: memory, operations, communication, and a lower bound on its time."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

import jax

from jax_rele.errors import UserError
from jax_rele.plan import hlo
from jax_rele.plan.abstract import bytes_per_chip
from jax_rele.plan.steps import Lower, Step
from jax_rele.plan.topology import Topology
from jax_rele.plan.traffic import traffic

RESERVE = {"tpu": 0.03, "gpu": 0.10}
"""Fraction of a chip's memory left to the runtime: on GPUs to the driver, libraries and buffers of collectives."""


@dataclass(frozen=True)
class StepCost:
    """The costs of a step; bytes are of one chip, operations of all.

    Attributes:
      name, shape: the step's.
      resident: bytes by kind before the step runs.
      allocated: bytes that the step allocates: gradients, activations, results, and the program itself. None where the
        compiler failed before it knew.
      limit: bytes that the step may take, the reserve left out.
      attention: bytes of the whole step by implementation of attention, None as above; the config's own comes first.
      tokens: tokens that the step reads.
      executed, required: floating-point operations, with and without what `remat` computes again.
      collectives: what is sent, most bytes first.
      seconds: least time by resource: `compute`, `memory` and `links`, and between several slices `network`.
    """

    name: str
    shape: str
    resident: dict[str, int]
    allocated: int | None
    limit: int
    attention: dict[str, int | None]
    tokens: int
    executed: int
    required: int
    collectives: tuple[hlo.Collective, ...]
    seconds: dict[str, float]
    chips: int
    peak: float

    @property
    def total(self) -> int | None:
        return None if self.allocated is None else sum(self.resident.values()) + self.allocated

    @property
    def fits(self) -> bool:
        return self.total is not None and self.total <= self.limit

    @property
    def bound_by(self) -> str | None:
        """The resource that takes longest; None, as the next three, where the step does not fit."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.fits else None

    @property
    def step_seconds(self) -> float | None:
        """The longest of the times: every resource runs at its peak, and all of them overlap."""
        return self.seconds[self.bound_by] if self.bound_by else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization (Chowdhery et al., arXiv 2204.02311): required operations over the peak."""
        seconds = self.step_seconds
        return None if seconds is None else self.required / (self.chips * self.peak * seconds)

    @property
    def tokens_per_second(self) -> float | None:
        return None if self.step_seconds is None else self.tokens / self.step_seconds

    def to_dict(self) -> dict[str, object]:
        """Plain data, as `--json` writes it."""
        results = ("seconds", "step_seconds", "bound_by", "mfu", "tokens_per_second")
        return {
            "step": self.name,
            "shape": self.shape,
            "bytes_per_chip": {**self.resident, "made": self.allocated, "total": self.total, "limit": self.limit},
            "fits": self.fits,
            "bytes_per_chip_by_attention": self.attention,
            "tokens": self.tokens,
            "flops": {"executed": self.executed, "required": self.required},
            "collectives": [{**asdict(x), "sent_per_chip": round(x.moved)} for x in self.collectives],
            **{name: getattr(self, name) for name in results},
        }


def estimate(step: Step, topology: Topology, *, widened: bool = False) -> StepCost:
    """Compiles a step for a topology and reads what it costs.

    For a GPU topology the CPU's compiler compiles for as many devices. It widens bfloat16 to float32 and fuses less, so
    the bytes that it allocates are an upper bound. Its HBM traffic says nothing of a GPU's; there the least is counted:
    resident arrays are read once and the results are written.

    Args:
      step: what to compile; its mesh must be of the topology's devices.
      topology: what to compile for.
      widened: whether the model computes in bfloat16 and the compiler widens it.
    """
    chip, gpu = topology.chip, topology.chip.kind == "gpu"
    sizes = {kind: bytes_per_chip(tree) for kind, tree in step.resident.items()}
    resident = sum(sizes.values())
    allocated: dict[str, int | None] = {}
    text, written = "", 0
    for name, lower in step.lower.items():
        try:
            compiled, needed = _compile(lower, resident)
        except (UserError, ValueError):
            if not allocated:
                raise
            continue  # another implementation than the config's, which cannot compute this model
        stats = compiled and compiled.memory_analysis()
        if compiled and stats:
            written = stats.output_size_in_bytes - stats.alias_size_in_bytes
            needed = stats.temp_size_in_bytes + written + stats.generated_code_size_in_bytes
            text = text if allocated else compiled.as_text() or ""
        allocated[name] = None if needed is None else needed + step.unseen.get(name, 0)
    module = hlo.parse(text) if text else None
    collectives = hlo.collectives(module, widened=widened) if module else []
    moved = resident + written if gpu else traffic(module) if module else 0
    seconds = {
        "compute": step.executed / topology.devices / chip.flops,
        "memory": moved / chip.bandwidth,
        "links": sum(x.moved / topology.bandwidth(x.group) for x in collectives if not x.network),
    }
    if topology.slices > 1:
        seconds["network"] = sum(x.moved for x in collectives if x.network) / chip.network
    return StepCost(
        name=step.name,
        shape=step.shape,
        resident=sizes,
        allocated=next(iter(allocated.values())),
        limit=round(chip.memory * (1 - RESERVE[chip.kind])),
        attention={name: None if x is None else x + resident for name, x in allocated.items() if name},
        tokens=step.tokens,
        executed=step.executed,
        required=step.required,
        collectives=tuple(sorted(collectives, key=lambda x: -x.moved)),
        seconds=seconds,
        chips=topology.devices,
        peak=chip.flops,
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _compile(lower: Lower, resident: int) -> tuple[jax.stages.Compiled | None, int | None]:
    """The compiled program; where memory was not enough None, and the bytes to allocate if the compiler names them."""
    try:
        return lower().compile(), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if used := re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", str(error)):
            return None, max(0, int(float(used[1]) * _UNITS[used[2]]) - resident)
        match = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", str(error))
        return None, int(float(match[1]) * _UNITS[match[2]]) if match else None

"""What a step costs on a topology: memory, operations, communication, and the time that these cannot take less than."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax

from jax_rele.errors import UserError
from jax_rele.plan import hlo
from jax_rele.plan.abstract import bytes_per_chip
from jax_rele.plan.steps import Lower, Step
from jax_rele.plan.topology import Topology
from jax_rele.plan.traffic import traffic

RESERVE = {"tpu": 0.03, "gpu": 0.10}
"""Share of a chip's memory that is left to the runtime: on GPUs to the driver, libraries and buffers of collectives."""


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
      seconds: least time by resource: `compute`, `memory` and `links`.
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
    def step_seconds(self) -> float | None:
        """The longest of the times: nothing is faster than its peak, and everything overlaps."""
        return max(self.seconds.values()) if self.fits else None

    @property
    def bound_by(self) -> str | None:
        return max(self.seconds, key=self.seconds.get) if self.fits else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization (Chowdhery et al., arXiv 2204.02311): required operations over the peak."""
        return self.required / (self.chips * self.peak * self.step_seconds) if self.fits else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.step_seconds if self.fits else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` writes it."""
        return {
            "step": self.name,
            "shape": self.shape,
            "bytes_per_chip": {**self.resident, "made": self.allocated, "total": self.total, "limit": self.limit},
            "fits": self.fits,
            "bytes_per_chip_by_attention": self.attention,
            "tokens": self.tokens,
            "flops": {"executed": self.executed, "required": self.required},
            "collectives": [
                {
                    "kind": x.kind,
                    "bytes": x.bytes,
                    "group": x.group,
                    "count": x.count,
                    "sent_per_chip": round(x.moved),
                    "source": x.source,
                }
                for x in self.collectives
            ],
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "bound_by": self.bound_by,
            "mfu": self.mfu,
            "tokens_per_second": self.tokens_per_second,
        }


def estimate(step: Step, topology: Topology, *, widened: bool = False) -> StepCost:
    """Compiles a step for a topology and reads what it costs.

    On a GPU topology the program is that of the CPU's compiler for as many devices. What it makes is then at most this:
    that compiler widens bfloat16 to float32 and fuses less. Its HBM traffic would say nothing of a GPU's, so there the
    least is counted: what is held is read once and the results are written.

    Args:
      step: what to compile; its mesh must be of the topology's devices.
      topology: what to compile for.
      widened: whether the model computes in bfloat16 and the compiler widens it.
    """
    chip, gpu = topology.chip, topology.chip.kind == "gpu"
    resident = {kind: bytes_per_chip(tree) for kind, tree in step.resident.items()}
    allocated, text, written = {}, None, 0
    for name, lower in step.lower.items():
        try:
            compiled, needed = _compile(lower, sum(resident.values()))
        except (UserError, ValueError):
            if not allocated:
                raise
            continue  # another implementation than the config's, which cannot compute this model
        if compiled is not None:
            stats = compiled.memory_analysis()
            written = stats.output_size_in_bytes - stats.alias_size_in_bytes
            needed = stats.temp_size_in_bytes + written + stats.generated_code_size_in_bytes
        if not allocated and compiled is not None:
            text = compiled.as_text()
        allocated[name] = None if needed is None else needed + step.unseen.get(name, 0)
    own = next(iter(allocated))
    module = hlo.parse(text) if text else None
    collectives = hlo.collectives(module, widened=widened) if module else []
    moved = traffic(module) if module else 0
    seconds = {
        "compute": step.executed / topology.devices / chip.flops,
        "memory": (sum(resident.values()) + written if gpu else moved) / chip.bandwidth,
        "links": sum(x.moved / topology.bandwidth(x.group) for x in collectives),
    }
    return StepCost(
        name=step.name,
        shape=step.shape,
        resident=resident,
        allocated=allocated[own],
        limit=round(chip.memory * (1 - RESERVE[chip.kind])),
        attention={name: None if x is None else x + sum(resident.values()) for name, x in allocated.items() if name},
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
    """The compiled program; or None, and what the compiler said that it would have to make where that was too much."""
    try:
        return lower().compile(), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if used := re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", str(error)):
            return None, max(0, int(float(used.group(1)) * _UNITS[used.group(2)]) - resident)
        match = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", str(error))
        return None, int(float(match.group(1)) * _UNITS[match.group(2)]) if match else None

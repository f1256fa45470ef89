"""What a planned step takes on more or fewer slices of TPUs, on paper.

A chip has as many rows on any number of slices, and slices are replicas (they divide the mesh's data axis). So a chip's
operations, its HBM traffic and what it sends within its slice are those of the compiled program. What it sends between
slices is that of ring algorithms over as many of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from jax_rele.plan.hlo import Collective
from jax_rele.plan.report import PlanData
from jax_rele.plan.topology import parse_topology


@dataclass(frozen=True)
class Scaled:
    """A step on a number of slices.

    Attributes:
      chips: of all slices.
      seconds: least time by resource: `compute`, `memory`, `links` (within a slice) and `network` (between slices).
      mfu: model FLOPs utilization.
      tokens_per_second: of all chips, padding included.
    """

    chips: int
    seconds: dict[str, float]
    mfu: float
    tokens_per_second: float

    @property
    def bound_by(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds, key=self.seconds.__getitem__)


def scale(plan: PlanData, step: PlanData, slices: int) -> Scaled:
    """One step of a plan of several slices, on `slices` of them.

    Args:
      plan: a plan for a topology such as `4xv5e:16x16`.
      step: one of its steps, which fits.
      slices: how many.
    """
    chips = plan["devices"] // parse_topology(plan["topology"]).slices * slices
    seconds = {**step["seconds"], "network": network_seconds(step["collectives"], slices, plan["chip"]["network"])}
    longest = max(seconds.values())
    shorter = step["step_seconds"] / longest
    tokens = step["tokens"] * chips / plan["devices"]
    return Scaled(chips, seconds, step["mfu"] * shorter, tokens / longest)


def network_seconds(collectives: list[PlanData], slices: int, bandwidth: float) -> float:
    """Seconds that a chip sends to other slices in a step.

    Args:
      collectives: a planned step's; those within a slice are left out.
      slices: that take part.
      bandwidth: bytes per second one way and chip between slices.
    """
    names = [field.name for field in fields(Collective)]
    between = [Collective(**{name: one[name] for name in names}) for one in collectives if one["network"]]
    return sum(one.over(slices).moved for one in between) / bandwidth

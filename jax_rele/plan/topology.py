"""Accelerators as public data sheets describe them, and slices of them by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from jax_rele.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as it is written in a topology.
      kind: `tpu` or `gpu`.
      memory: bytes of HBM that a program can use.
      flops: peak dense bfloat16 operations per second.
      bandwidth: bytes per second between HBM and the cores.
      link: bytes per second one way: of one inter-chip link of a TPU, or of all NVLinks of a GPU together.
      host: GPUs joined by NVLink.
      network: bytes per second one way and chip of the data-centre network: between slices of TPUs, or hosts of GPUs.
      torus: an axis of a TPU slice is a ring when its length is a multiple of this.
      axes: dimensions of a TPU's interconnect.
    """

    name: str
    kind: Literal["tpu", "gpu"]
    memory: int
    flops: float
    bandwidth: float
    link: float
    host: int = 0
    network: float = 0.0
    torus: int = 0
    axes: int = 0


# TPUs: https://cloud.google.com/tpu/docs/v5e, /v5p and /v6e. The bandwidth of a link is the documented "bidirectional
# inter-chip interconnect bandwidth per chip" over its ports (4, 6, 4) and two directions. Memory is what the TPU
# compiler gives to a program: a little less than the documented 16, 95 and 32 GB. The network is the documented "data
# center network bandwidth": 6.4 Tb/s (v5e) and 25.6 Tb/s (v6e) a pod of 256 chips, 50 Gb/s a chip (v5p).
# GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM: dense bfloat16, HBM bandwidth and half of the
# bidirectional NVLink bandwidth; between hosts one 200 or 400 Gb/s adapter a GPU, as in NVIDIA's DGX systems.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "tpu", int(15.75 * GIB), 197e12, 819e9, 50e9, network=3.125e9, torus=16, axes=2),
        Chip("v5p", "tpu", int(95.74 * GIB), 459e12, 2765e9, 100e9, network=6.25e9, torus=4, axes=3),
        Chip("v6e", "tpu", int(31.25 * GIB), 918e12, 1638e9, 100e9, network=12.5e9, torus=16, axes=2),
        Chip("A100", "gpu", 80 * 10**9, 312e12, 2039e9, 300e9, host=8, network=25e9),
        Chip("H100", "gpu", 80 * 10**9, 989e12, 3350e9, 450e9, host=8, network=50e9),
        Chip("H200", "gpu", 141 * 10**9, 989e12, 4800e9, 450e9, host=8, network=50e9),
    )
}

EXAMPLES = "v5e:4x4, v6e:2x4, v5p:2x2x2, 4xv5e:16x16, gpu:8xH100"


@dataclass(frozen=True)
class Topology:
    """Slices of TPU pods, or GPUs.

    Attributes:
      name: as the user wrote it.
      chip: the kind of accelerator.
      shape: chips along each axis of a TPU slice; the number of GPUs.
      slices: TPU slices of this shape, joined by the data-centre network.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def slice_name(self) -> str:
        """One slice as the TPU compiler reads it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def bandwidth(self, group: int) -> float:
        """Bytes per second that a chip can send while `group` chips of a slice exchange data in a ring.

        On a TPU slice a group is assumed to span as few axes as hold its chips, and to use the links of all of them; an
        axis has two directions where it is a ring, and one otherwise. GPUs use NVLink within a host and the network
        beyond it.
        """
        if self.chip.kind == "gpu":
            return self.chip.link if group <= self.chip.host else self.chip.network
        total, reached = 0.0, 1
        for length in sorted(self.shape, reverse=True):
            if reached >= group:
                break
            reached *= length
            total += self.chip.link * (2 if length % self.chip.torus == 0 else 1)
        return total or self.chip.link


def parse_topology(text: str) -> Topology:
    """Reads `v5e:4x4`, `4xv5e:16x16` or `gpu:8xH100`.

    Raises:
      UserError: another form, an unknown chip (the known ones are listed), or a shape that the chip does not come in.
    """
    name, _, rest = text.partition(":")
    if name == "gpu":
        count, _, model = rest.partition("x")
        chip = CHIPS.get(model)
        if chip is None or chip.kind != "gpu" or not re.fullmatch(r"[1-9]\d*", count):
            raise UserError(f"--topology {text}: write gpu:COUNTxMODEL, e.g. gpu:8xH100, with {_known('gpu')}")
        return Topology(text, chip, (int(count),))
    slices = re.match(r"([1-9]\d*)x", name)
    name = name.removeprefix(slices[0]) if slices else name
    chip = CHIPS.get(name)
    if chip is None or chip.kind != "tpu":
        raise UserError(
            f"--topology {text}: unknown accelerator; known are {_known('tpu')} and {_known('gpu')}, e.g. {EXAMPLES}"
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", rest) or rest.count("x") != chip.axes - 1:
        example = "x".join(["4"] * chip.axes)
        raise UserError(f"--topology {text}: {name} has {chip.axes} axes; write for example {name}:{example}")
    return Topology(text, chip, tuple(int(length) for length in rest.split("x")), int(slices[1]) if slices else 1)


def _known(kind: str) -> str:
    return ", ".join(name for name, chip in CHIPS.items() if chip.kind == kind)

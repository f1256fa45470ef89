"""The process that plans: `python -m jax_rele.plan`, a request on standard input, the plan on standard output.

It is separate from the command because loading a TPU's compiler changes how JAX finds devices, and because the number
of CPU devices must be set before JAX starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from jax_rele.errors import UserError
from jax_rele.plan.report import PlanData
from jax_rele.plan.topology import Topology, parse_topology

if TYPE_CHECKING:
    import jax


def main() -> None:
    # What libraries print goes to standard error, so that standard output holds only the messages of this process.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**message: object) -> None:
        print(json.dumps(message), file=output, flush=True)

    request = json.load(sys.stdin)
    try:
        send(plan=_plan(request, lambda step: send(doing=step)))
    except UserError as error:
        send(error=str(error))


def _plan(request: Mapping, report: Callable[[str], None]) -> PlanData:
    topology = parse_topology(request["topology"])
    devices = _devices(topology)
    # These imports may initialise JAX, so the devices are set before them.
    from jax_rele import config as configs
    from jax_rele.plan.estimate import RESERVE, estimate
    from jax_rele.plan.steps import steps
    from jax_rele.training import make_mesh

    config = configs.from_dict(request["config"], request["path"])
    mesh, kind = make_mesh(config.mesh, devices), topology.chip.kind
    estimates = []
    for name, make in steps(config, mesh, kind, request["steps"]):
        report(name)
        narrow = config.teacher.dtype == "bfloat16" and name not in config.distill.students
        estimates.append(estimate(make(), topology, widened=kind == "gpu" and narrow).to_dict())
    if not estimates:
        names = " or ".join(request["steps"])
        raise UserError(f"{request['path']}: its run has no step {names}; name others in --steps")
    return {
        "config": request["path"],
        "topology": topology.name,
        "devices": topology.devices,
        "chip": dataclasses.asdict(topology.chip),
        "mesh": dict(mesh.shape),
        "reserve": RESERVE[kind],
        "steps": estimates,
    }


def _devices(topology: Topology) -> list[jax.Device]:
    import jax

    if topology.chip.kind == "gpu":
        jax.config.update("jax_num_cpu_devices", topology.devices)
        return jax.devices("cpu")
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.slice_name, num_slices=topology.slices
        )
        return list(description.devices)
    except jax.errors.JaxRuntimeError as error:
        status, _, reason = " ".join(str(error).split()).partition(": ")
        if status != "INVALID_ARGUMENT":
            raise
        raise UserError(f"--topology {topology.name}: the TPU compiler does not know it: {reason}") from None


if __name__ == "__main__":
    main()

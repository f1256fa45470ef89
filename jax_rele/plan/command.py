"""`jax-rele plan`: plans in a process of its own, so that the command itself does not initialise JAX's devices."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from jax_rele.config import Config
from jax_rele.errors import UserError
from jax_rele.io import check_output_file
from jax_rele.plan.report import PlanData, print_plan
from jax_rele.plan.topology import parse_topology


def plan(path: str, config: Config, topology: str, *, names: Sequence[str], json_path: Path | None = None) -> None:
    """Prints what each step of a run would cost on a topology.

    Args:
      path: of the config, for messages.
      config: the run.
      topology: e.g. `v5e:4x4` or `gpu:8xH100`.
      names: which steps, of `names.PLANNED_STEPS`.
      json_path: a file to write the plan to as well.

    Raises:
      UserError: an unknown topology, a config that does not fit it, or no TPU compiler.
    """
    if json_path is not None:
        check_output_file(json_path)
    if parse_topology(topology).chip.kind == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {topology} needs the TPU compiler: pip install 'jax_rele[tpu]'")
    # Without a terminal, as in a log, the width is fixed so that tables are not cut.
    console = Console(width=None if sys.stdout.isatty() else 120)
    request = {"path": path, "config": config.model_dump(mode="json"), "topology": topology, "steps": list(names)}
    # The TPU library must neither look for a TPU here nor ask Google's metadata server, and several plans may be made
    # at the same time, none of which uses a TPU.
    options = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(
            [sys.executable, "-m", "jax_rele.plan"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **options},
            text=True,
        ) as process:
            reply = _exchange(process, json.dumps(request), console)
        if "error" in reply:
            raise UserError(reply["error"])
        if "plan" not in reply:
            log.seek(0)
            sys.stderr.write(log.read())
            status = process.returncode
            raise UserError(f"{path}: planning for {topology} ended with status {status}; its output is above")
    print_plan(reply["plan"], console)
    if json_path is not None:
        json_path.write_text(json.dumps(reply["plan"], indent=1) + "\n", "utf-8")


def _exchange(process: subprocess.Popen[str], request: str, console: Console) -> PlanData:
    """Sends the request, shows the process's progress, and returns its last message; empty where it sent none."""
    assert process.stdin
    assert process.stdout
    with console.status("plan") as status:
        # A process that ended early has written the reason to its standard error.
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(request)
        for line in process.stdout:
            message = json.loads(line)
            if "doing" not in message:
                return message
            status.update(f"plan {message['doing']}")
    return {}

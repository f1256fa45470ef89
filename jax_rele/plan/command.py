"""`jax-rele plan`: asks a process of its own, so that this one never touches JAX's devices."""

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
from typing import Any

from rich.console import Console

from jax_rele.config import Config
from jax_rele.errors import UserError
from jax_rele.plan.report import print_plan
from jax_rele.plan.topology import parse_topology


def plan(path: str, config: Config, topology: str, *, names: Sequence[str], json_path: Path | None = None) -> None:
    """Prints what each step of a run would cost on a topology.

    Args:
      path: of the config, to be named in messages.
      config: the run.
      topology: e.g. `v5e:4x4` or `gpu:8xH100`.
      names: which steps, of `cli.PLANNED`.
      json_path: a file to write the plan to as well.

    Raises:
      UserError: an unknown topology, a config that does not fit it, or no TPU compiler.
    """
    if json_path is not None and not json_path.resolve().parent.is_dir():
        raise UserError(f"{json_path.resolve().parent}: no such folder to write to; create it first")
    # Where nobody looks, as in a log, tables need not be cut to a terminal's width.
    console = Console(width=None if sys.stdout.isatty() else 120)
    result = make_plan(path, config, topology, names, console)
    print_plan(result, console)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def make_plan(path: str, config: Config, topology: str, names: Sequence[str], console: Console) -> dict[str, Any]:
    """The plan as plain data."""
    if parse_topology(topology).chip.kind == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {topology} needs the TPU compiler: pip install 'jax_rele[tpu]'")
    request = {"path": path, "config": config.model_dump(mode="json"), "topology": topology, "steps": list(names)}
    # JAX must not look for a TPU on this machine, nor its library for Google's metadata server, and plans may be made
    # side by side, which use no TPU.
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    with tempfile.TemporaryFile("w+") as noise:
        with subprocess.Popen(
            [sys.executable, "-m", "jax_rele.plan"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=environment,
            text=True,
        ) as process:
            reply = _talk(process, json.dumps(request), console)
        if "plan" in reply:
            return reply["plan"]
        if "error" in reply:
            raise UserError(reply["error"])
        noise.seek(0)
        sys.stderr.write(noise.read())
    raise UserError(f"{path}: planning for {topology} ended with status {process.returncode}; what it said is above")


def _talk(process: subprocess.Popen, request: str, console: Console) -> dict[str, Any]:
    """Sends the request, shows what the process is doing, and returns its last word."""
    with console.status("plan") as status:
        # A process that ends early says why on its standard error.
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(request)
        for line in process.stdout:
            message = json.loads(line)
            if "doing" not in message:
                return message
            status.update(f"plan {message['doing']}")
    return {}

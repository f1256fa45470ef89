"""The device of a benchmark, and which parts of scripts/bench/gpu.sh it can run.

    python scripts/bench/gpu_device.py FILE --shapes full|tiny

Writes to FILE a JSON object: `shapes`, `platform`, `name`, `memory` (bytes, 0 where unknown), `versions`, and
`missing`, what is lacking in a sentence each. Prints the parts that can run; without a GPU it ends with status 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import sys
import tomllib
from pathlib import Path

PEERS = ("torch", "peft", "sentence-transformers")
NEEDED = 44 << 30
"""Bytes of GPU memory for the teacher's full shape: 16 GB of weights, and what a training step keeps."""


def version(package: str) -> str:
    """The installed version, "" without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def dependencies() -> list[str]:
    """What pyproject.toml names, with the extra for numbers of 8 bits."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["quant"]
    return [re.split(r"[^\w.-]", requirement)[0] for requirement in needed]


def first_device() -> dict[str, object]:
    """`platform`, `name` and `memory` of JAX's first device."""
    # Read when JAX is first used: no memory is taken, and all of it is counted.
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "1.0"}
    try:
        import jax

        device = jax.devices()[0]
    except (ImportError, RuntimeError) as error:
        return {"platform": "none", "name": f"{type(error).__name__}: {error}".splitlines()[0], "memory": 0}
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    return {"platform": device.platform, "name": device.device_kind, "memory": memory}


def missing_lines(platform: str, memory: int, shapes: str) -> list[str]:
    """What is lacking, a sentence each."""
    lines = []
    if peers := [package for package in PEERS if not version(package)]:
        lines.append(f"Not installed: {', '.join(peers)}; the columns of what needs them are empty.")
    if own := [package for package in dependencies() if not version(package)]:
        lines.append(f"Not installed of jax_rele's dependencies: {', '.join(own)}.")
    if shapes == "full" and platform == "gpu" and 0 < memory < NEEDED:
        have, need = (size / 2**30 for size in (memory, NEEDED))
        lines.append(f"The GPU has {have:.0f} GiB; the teacher needs {need:.0f} GiB, so it is not measured.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shapes", choices=("full", "tiny"), required=True)
    options = parser.parse_args()
    device = first_device()
    missing = missing_lines(device["platform"], device["memory"], options.shapes)
    versions = {package: version(package) for package in ("jax", "jaxlib", "flax", "transformers", *PEERS)}
    document = {"shapes": options.shapes, **device, "versions": versions, "missing": missing}
    options.file.write_text(json.dumps(document, indent=1))
    if options.shapes == "full" and device["platform"] != "gpu":
        sys.exit(f"no GPU: JAX has {device['platform']} ({device['name']}); SHAPES=tiny runs on a CPU")
    print("students" if any("the teacher needs" in line for line in missing) else "teacher students")


if __name__ == "__main__":
    main()

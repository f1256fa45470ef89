"""The device of a benchmark, and which parts of scripts/bench/gpu.sh it can run.

    python scripts/bench/gpu_device.py FILE --shapes full|tiny

Writes to FILE a JSON object: `shapes`, `platform`, `name`, `memory` (bytes, 0 where unknown), `versions`, and
`missing`, what is lacking in a sentence each. Prints the parts that can run. Without a GPU, or without the packages of
jax_rele, it ends with status 1 and a line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from pathlib import Path

OWN = (
    *("jax", "flax", "optax", "rax", "orbax-checkpoint", "chex", "grain", "transformers", "tokenizers", "regex"),
    *("safetensors", "huggingface_hub", "pyarrow", "numpy", "scipy", "pydantic", "pyyaml", "rich", "jinja2"),
    "tensorboardX",
)
"""The dependencies of jax_rele that the benchmarks import."""
PEERS = ("torch", "peft", "sentence-transformers")
NEEDED = 44 << 30
"""Bytes of GPU memory for the teacher's full shape: 16 GB of weights, and what a training step keeps."""


def version(package: str) -> str:
    """The installed version, "" without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


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
    if not version("qwix"):
        lines.append("Not installed: qwix; decoding with projections in int8 is not measured.")
    if shapes == "full" and platform == "gpu" and 0 < memory < NEEDED:
        have, need = (size / 2**30 for size in (memory, NEEDED))
        lines.append(f"The GPU has {have:.0f} GiB; the teacher needs {need:.0f} GiB, so it is not measured.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shapes", choices=("full", "tiny"), required=True)
    options = parser.parse_args()
    if own := [package for package in OWN if not version(package)]:
        sys.exit(f"jax_rele needs packages that are not installed: {', '.join(own)}")
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

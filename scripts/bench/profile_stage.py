"""Where the time of a stage goes: compilation, kinds of operations, the worst of them.

    python scripts/bench/profile_stage.py STAGE RUN [--set distill.optimization.steps=20 ...] [--top 3] [--json OUT]

RUN is a run whose stages before STAGE are finished. They are copied to a temporary folder, STAGE runs there under JAX's
profiler, and RUN stays as it is. Give a small number of steps: a trace holds every operation.

Kinds follow from the compiled programs: `logits` (products with the output embedding), `attention` (its two products
and the softmax), `moves in attention` (queries, keys and values written to a cache, sliced, copied, transposed),
`matmul` (other products), `scatter` (gathers and scatters), `fill and copy` (broadcasts, copies, transposes, updates of
slices), `elementwise` (the rest). Loops and branches are not counted beside what they contain. `of op time` adds up the
threads. Floating-point operations are those of products; their rates stand beside that of one large product on this
device. On TPUs and GPUs the same tables would come from the device's own planes: that is not tried.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STAGES = ("prepare", "annotate", "adapt", "finetune", "prefer", "score", "distill", "evaluate")
KINDS = ("logits", "attention", "moves in attention", "matmul", "scatter", "fill and copy", "elementwise")
LOGITS = re.compile(r"[a-z]e,[a-z]e->|[a-z]+,ve->|bv,|ble,|blv,")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|[a-z][a-z0-9]*\[\S*) ([a-z][\w\-]*)\((.*)$")
SHAPE = re.compile(r"[a-z]+[0-9]*\[([0-9,]*)\]")
CONTROL = frozenset({"while", "conditional", "call", "tuple", "get-tuple-element", "parameter", "constant"})


@dataclass(frozen=True)
class Operation:
    """An instruction of a compiled program.

    Attributes:
      opcode: that of the instruction, or of the root of what it fuses.
      source: the path of names under which it was traced.
      flops: floating-point operations of the products in it.
    """

    opcode: str
    source: str
    flops: float

    @property
    def kind(self) -> str:
        """One of `KINDS`; "" for control flow."""
        if self.opcode in CONTROL:
            return ""
        in_attention = "/attention" in self.source and "_proj" not in self.source
        if self.flops:
            name = self.source.split("/")[-2] if "/" in self.source else ""
            if LOGITS.match(name):
                return "logits"
            return "attention" if in_attention else "matmul"
        last = self.source.rpartition("/")[2]
        moves = re.fullmatch(r"slice|dynamic_slice|dynamic_update_slice|scatter|copy|transpose|concatenate|pad", last)
        if in_attention:
            return "moves in attention" if moves else "attention"
        if re.fullmatch(r"scatter.*|gather|take", last) or self.opcode in ("scatter", "gather"):
            return "scatter"
        if self.opcode in ("broadcast", "copy", "transpose", "dynamic-update-slice", "dynamic-slice", "concatenate"):
            return "fill and copy"
        return "elementwise"


def operations(folder: Path) -> dict[tuple[str, str], Operation]:
    """(program, instruction) -> operation, from the dumped texts of the compiled programs."""
    known: dict[tuple[str, str], Operation] = {}
    for path in folder.glob("*after_optimizations.txt"):
        lines = path.read_text("utf-8", "replace").splitlines()
        program = re.sub(r"^HloModule ([\w.\-]+).*", r"\1", lines[0])
        for name, operation in _instructions(lines):
            known[program, name] = operation
    return known


def _instructions(lines: Sequence[str]) -> Iterator[tuple[str, Operation]]:
    shapes: dict[str, str] = {}
    flops: dict[str, float] = defaultdict(float)  # by computation
    roots: dict[str, str] = {}
    computation, parsed = "", []
    for line in lines:
        if line.rstrip().endswith("{") and " = " not in line:
            match = re.match(r"\s*(?:ENTRY )?%?([\w.\-]+)", line)
            computation = match[1] if match else ""
            continue
        match = INSTRUCTION.match(line)
        if not match:
            continue
        name, shape, opcode, rest = match.groups()
        shapes[name] = shape
        if line.lstrip().startswith("ROOT"):
            roots[computation] = opcode
        if opcode == "dot":
            flops[computation] += _dot_flops(shape, rest, shapes)
        parsed.append((name, shape, opcode, rest))
    for name, shape, opcode, rest in parsed:
        called = re.search(r"calls=%?([\w.\-]+)", rest)
        source = re.search(r'op_name="([^"]*)"', rest)
        own = _dot_flops(shape, rest, shapes) if opcode == "dot" else flops.get(called[1], 0.0) if called else 0.0
        root = roots.get(called[1], opcode) if called and opcode == "fusion" else opcode
        yield name, Operation(root, source[1] if source else "", own)


def _dot_flops(shape: str, rest: str, shapes: dict[str, str]) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", rest)
    left = re.match(r"\s*(?:[a-z0-9]+\[[^\]]*\]\S* )?%?([\w.\-]+)", rest)
    sizes = _sizes(shapes.get(left[1], "")) if left else []
    width = 1.0
    for axis in contracted[1].split(",") if contracted and contracted[1] else []:
        width *= sizes[int(axis)] if int(axis) < len(sizes) else 1
    elements = 1.0
    for size in _sizes(shape):
        elements *= size
    return 2.0 * elements * width


def _sizes(shape: str) -> list[int]:
    match = SHAPE.search(shape)
    return [int(size) for size in match[1].split(",") if size] if match else []


def measure(stage: str, folder: Path, trace: Path) -> dict[str, float]:
    """Runs the stage under the profiler; seconds of wall, of processor time, and of compilation."""
    import importlib

    import jax

    from jax_rele.config import load

    seconds: Counter[str] = Counter()

    def listen(event: str, duration: float, **_: object) -> None:
        if event.startswith("/jax/core/compile/"):
            seconds["tracing" if "trace" in event or "mlir" in event else "compiling"] += duration
            seconds["programs"] += event.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(listen)
    (folder / stage).mkdir(exist_ok=True)
    run = importlib.import_module(f"jax_rele.stages.{stage}").run
    with jax.profiler.trace(str(trace)):
        begin, start = processor_seconds(), time.perf_counter()
        run(load(folder / "config.yaml"), folder)
        seconds["wall"], seconds["processor"] = time.perf_counter() - start, processor_seconds() - begin
    return dict(seconds)


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed_operations(trace: Path) -> Iterator[tuple[str, str, float]]:
    """(program, instruction, seconds) of every operation in a trace."""
    from jax.profiler import ProfileData

    for path in trace.glob("plugins/profile/*/*.xplane.pb"):
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    if "hlo_op" in stats:
                        yield str(stats.get("hlo_module", "")), str(stats["hlo_op"]), event.duration_ns / 1e9


def product_rate() -> float:
    """GFLOP/s of a product of two 1536 x 1536 matrices."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((1536, 1536))
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        multiply(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * 1536**3 / sorted(times)[4] / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="changes of the run's config")
    parser.add_argument("--top", type=int, default=3, help="worst operations to show; 3")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.run / "config.yaml").exists():
        parser.error(f"{options.run}: is no run; it has no config.yaml")
    with tempfile.TemporaryDirectory() as temporary:
        folder, dump, trace = (Path(temporary) / name for name in ("run", "programs", "trace"))
        # Read by XLA when JAX is first used.
        flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        copy_run(options.run, folder, options.stage, options.set)
        seconds = measure(options.stage, folder, trace)
        known = operations(dump)
        report(seconds, known, list(timed_operations(trace)), options)


def copy_run(run: Path, folder: Path, stage: str, changes: Sequence[str]) -> None:
    """Copies the stages before `stage`, and the config with changes."""
    import yaml

    folder.mkdir()
    for name in STAGES[: STAGES.index(stage)]:
        if name == "prefer" and not (run / name).is_dir():
            continue  # it is optional
        if not (run / name).is_dir():
            sys.exit(f"{run / name}: is missing; run the stages before {stage} first")
        shutil.copytree(run / name, folder / name)
    values = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    for change in changes:
        path, _, value = change.partition("=")
        *sections, field = path.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[field] = yaml.safe_load(value)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")


def report(
    seconds: dict[str, float],
    known: dict[tuple[str, str], Operation],
    events: Sequence[tuple[str, str, float]],
    options: argparse.Namespace,
) -> None:
    """Prints the tables."""
    unknown = Operation("unknown", "", 0.0)
    time_of, flops_of, count = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    by_operation: Counter[tuple[str, str]] = Counter()
    for program, name, duration in events:
        operation = known.get((program, name), unknown)
        if kind := operation.kind:
            time_of[kind] += duration
            flops_of[kind] += operation.flops
            by_operation[program, name] += duration
            count[program, name] += 1
    total, rate = sum(time_of.values()), product_rate()
    print(f"{options.stage} of {options.run.name}: {' '.join(options.set)}\n")
    print("| | s |\n|---|---|")
    for name in ("wall", "processor", "tracing", "compiling"):
        print(f"| {name} | {seconds.get(name, 0):.1f} |")
    print(f"| operations, over all threads | {total:.1f} |")
    print(f"\n{seconds.get('programs', 0):.0f} programs compiled; one large product: {rate:.0f} GFLOP/s\n")
    print("| kind | s | of op time | GFLOP/s |\n|---|---|---|---|")
    for kind in KINDS:
        speed = f"{flops_of[kind] / time_of[kind] / 1e9:.0f}" if flops_of[kind] else ""
        print(f"| {kind} | {time_of[kind]:.2f} | {time_of[kind] / max(total, 1e-9):.0%} | {speed} |")
    print("\n| worst | times | s | of op time | traced in |\n|---|---|---|---|---|")
    for key, duration in by_operation.most_common(options.top):
        operation = known.get(key, unknown)
        source = "/".join(operation.source.split("/")[-3:]).replace("|", "/")
        name = f"{key[0]} {key[1]} ({operation.kind})"
        print(f"| {name} | {count[key]} | {duration:.2f} | {duration / max(total, 1e-9):.0%} | `{source}` |")
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "kinds": dict(time_of)}, indent=1), "utf-8")


if __name__ == "__main__":
    main()

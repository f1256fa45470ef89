"""Compiled programs as the text of their HLO modules, and the collectives in them.

XLA's own cost analysis counts the body of a loop once. Here a loop counts as often as it runs, which for a `scan` is
known; a loop of unknown length counts once.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Shape:
    """An array: its element type, its bytes, and whether it lies in HBM rather than in a core's own memory."""

    kind: str
    bytes: int
    in_hbm: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction; `shapes` are the arrays of its result, a tuple's in order."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, key: str) -> str:
        """The value of an attribute, such as the computation that `body` names; empty where there is none."""
        return _search(rf"\b{key}=%?([\w.\-]+)", self.attributes)


@dataclass
class Computation:
    """Instructions by name, in order; the last is the root."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]


@dataclass(frozen=True)
class Module:
    """Computations by name; `partitions` is the number of devices that run the program together."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


@dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of an all-gather the whole result on one chip, of any other kind one chip's operands.
      group: chips that take part together; between slices, one of each.
      count: how often it runs in a step.
      source: the operation of the model that it belongs to.
      network: whether it goes over the data-centre network, between slices, rather than over the links of a slice.
    """

    kind: str
    bytes: int
    group: int
    count: int
    source: str
    network: bool = False

    @property
    def moved(self) -> float:
        """Bytes that one chip sends in a step, by ring algorithms."""
        fraction = (self.group - 1) / self.group
        once = {"all-reduce": 2 * fraction, "collective-permute": 1.0}.get(self.kind, fraction)
        return once * self.bytes * self.count

    def over(self, group: int) -> Collective:
        """The same collective of `group` chips, each of which brings as many bytes; of one nothing is sent."""
        if group == 1:
            return replace(self, bytes=0, group=1)
        whole = self.bytes // self.group * group if self.kind == "all-gather" else self.bytes
        return replace(self, bytes=whole, group=group)


# ---- reading

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OP = re.compile(r"\s*([a-z][\w\-]*)\(")


def _search(pattern: str, text: str) -> str:
    """The first group of the first match; empty where there is none."""
    match = re.search(pattern, text)
    return match[1] if match else ""


def parse(text: str) -> Module:
    """Reads the text of a module, as `compiled.as_text()` gives it."""
    computations: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        if line and not line[0].isspace() and (header := _HEADER.match(line)):
            current = computations[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif (match := _INSTRUCTION.match(line)) and (instruction := _instruction(match[2], match[3])):
            current.instructions[instruction.name] = instruction
            current.root = instruction.name if match[1] else current.root
    return Module(computations, entry, int(_search(r"num_partitions=(\d+)", text[:100_000]) or 1))


def _instruction(name: str, rest: str) -> Instruction | None:
    rest = re.sub(r"/\*.*?\*/", "", rest)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    op = _OP.match(rest, end)
    if end <= 0 or op is None:
        return None
    close = _closing(rest, op.end() - 1)
    inside = rest[op.end() : close]
    attributes = inside if op[1] in ("constant", "parameter") else rest[close + 1 :]
    return Instruction(name, op[1], _shapes(rest[:end]), tuple(re.findall(r"%([\w.\-]+)", inside)), attributes)


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text) - 1


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(kind, _bits(kind) * math.prod(map(int, filter(None, sizes.split(",")))) // 8, "S(" not in layout)
        for kind, sizes, layout in _SHAPE.findall(text)
    )


def _bits(kind: str) -> int:
    return 8 if kind == "pred" else int(_search(r"(\d+)", kind) or 0)  # a token has none


# ---- walking


def executed(module: Module) -> Iterator[tuple[Computation, int]]:
    """Computations that run as such (not those inside fusions or reductions) and how often."""
    counts: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        counts[name] += times
        for instruction in module.computations[name].instructions.values():
            inner, runs = [], times
            if instruction.op == "while":
                inner, runs = ["body", "condition"], times * trip_count(module, instruction)
            elif instruction.op in ("call", "async-start"):
                inner = ["to_apply" if instruction.attribute("to_apply") else "calls"]
            elif instruction.op == "conditional":
                branches = _search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                for branch in re.findall(r"%?([\w.\-]+)", branches):
                    visit(branch, times)
                inner = [] if branches else ["true_computation", "false_computation"]
            for key in inner:
                visit(instruction.attribute(key), runs)

    visit(module.entry, 1)
    for name, times in counts.items():
        yield module.computations[name], times


def trip_count(module: Module, loop: Instruction) -> int:
    """How often a `while` runs its body; 1 where that is unknown."""
    if known := _search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known)
    # Loops made by `scan` count up from 0 to a constant; the compiler may have unrolled several iterations into one.
    condition, body = (module.computations[loop.attribute(name)] for name in ("condition", "body"))
    compare = condition.instructions[condition.root]
    if compare.op != "compare" or "direction=LT" not in compare.attributes:
        return 1
    counter, end = condition.operands(compare)
    if counter.op != "get-tuple-element" or end.op != "constant" or not end.attributes.isdigit():
        return 1
    index = int(counter.attribute("index"))
    step = _added(body, body.instructions[body.root].operands[index], index)
    return -(-int(end.attributes) // step) if step else 1


def _added(body: Computation, name: str, index: int) -> int | None:
    """What `name` adds to the element `index` of a loop's state; None where it is something else."""
    instruction = body.instructions[name]
    if instruction.op == "get-tuple-element":
        return 0 if int(instruction.attribute("index")) == index else None
    if instruction.op == "copy":
        return _added(body, instruction.operands[0], index)
    if instruction.op == "add":
        left, right = body.operands(instruction)
        counter, constant = (right, left) if left.op == "constant" else (left, right)
        before = _added(body, counter.name, index)
        if before is not None and constant.op == "constant" and constant.attributes.isdigit():
            return before + int(constant.attributes)
    return None


# ---- collectives


def collectives(text: str | Module, *, widened: bool = False) -> list[Collective]:
    """The collectives of a step, equal ones of one source counted together.

    Args:
      text: of the module.
      widened: whether float32 counts as 16 bits, for programs whose compiler widened bfloat16.
    """
    module = parse(text) if isinstance(text, str) else text
    counts: dict[Collective, int] = defaultdict(int)
    for instruction, inside, fusion, times in collective_instructions(module):
        kind = instruction.op.removesuffix("-start")
        if kind == "all-reduce" and fusion.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        group = _group(instruction.attributes, module.partitions)
        size = sum(
            shape.bytes // (2 if widened and shape.kind == "f32" else 1)
            for operand in inside.operands(instruction)
            for shape in operand.shapes
        )
        size *= group if kind == "all-gather" else 1
        source = _search(r'op_name="([^"]*)"', instruction.attributes)
        counts[Collective(kind, size, group, 0, source)] += times
    for computation, times in executed(module):
        for instruction in computation.instructions.values():
            if instruction.op == "send" and (transfer := _transfer(instruction, computation)):
                counts[transfer] += times
    # A group of one exchanges nothing.
    return [replace(collective, count=count) for collective, count in counts.items() if collective.group > 1]


_TRANSFERS = {
    **{kind.upper().replace("-", "_"): kind for kind in COLLECTIVES},
    "ONE_TO_ONE": "collective-permute",
}
"""Kinds of collectives as the TPU compiler names them where they go between slices."""


def _transfer(send: Instruction, computation: Computation) -> Collective | None:
    """The collective between slices that a `send` begins; None where it sends to somewhere else.

    Within each slice the compiler has reduced, or will gather, by collectives of their own.
    """
    kind = _search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
    if not kind:
        return None
    size = computation.operands(send)[0].bytes
    group = _slices(send.attributes)
    source = _search(r'op_name="([^"]*)"', send.attributes)
    name = _TRANSFERS.get(kind, kind.lower())
    return Collective(name, size * (group if name == "all-gather" else 1), group, 0, source, network=True)


def _slices(attributes: str) -> int:
    """Slices that take part together: all as `"{1,2}x{0:7}"`, some as groups or pairs of slice * 100000 + chip."""
    target = _search(r'_xla_megascale_target="?\{+([^}]*)\}', attributes)
    if "->" in target:
        return 2
    spans = [[int(end) for end in part.split(":")] for part in target.split(",") if part]
    numbers = {number for span in spans for number in range(span[0], span[-1] + 1)}
    return len({number // 100_000 or number for number in numbers})


def collective_instructions(module: Module) -> Iterator[tuple[Instruction, Computation, str, int]]:
    """(the collective, the computation it is in, the name of that where it is a fusion's, how often it runs)."""
    # The TPU compiler overlaps a collective with other work by splitting it into pieces and fusing them with that work,
    # even inside loops. The pieces share a channel, and the first piece is outside the loops.
    channels = set()
    for computation, times in executed(module):
        for instruction, inside, fusion in _with_fused(module, computation):
            if instruction.op.removesuffix("-start") not in COLLECTIVES:
                continue
            channel = _search(r"channel_id=(\d+)", instruction.attributes)
            if fusion and channel:
                if channel in channels:
                    continue
                channels.add(channel)
            yield instruction, inside, fusion, times


def _with_fused(module: Module, computation: Computation) -> Iterator[tuple[Instruction, Computation, str]]:
    """The instructions of a computation and of what it fuses: (instruction, where it is, name of the fusion's body)."""
    pending = [(computation, "")]
    while pending:
        inside, name = pending.pop()
        for instruction in inside.instructions.values():
            yield instruction, inside, name
            if instruction.op == "fusion":
                body = instruction.attribute("calls")
                pending.append((module.computations[body], body))


def _group(attributes: str, partitions: int) -> int:
    """Size of the groups of a collective, which are written in one of four ways."""
    if pairs := _search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return _cycle(dict(re.findall(r"(\d+),(\d+)", pairs)))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']*)'", named[2]))
    if iota := _search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota)
    if listed := _search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed.split(","))
    return partitions


def _cycle(to: dict[str, str]) -> int:
    """Chips of the longest ring or chain along which a permutation sends."""
    longest = 0
    for start in to:
        chips, chip = {start}, start
        while (chip := to.get(chip, start)) not in chips:
            chips.add(chip)
        longest = max(longest, len(chips))
    return longest

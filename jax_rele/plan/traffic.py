"""The bytes that a compiled program moves between HBM and the cores, from the text of its HLO module."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from jax_rele.plan.hlo import COLLECTIVES, Computation, Instruction, Module, collective_instructions, executed, parse

_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all"),
    *("async-start", "partition-id", "replica-id", "opt-barrier", "domain", "add-dependency"),
)
"""Instructions that move nothing themselves."""

_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Instructions that update their first operand in place, and the operand that holds the new values."""


def traffic(text: str | Module) -> int:
    """Bytes that one chip moves between HBM and its cores in a step: what instructions read and what they write.

    A slice counts the part that it selects, an update in place the part that it changes; arrays in a core's own memory
    count nothing. Fused instructions count by what goes in and out of the fusion.
    """
    module = parse(text) if isinstance(text, str) else text
    total = sum(
        times * _moved(module, computation, instruction)
        for computation, times in executed(module)
        for instruction in computation.instructions.values()
    )
    # A fusion with a piece of a collective moves it, which counts once.
    return total + sum(
        times * _in_hbm(instruction, *inside.operands(instruction))
        for instruction, inside, fusion, times in collective_instructions(module)
        if fusion
    )


def _in_hbm(*instructions: Instruction) -> int:
    return sum(shape.bytes for instruction in instructions for shape in instruction.shapes if shape.in_hbm)


def _moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    op, operands = instruction.op, computation.operands(instruction)
    if op in _FREE or op.endswith("-done"):
        return 0
    if op == "fusion":
        fused = module.computations[instruction.attribute("calls")]
        return _read_by_fusion(module, fused, operands) + _written(instruction, fused)
    if op in ("slice", "dynamic-slice", "gather", "slice-start"):
        selected = instruction.shapes[len(operands) if op == "slice-start" else 0]
        return selected.bytes * (operands[0].shapes[0].in_hbm + selected.in_hbm)
    if op in _UPDATES:
        return 2 * operands[_UPDATES[op]].bytes
    if op == "send":
        return _in_hbm(*operands)
    if op == "recv":
        instruction = replace(instruction, shapes=instruction.shapes[:1])
    if op.endswith("-start"):
        # The result is a tuple that begins with the destination (copies) or with the operands (the others).
        results = slice(1) if op == "copy-start" else slice(len(operands), 2 * len(operands))
        instruction = replace(instruction, shapes=instruction.shapes[results])
    return _in_hbm(instruction, *operands)


def _read_by_fusion(module: Module, fused: Computation, operands: list[Instruction]) -> int:
    """Bytes that a fusion reads of its operands in HBM."""
    in_hbm = {index for index, operand in enumerate(operands) if _in_hbm(operand)}
    return _read_parameters(module, fused, in_hbm)


def _read_parameters(module: Module, fused: Computation, indices: Collection[int]) -> int:
    """Bytes that a fused computation reads of its parameters of these indices."""
    return sum(
        min(_bytes_read(module, fused, x), x.bytes)
        for x in fused.instructions.values()
        if x.op == "parameter" and int(x.attributes) in indices
    )


def _bytes_read(module: Module, fused: Computation, source: Instruction) -> int:
    """Bytes of `source` that the instructions of a fused computation read."""
    total = 0
    for user in fused.instructions.values():
        if source.name not in user.operands:
            continue
        if user.op == "bitcast":
            total += _bytes_read(module, fused, user)
        elif user.op in ("dynamic-slice", "slice", "gather"):
            total += user.bytes
        elif user.op == "fusion":
            inner = module.computations[user.attribute("calls")]
            indices = [index for index, name in enumerate(user.operands) if name == source.name]
            total += _read_parameters(module, inner, indices)
        elif user.op in _UPDATES and user.operands[0] == source.name:
            continue
        elif user.op not in ("tuple", *COLLECTIVES) and "AsyncCollective" not in user.attributes:
            total += source.bytes
    return total


def _written(instruction: Instruction, fused: Computation) -> int:
    root = fused.instructions[fused.root]
    roots = fused.operands(root) if root.op == "tuple" else [root]
    total = 0
    for shape, result in zip(instruction.shapes, roots):
        while result.op == "bitcast":
            result = fused.operands(result)[0]
        if result.op in _UPDATES:
            shape = replace(shape, bytes=fused.operands(result)[_UPDATES[result.op]].bytes)
        passed_on = result.op in ("parameter", *COLLECTIVES) or "AsyncCollective" in result.attributes
        total += shape.bytes if shape.in_hbm and not passed_on else 0
    return total

"""Floating-point operations of a program, counted in its jaxpr: matrix products and convolutions, loops included."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
from jax.extend import core
from jax.interpreters import partial_eval as pe

from jax_rele.types import PyTree


def flops(function: Callable[..., PyTree], *args: PyTree) -> int:
    """Operations of `function(*args)` over all devices; a multiply-add counts two.

    Rematerialised operations count as often as they are computed, a `scan` as often as it runs, and a condition as its
    costliest branch. A `while` loop counts once, and elementwise operations count nothing.

    Args:
      function: what `jax.jit` would take.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: the function holds kernels, whose operations the jaxpr does not show.
    """
    closed = jax.make_jaxpr(function)(*args)
    # Reverse-mode differentiation leaves unused products, which the compiler removes too.
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, _inner(equation.params)
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += equation.params["length"] * _count(*inner)
        elif name == "cond":
            total += max(_count(branch) for branch in inner)
        elif name in ("pallas_call", "shard_map"):
            raise ValueError(f"the operations of {name} are not known; count with another implementation of attention")
        elif name.startswith("custom_"):
            # Its other functions are differentiation rules, which do not run here.
            total += _count(inner[0])
        else:
            total += sum(map(_count, inner))
    return total


def _inner(params: Mapping[str, object]) -> list[core.Jaxpr]:
    """The jaxprs among an equation's parameters."""
    jaxprs = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if isinstance(item, core.Jaxpr):
                jaxprs.append(item)
    return jaxprs


def _dot(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features

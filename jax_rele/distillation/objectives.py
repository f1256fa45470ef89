"""Objectives of a config as terms: a recipe by name, or one changed term by term, with losses from outside too."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jax_rele import losses
from jax_rele.config import DistillConfig, ScheduleConfig, TermConfig
from jax_rele.distillation.fields import KNOWN, OFFERED
from jax_rele.errors import UserError
from jax_rele.io import hash_bytes
from jax_rele.losses.combine import Schedule, Term
from jax_rele.losses.recipes import OUTPUTS


def terms(
    distill: DistillConfig,
    gains: Sequence[float],
    name: str,
    heads: Collection[str],
    verdict_pooling: str = "tokens",
) -> dict[str, Term]:
    """The terms of the recipe or objective called `name`, for a student with these heads.

    Args:
      distill: custom objectives, and the temperature of the score terms.
      gains: [C] gain of each label.
      name: the recipe or objective.
      heads: the fields of `StudentOutputs` that the student fills.
      verdict_pooling: `student.verdict_pooling`. The weight of a recipe's verdict term falls where verdicts are read
        from the tokens, and is constant where they are `pooled` (docs/studies/attribute_world.md).

    Raises:
      UserError: a loss cannot be found, or a term does not fit its loss; it names the config path.
    """
    objective = distill.objectives.get(name)
    base = name if objective is None else objective.base
    steps = distill.optimization.steps if verdict_pooling == "tokens" else 0
    terms_by_name = losses.recipe(base, gains=gains, temperature=distill.temperature, heads=heads, steps=steps)
    for term_name, term in ({} if objective is None else objective.terms).items():
        path = f"distill.objectives.{name}.terms.{term_name}"
        terms_by_name[term_name] = _term(path, term, terms_by_name.get(term_name), gains)
        if term.weight == 0:
            del terms_by_name[term_name]
    if not terms_by_name:
        raise UserError(f"distill.objectives.{name}: no term is left; give one a weight")
    return terms_by_name


def student_terms(
    distill: DistillConfig,
    gains: Sequence[float],
    name: str,
    student: str,
    heads: Collection[str],
    verdict_pooling: str = "tokens",
) -> dict[str, Term]:
    """`terms`, checked against a student.

    Raises:
      UserError: as `terms`; or a term reads an output that the student lacks, or a field that no batch holds.
    """
    built = terms(distill, gains, name, heads, verdict_pooling)
    outputs, fields = losses.needs(built)
    if missing := sorted(outputs - set(heads)):
        fix = (
            "give student.cross_encoder.latent_width a number"
            if missing[0] == "latent" and student == "cross_encoder"
            else f"take {student} out of distill.students or {name} out of distill.recipes"
        )
        raise UserError(f"distill.recipes: {name} needs the head {missing[0]!r}, which {student} lacks; {fix}")
    if unknown := sorted(fields - KNOWN):
        raise UserError(
            f"distill.recipes: {name} reads the field {unknown[0]!r}, which is neither a head nor a signal; there "
            f"are the heads {', '.join(sorted(heads))} and the signals {', '.join(OFFERED)}"
        )
    if "evidence_tags" in fields and "token_logits" not in heads:
        raise UserError(f"distill: {student} reads no pair token by token, so it has no evidence_tags to learn from")
    return built


def learns_verdicts(distill: DistillConfig, gains: Sequence[float], name: str) -> bool:
    """Whether a student of the recipe or objective has learnt to predict verdicts."""
    return losses.learns_verdicts(terms(distill, gains, name, OUTPUTS))


def learns_evidence(distill: DistillConfig, gains: Sequence[float], name: str) -> bool:
    """Whether a student of the recipe or objective has learnt to tag evidence."""
    return "token_logits" in losses.needs(terms(distill, gains, name, OUTPUTS))[0]


def _term(path: str, term: TermConfig, base: Term | None, gains: Sequence[float]) -> Term:
    if not term.loss and base is None:
        raise UserError(f"{path}.loss: the base has no term of this name; say which loss it is")
    options: dict[str, Any] = {"weight": 1.0}
    if base is not None and not term.loss:
        options = {key: getattr(base, key) for key in ("weight", "temperature", "where", "confidence")} | dict(
            base.bind
        )
    overrides = {
        "weight": _number(term.weight),
        "temperature": _number(term.temperature),
        "where": term.where or None,
        "confidence": term.confidence or None,
    }
    options |= {key: value for key, value in overrides.items() if value is not None} | term.bind
    try:
        loss = base.fn if base is not None and not term.loss else resolve(f"{path}.loss", term.loss)
        if "gains" in inspect.signature(loss).parameters:
            options.setdefault("gains", np.asarray(gains, np.float32))
        return losses.term(loss, **options)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _number(value: float | ScheduleConfig | None) -> float | Schedule | None:
    if isinstance(value, ScheduleConfig):
        return optax.linear_schedule(value.start, value.end, value.steps)
    return value


def resolve(path: str, name: str) -> Callable[..., jax.Array]:
    """The function called `name`: a loss of the library, `package.module:function` or `file.py:function`.

    Args:
      path: the config path, for errors.
      name: modules are looked for in the working directory too.

    Raises:
      UserError: there is none.
    """
    where, colon, function = name.rpartition(":")
    if not colon:
        known = [each for each in losses.__all__ if _is_loss(getattr(losses, each))]
        if function not in known:
            raise UserError(
                f"{path}: there is no loss {name!r}; there are {', '.join(known)}, or write "
                "package.module:function or file.py:function"
            )
        return getattr(losses, function)
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
    except (Exception, SystemExit) as error:
        message = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path}: cannot import {where or repr(name)} ({type(error).__name__}: {message})") from None
    loss = getattr(module, function, None)
    if not callable(loss):
        raise UserError(f"{path}: {where} has no function {function}")
    return loss


def _is_loss(function: Callable[..., object]) -> bool:
    """Whether it makes elements of a student's outputs."""
    parameters = inspect.signature(function).parameters
    return "where" in parameters and bool(OUTPUTS & set(parameters))


def source_hash(name: str) -> str:
    """Of the text of the file that holds a loss from outside; empty where there is none to read."""
    where = name.rpartition(":")[0]
    try:
        spec = None if where.endswith(".py") else importlib.util.find_spec(where)
        return hash_bytes(Path(where if spec is None else spec.origin or "").read_bytes())
    except (ImportError, AttributeError, ValueError, OSError):
        return ""


def _from_file(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_name(name: str):
    here = str(Path.cwd())
    if here not in sys.path:
        # A console script does not look there by itself.
        sys.path.append(here)
    return importlib.import_module(name)

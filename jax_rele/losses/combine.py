"""Named terms with weights, joined into one scalar that a train step can differentiate."""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Schedule: TypeAlias = Callable[[Any], ArrayLike]
Totals: TypeAlias = Mapping[str, tuple[SupportsFloat, SupportsFloat]]
T = TypeVar("T", bound=Totals)


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss in a combination. Made by `term`.

    Attributes:
      fn: a function from named arrays to elements.
      weight: a number or a schedule, a function of the step.
      temperature: a number or a schedule, or None where `fn` keeps its own.
      where: the batch field that masks this term, or None.
      confidence: the batch field that weights this term's elements, or None.
      bind: argument name -> field name, or a constant.
    """

    fn: Callable[..., jax.Array]
    weight: float | Schedule
    temperature: float | Schedule | None
    where: str | None
    confidence: str | None
    bind: Mapping[str, object]


def term(
    fn: Callable[..., jax.Array],
    /,
    *,
    weight: float | Schedule = 1.0,
    temperature: float | Schedule | None = None,
    where: str | None = None,
    confidence: str | None = None,
    **bind: object,
) -> Term:
    """A loss to be combined with others.

    Args:
      fn: a function from arrays to elements: one number per example, or per example and dimension, or per token; no
        reduction. Its parameters are named after the fields that they read; `combine` says how they are found.
      weight: a number, or a schedule of optax: a function of the step.
      temperature: the same, passed to the `temperature` parameter of `fn`; None leaves that parameter's default.
      where: name of a bool field of the batch; this term counts only the elements where it is True.
      confidence: name of a field of the batch with a weight for each example, or for the leading axes of the elements;
        not negative. An element counts as much as its weight: 0.5 is half an example.
      **bind: for a parameter of `fn`, a string names the field to read in place of the one it is named after; anything
        else is a constant.

    Raises:
      ValueError: where `bind` or `temperature` is for a parameter that `fn` does not have.

    Examples:
      >>> from jax_rele import losses
      >>> coarse = losses.term(losses.cross_entropy, weight=0.5, labels="coarse_labels", label_smoothing=0.1)
    """
    parameters = inspect.signature(fn).parameters
    extra_names = [*bind, *(["temperature"] if temperature is not None else [])]
    unknown = [name for name in extra_names if name not in parameters]
    if unknown:
        raise ValueError(f"{_name(fn)} has no parameter {unknown[0]}; its parameters are {', '.join(parameters)}")
    return Term(fn, weight, temperature, where, confidence, bind)


def combine(**terms: Term) -> Callable[..., tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]]:
    r"""Joins named terms into one loss.

    With :math:`e_k` the elements of term :math:`k`, :math:`m_k` its mask and :math:`c_k` its confidence, 1 where it
    names none:

    .. math::
      L = \sum_k w_k(\mathrm{step})\, \frac{\sum m_k c_k e_k}{\sum m_k c_k}

    A term of which nothing counts adds 0.

    *Arguments by name.* Each parameter of a term's function is given the field of its name: of the model's outputs if
    they have it and it is not None, or else of the batch. A parameter with a default keeps it where neither has the
    field. Exceptions are `temperature`, which the term gives, and `where`.

    *Masks.* `where` is given the conjunction of these masks, as far as they exist, broadcast to the elements:
    `batch["mask"]`, [B], False in padding; `batch["FIELD_mask"]` for every batch field FIELD that the term reads; and
    the batch field that the term names in `where`. A mask with fewer axes than the elements covers their leading axes.
    A mask that the function reads as an argument, as `attention_to_evidence` does, is left to the function. The
    confidence of a masked element is never read.
    A function without a `where` parameter is masked from outside: that drops the masked values, yet the gradient of a
    masked NaN is NaN, which a function can avoid only if it knows the mask.

    *Exact means.* Every term is reported as (sum, count) before weighting, :math:`\sum m c e` and :math:`\sum m c`,
    which add up over micro-batches and steps (`add_totals`, `means`). The scalar divides by the count of its own batch.
    To take gradients in micro-batches, give each of them the `counts` of the whole batch: then scalars and gradients
    sum to those of the whole batch. Counts depend on the batch and on the shapes of the outputs alone, so under
    `jax.jit` they cost no model: pass outputs of zeros and keep the counts. For the losses that compare rows (ranking,
    contrast) all rows to be compared must lie in one micro-batch.

    A term with the constant weight 0 is computed and reported and adds nothing to the scalar, not even its NaN.

    Args:
      **terms: the terms by name, made by `term`.

    Returns:
      `loss(outputs, batch, step=0, counts=None) -> (scalar, {name: (sum, count)})`, all float32 scalars. `outputs` is a
      dataclass (`StudentOutputs`, `DecoderOutputs`, or your own), `batch` a mapping from field names to arrays, `step`
      the argument of the schedules, `counts` the denominators by term name, where None takes the batch's own. It raises
      ValueError at trace time for a field that is missing, a mask that does not fit, and elements that are reduced.

    Raises:
      ValueError: without terms, or where one is not a `Term`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax_rele import losses
      >>> from jax_rele.types import StudentOutputs
      >>> def gain_error(logits, label_probs, gains):  # a term of your own
      ...     return ((jax.nn.softmax(logits) - label_probs) @ gains) ** 2
      >>> loss = losses.combine(
      ...     label=losses.term(losses.cross_entropy),
      ...     gain=losses.term(gain_error, weight=optax.linear_schedule(0.0, 1.0, 500), gains=jnp.array([1.0, 0.0])),
      ... )
      >>> batch = {
      ...     "labels": jnp.array([0, 1]),
      ...     "label_probs": jnp.array([[1.0, 0.0], [0.5, 0.5]]),
      ...     "mask": jnp.array([True, False]),
      ... }
      >>> scalar, totals = loss(StudentOutputs(logits=jnp.zeros((2, 2))), batch, step=250)
      >>> print(f"{scalar:.3f}", losses.means(totals)["gain"])
      0.818 0.25
    """
    if not terms:
        raise ValueError("combine needs at least one term")
    for name, value in terms.items():
        if not isinstance(value, Term):
            raise ValueError(f"{name} must be a term: write {name}=losses.term(...), got {value!r}")

    def loss(outputs, batch, step=0, counts=None):
        scalar, totals = jnp.float32(0.0), {}
        for name, value in terms.items():
            total, count = _total(name, value, outputs, batch, step)
            totals[name] = total, count
            if counts is not None and name not in counts:
                raise ValueError(f"counts has no term {name!r}; it has: {_listed(counts)}")
            if isinstance(value.weight, int | float) and value.weight == 0:
                continue
            denominator = count if counts is None else counts[name]
            scalar += _at(value.weight, step) * total / jnp.where(denominator > 0, denominator, 1.0)
        return scalar, totals

    return loss


def add_totals(a: T, b: T) -> T:
    """Adds two {name: (sum, count)} of the same terms. The sum of many is exact longer in numpy's float64.

    Examples:
      >>> from jax_rele import losses
      >>> losses.add_totals({"label": (3.0, 2.0)}, {"label": (1.0, 2.0)})
      {'label': (4.0, 4.0)}
    """
    return jax.tree.map(operator.add, a, b)


def means(totals: Totals) -> dict[str, float]:
    """The mean of every term, for a log: sum / count, and NaN where nothing was counted.

    Examples:
      >>> from jax_rele import losses
      >>> losses.means({"label": (3.0, 2.0), "verdict": (0.0, 0.0)})
      {'label': 1.5, 'verdict': nan}
    """
    return {name: float(total) / float(count) if count else math.nan for name, (total, count) in totals.items()}


def _total(name, value, outputs, batch, step):
    """Sum and count of one term's elements."""
    arguments, fields = _arguments(name, value, outputs, batch)
    parameters = inspect.signature(value.fn).parameters
    if value.temperature is not None:
        arguments["temperature"] = _at(value.temperature, step)
    shape = jax.eval_shape(lambda: value.fn(**arguments)).shape
    if not shape:
        raise ValueError(f"term {name!r}: {_name(value.fn)} reduces to a scalar; a loss returns one number per example")
    mask = jnp.ones(shape, bool)
    for field in _masks(name, value, batch, fields):
        mask &= _extended(name, "mask", field, batch[field], shape)
    if "where" in parameters:
        arguments["where"] = mask
    elements = value.fn(**arguments)
    if value.confidence is None:
        total = jnp.where(mask, elements, 0.0).sum(dtype=jnp.float32)
        return total, mask.sum(dtype=jnp.int32).astype(jnp.float32)
    confidence = _extended(name, "confidence", value.confidence, batch[value.confidence], shape)
    confidence = jnp.where(mask, confidence.astype(jnp.float32), 0.0)
    return jnp.where(mask, confidence * elements, 0.0).sum(dtype=jnp.float32), confidence.sum()


def _arguments(name, value, outputs, batch):
    """The arguments of a term's function, and the batch fields that they come from."""
    heads = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    arguments, fields = {}, []
    for parameter in inspect.signature(value.fn).parameters.values():
        argument = parameter.name
        if argument in ("where", "temperature") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        source = value.bind.get(argument, argument)
        if not isinstance(source, str):
            arguments[argument] = source
        elif heads.get(source) is not None:
            arguments[argument] = heads[source]
        elif source in batch:
            arguments[argument] = batch[source]
            fields.append(source)
        elif argument in value.bind or parameter.default is parameter.empty:
            raise ValueError(_missing(name, value.fn, argument, source, outputs, heads, batch))
    return arguments, fields


def _missing(name, fn, argument, source, outputs, heads, batch):
    model = type(outputs).__name__
    if source in heads:
        remedy = f"the model has no head for it ({model}.{source} is None): give it one or drop the term"
    else:
        remedy = f"no head of the model and no signal in the batch has this name: add the signal or bind {argument}=..."
    offered = [head for head, array in heads.items() if array is not None]
    return (
        f"term {name!r}: the argument {argument} of {_name(fn)} needs the field {source!r}; {remedy}. "
        f"{model} has: {_listed(offered)}. The batch has: {_listed(batch)}."
    )


def _masks(name, value, batch, fields):
    """Names of the batch fields that mask a term."""
    for role, field in (("where", value.where), ("confidence", value.confidence)):
        if field is not None and field not in batch:
            raise ValueError(f"term {name!r}: {role}={field!r} is not in the batch, which has: {_listed(batch)}")
    read = [*fields, *([] if value.confidence is None else [value.confidence])]
    # A function that takes a mask as an argument applies it itself: its elements have another shape.
    masks = [mask for mask in ("mask", *(f"{field}_mask" for field in read)) if mask in batch and mask not in fields]
    return masks if value.where is None else [*masks, value.where]


def _extended(name, role, field, array, shape):
    """A mask or weights of the leading axes, broadcast to `shape`."""
    array = jnp.asarray(array)
    if role == "mask" and array.dtype != bool:
        raise ValueError(f"term {name!r}: the mask {field!r} must hold booleans, got {array.dtype}")
    sizes = zip(array.shape, shape[: array.ndim])
    if array.ndim > len(shape) or any(size not in (1, expected) for size, expected in sizes):
        raise ValueError(f"term {name!r}: the {role} {field!r} has shape {array.shape}, the elements have {shape}")
    return jnp.broadcast_to(jnp.expand_dims(array, tuple(range(array.ndim, len(shape)))), shape)


def _at(number_or_schedule, step):
    return number_or_schedule(step) if callable(number_or_schedule) else number_or_schedule


def _name(fn):
    return getattr(fn, "__name__", repr(fn))


def _listed(names):
    return ", ".join(sorted(names)) or "nothing"

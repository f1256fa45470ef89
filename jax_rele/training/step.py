"""Pure training steps. `jax_rele.training.sharding` compiles them with sharding and donation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jax_rele.errors import UserError
from jax_rele.training.sharding import check_rows
from jax_rele.training.state import Apply, Batch, Metrics, Step, TrainState
from jax_rele.types import PyTree

Loss = Callable[..., tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]]
"""`loss(outputs, batch, step, counts) -> (scalar, {term: (sum, count)})`, as made by `jax_rele.losses.combine`."""


def make_train_step(
    apply: Apply,
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    group_size: int = 1,
    term_gradients: bool = False,
    extra_metrics: Callable[[PyTree, Batch], dict[str, tuple[jax.Array, jax.Array]]] | None = None,
) -> Step:
    """Makes `step(state, batch) -> (state, metrics)`.

    With `micro_batches` the rows are computed in that many parts, one after the other, and the activations of one part
    are in memory at a time. Each part's loss is divided by the counts of the whole batch and gradients are summed in
    float32, so loss, gradients, terms and update are those of the whole batch, however its masks fall (dropout draws
    other numbers). Terms that compare the rows of a query, as the ranking losses do, need all of them in one part.

    Args:
      apply: `Module.apply` of a model that takes `deterministic` and the rng `dropout`.
      loss: the objective.
      tx: the optimizer.
      micro_batches: parts of a batch.
      group_size: consecutive rows per group (see `data.batches.loader.flatten_groups`); a group is never split.
      term_gradients: also report the gradient norm of each term's mean, before its weight: one more backward pass a
        term, for diagnosis.
      extra_metrics: `(outputs, batch) -> {name: (sum, count)}` of other figures of the outputs to log, e.g. the
        variance of the scores; without gradient.

    Returns:
      A pure function. Metrics are `loss`, `grad_norm`, `terms`, a dict of (sum, count) pairs, `extra`, the same of
      `extra_metrics`, and with `term_gradients` also `term_gradients`, a dict of norms. When it is traced it
      raises UserError for rows that do not divide into the parts, or a part's over the devices of the mesh, and
      ValueError for groups (a batch with `segments`) without a `group_size`.

    Raises:
      ValueError: `term_gradients` with micro-batches.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(state.seed), state.step)

        def objective(trainable, batch, rng, counts=None):
            variables = {**state.frozen, **trainable}
            outputs = apply(variables, **batch["inputs"], deterministic=False, rngs={"dropout": rng})
            value, terms = loss(outputs, batch, state.step, **({} if counts is None else {"counts": counts}))
            return value, (terms, {} if extra_metrics is None else extra_metrics(outputs, batch))

        differentiate = jax.value_and_grad(objective, has_aux=True)
        if micro_batches == 1:
            (value, (terms, extra)), grads = differentiate(state.trainable, batch, rng)
        else:
            parts = _split(batch, micro_batches, group_size)
            counts = _counts(apply, loss, state, batch)
            (value, (terms, extra)), grads = _accumulate(differentiate, state.trainable, parts, rng, counts)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "terms": terms, "extra": extra}
        if term_gradients:
            metrics["term_gradients"] = _term_gradients(lambda x: objective(x, batch, rng)[1][0], state.trainable)
        return dataclasses.replace(state, step=state.step + 1, trainable=trainable, opt_state=opt_state), metrics

    if term_gradients and micro_batches > 1:
        raise ValueError("term_gradients: each term's gradient is taken over a whole batch; set micro_batches to 1")
    return step


def _term_gradients(totals: Callable[[PyTree], PyTree], trainable: PyTree) -> dict[str, jax.Array]:
    """The norm of the gradient of each term's mean; one forward pass and one backward pass a term."""

    def means(trainable):
        return {name: total / jnp.where(count > 0, count, 1.0) for name, (total, count) in totals(trainable).items()}

    values, pull = jax.vjp(means, trainable)
    zeros = {name: jnp.zeros_like(value) for name, value in values.items()}
    return {name: optax.tree.norm(pull({**zeros, name: jnp.ones_like(values[name])})[0]) for name in values}


def _split(batch: Batch, micro_batches: int, group_size: int) -> Batch:
    """[B, ...] -> [micro_batches, B / micro_batches, ...]. Every part takes rows from everywhere in the batch, so that
    each device splits the rows that it has. Arrays of fewer rows are those of packed inputs: one a device and part."""
    rows = max(len(x) for x in jax.tree.leaves(batch))
    if "segments" in batch and group_size == 1:
        raise ValueError(
            "micro_batches: the batch holds groups of rows (`segments`); give make_train_step their group_size"
        )
    if rows % (micro_batches * group_size):
        groups = f" in groups of {group_size}" if group_size > 1 else ""
        raise UserError(
            f"optimization.micro_batches: the {rows} rows of a step{groups} do not divide into {micro_batches} parts; "
            "change it or batch_size"
        )
    mesh = jax.sharding.get_abstract_mesh()
    check_rows(
        rows // micro_batches, mesh, "optimization.micro_batches", "lower it or raise batch_size", what="rows of a part"
    )

    def split(x):
        x = x.reshape(-1, micro_batches, group_size if len(x) == rows else 1, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(micro_batches, -1, *x.shape[3:])
        return nn.with_logical_constraint(x, (None, "batch", *[None] * (x.ndim - 2)))

    return jax.tree.map(split, batch)


def _counts(apply, loss, state, batch):
    """The count of every term over the whole batch. It takes the shapes of the outputs alone: the model is not run."""

    def outputs():
        return apply(state.variables, **batch["inputs"], deterministic=True)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(outputs))
    _, terms = loss(zeros, batch, state.step)
    return {name: count for name, (_, count) in terms.items()}


def _accumulate(differentiate, trainable, parts, rng, counts):
    """The sums over the parts of ((loss, terms), gradients)."""

    def add(sums, numbered):
        number, part = numbered
        results = differentiate(trainable, part, jax.random.fold_in(rng, number), counts)
        return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), sums, results), None

    numbers = jnp.arange(len(jax.tree.leaves(parts)[0]))
    shapes = jax.eval_shape(lambda: differentiate(trainable, jax.tree.map(lambda x: x[0], parts), rng, counts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    (sums, grads), _ = jax.lax.scan(add, zeros, (numbers, parts))
    return sums, jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, trainable)

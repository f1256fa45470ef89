"""The teacher's training on preferences: log-probabilities of whole rationales, and losses on them as terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_rele import losses
from jax_rele.losses.combine import Term
from jax_rele.models import Decoder
from jax_rele.teacher.language_model import CHUNK, MakeObjective, Objective
from jax_rele.training import local_row_indices, shard_batch, use
from jax_rele.training.sharding import batch_shards
from jax_rele.training.state import Apply, Batch
from jax_rele.types import Params, PyTree

TERM = "preference"
"""The name of the preference loss among the terms."""


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class PreferenceOutputs:
    """The two texts of each of the P preferences of a row.

    Attributes:
      chosen_log_probs, rejected_log_probs: [B, P] float32, sums over the tokens of the completions, in nats.
      chosen_lengths, rejected_lengths: [B, P] int32, their tokens; 0 where a row has fewer preferences.
    """

    chosen_log_probs: jax.Array
    rejected_log_probs: jax.Array
    chosen_lengths: jax.Array
    rejected_lengths: jax.Array


def preference_apply(model: Decoder, *, chunk_size: int = CHUNK) -> Apply:
    """A function like `model.apply` from the `inputs` of `preference_rows` to `PreferenceOutputs`.

    Dropout is off in training too, as the reference has none: with it the log-ratios would be noise.

    Args:
      model: the decoder.
      chunk_size: positions, counted over all rows, whose logits exist at a time.
    """

    def apply(variables, tokens, segments, positions, targets, targets_mask, preferences, **_):
        outputs: Any = model.apply(variables, tokens, segments=segments, positions=positions, deterministic=True)
        log_probs, lengths = losses.sequence_log_probs(
            outputs.hidden,
            outputs.output_embedding,
            targets,
            segments,
            targets_mask,
            sequences=2 * preferences.shape[1],
            chunk_size=chunk_size,
        )
        return PreferenceOutputs(log_probs[:, ::2], log_probs[:, 1::2], lengths[:, ::2], lengths[:, 1::2])

    return apply


def preference_terms(loss: Callable[..., jax.Array], *, sft_weight: float = 0.0, **options: float) -> dict[str, Term]:
    """Terms for `losses.combine` over `PreferenceOutputs`, with one element for each preference.

    Means are over preferences, however they are packed and divided over micro-batches, devices and hosts.

    Args:
      loss: one of `losses.dpo`, `dpo_hinge`, `ipo`, `orpo` and `simpo`, or a function with parameters of their names.
      sft_weight: weight of the chosen text's mean cross-entropy; 0 for none.
      **options: of the loss, such as `beta`.

    Returns:
      The term of the loss, `preference`, which raises ValueError at trace time where it needs references that the
      batch does not have; and `chosen_cross_entropy`.
    """
    parameters = inspect.signature(loss).parameters

    def preference(
        chosen_log_probs,
        rejected_log_probs,
        chosen_lengths,
        rejected_lengths,
        reference_chosen_log_probs=None,
        reference_rejected_log_probs=None,
        where=None,
    ):
        arrays = {
            "chosen_log_probs": chosen_log_probs,
            "rejected_log_probs": rejected_log_probs,
            "chosen_lengths": chosen_lengths,
            "rejected_lengths": rejected_lengths,
            "reference_chosen_log_probs": reference_chosen_log_probs,
            "reference_rejected_log_probs": reference_rejected_log_probs,
        }
        columns = {name: array for name, array in arrays.items() if name in parameters}
        missing = [name for name, array in columns.items() if array is None]
        if missing:
            raise ValueError(f"{loss.__name__} needs {missing[0]}, which the batch does not have: compute them first")
        mask = jnp.ones(jnp.shape(chosen_log_probs), bool) if where is None else where
        # The loss knows no rows; under `vmap` every device works on its own.
        return jax.vmap(lambda columns, mask: loss(**columns, where=mask, **options))(columns, mask)

    terms = {TERM: losses.term(preference, where="preferences_mask")}
    if sft_weight:
        terms["chosen_cross_entropy"] = losses.term(_chosen_cross_entropy, weight=sft_weight, where="preferences_mask")
    return terms


def _chosen_cross_entropy(chosen_log_probs, chosen_lengths):
    """[B, P]: the mean over the chosen text's tokens (Pang et al., arXiv 2404.19733, equation 2)."""
    return -chosen_log_probs / jnp.maximum(chosen_lengths, 1)


def preference_metrics(outputs: PreferenceOutputs, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Figures to log of a batch that has references, as (sum, count) over its preferences.

    With the log-ratio of a text that of its probability to the reference's: `accuracy`, the fraction where the chosen
    text's is the greater one; `margin`, by how much, in nats; `chosen_log_ratio`, which falls far below 0 where the
    chosen texts are unlearnt too.
    """
    mask = batch["preferences_mask"] & jnp.expand_dims(batch.get("mask", True), -1)
    chosen = outputs.chosen_log_probs - batch["reference_chosen_log_probs"]
    margin = chosen - (outputs.rejected_log_probs - batch["reference_rejected_log_probs"])
    figures = {"accuracy": margin > 0, "margin": margin, "chosen_log_ratio": chosen}
    count = mask.sum(dtype=jnp.int32).astype(jnp.float32)
    return {name: (jnp.where(mask, x, 0.0).sum(dtype=jnp.float32), count) for name, x in figures.items()}


@lru_cache(maxsize=8)
def preference_objective(
    loss: str, beta: float | None = None, label_smoothing: float = 0.0, sft_weight: float = 0.0
) -> MakeObjective:
    """What the stage `prefer` minimises on rows of preferences; equal arguments give the same function.

    Args:
      loss: the name of a loss that `preference_terms` takes.
      beta: of the loss; None for its default.
      label_smoothing: of the loss; 0 for one that has none.
      sft_weight: see `preference_terms`.
    """
    options = {} if beta is None else {"beta": beta}
    if label_smoothing:
        options["label_smoothing"] = label_smoothing
    terms = preference_terms(getattr(losses, loss), sft_weight=sft_weight, **options)

    def make(model: Decoder, mesh: jax.sharding.Mesh) -> Objective:
        return Objective(
            preference_apply(model, chunk_size=CHUNK * batch_shards(mesh)),
            losses.combine(**terms),
            preference_metrics,
        )

    return make


def compute_log_probs(
    model: Decoder, variables: Params, rows: Mapping[str, PyTree], count: int, batch_size: int, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """The log-probabilities of the texts of all preferences, the same on every process.

    Args:
      model, variables: the decoder and its parameters, on the mesh.
      rows: all rows, as `preference_rows` makes them, the same on every process.
      count: the number of preferences.
      batch_size: rows of a forward pass over all devices.
      mesh: the devices.

    Returns:
      [count, 2] float32, of the chosen and the rejected text; NaN for a preference that no row has.
    """
    apply = preference_apply(model, chunk_size=CHUNK * batch_shards(mesh))

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def log_probs(variables, inputs):
        outputs = apply(variables, **inputs)
        return jnp.stack([outputs.chosen_log_probs, outputs.rejected_log_probs], -1)

    numbers, indices = rows["preferences"], local_row_indices(mesh, batch_size)
    results = np.full((count, 2), np.nan, np.float32)
    with use(mesh):
        for start in range(0, len(numbers), batch_size):
            local = (start + indices) % len(numbers)
            inputs = jax.tree.map(lambda x, local=local: x[local], rows["inputs"])
            batch = np.asarray(jax.device_get(log_probs(variables, shard_batch(inputs, mesh))))
            of_batch = numbers[(start + np.arange(batch_size)) % len(numbers)]
            results[of_batch[of_batch >= 0]] = batch[of_batch >= 0]
    return results

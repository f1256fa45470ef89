"""The teacher's training on rewards of its own samples: log-probabilities of tokens, and the objective."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_rele import losses
from jax_rele.losses.combine import Term
from jax_rele.losses.policy import FAR
from jax_rele.models import Decoder
from jax_rele.teacher.language_model import CHUNK, MakeObjective, Objective
from jax_rele.training import local_row_indices, shard_batch, use
from jax_rele.training.sharding import batch_shards
from jax_rele.training.state import Apply
from jax_rele.types import Params, PyTree


def policy_term(*, clip: float, kl_weight: float, chunk_size: int) -> Term:
    """A term for `losses.combine` over the decoder's outputs, with one element for each token; see `losses.grpo`."""

    def policy(
        hidden, output_embedding, targets, old_log_probs, reference_log_probs, advantages, where=None
    ) -> jax.Array:
        elements = losses.next_token_cross_entropy(hidden, output_embedding, targets, where, chunk_size=chunk_size)
        others = old_log_probs, reference_log_probs, advantages
        return losses.grpo(-elements, *others, where, clip=clip, kl_weight=kl_weight)

    return losses.term(policy)


@lru_cache(maxsize=8)
def policy_objective(clip: float, kl_weight: float) -> MakeObjective:
    """What the stage `reinforce` minimises on rows of samples; equal arguments give the same function."""

    def make(model: Decoder, mesh: jax.sharding.Mesh) -> Objective:
        term = policy_term(clip=clip, kl_weight=kl_weight, chunk_size=CHUNK * batch_shards(mesh))
        return Objective(without_dropout(model), losses.combine(policy=term))

    return make


def without_dropout(model: Decoder) -> Apply:
    """`model.apply` without dropout in training too: with it the ratios to the old model would be noise."""

    def apply(variables, tokens, segments, positions, **_):
        return model.apply(variables, tokens, segments=segments, positions=positions, deterministic=True)

    return apply


def divergence(log_probs: np.ndarray, reference_log_probs: np.ndarray, mask: np.ndarray) -> tuple[float, int]:
    """An estimate of the divergence from the reference of the model that drew the tokens, as in `losses.grpo`.

    Args:
      log_probs, reference_log_probs: [rows, length] of the drawn tokens, in nats.
      mask: [rows, length] bool, the tokens that count.

    Returns:
      The sum over these tokens, in nats and never negative, and how many they are.
    """
    apart = np.clip((reference_log_probs - log_probs)[mask].astype(np.float64), -FAR, FAR)
    return float((np.expm1(apart) - apart).sum()), int(mask.sum())


@lru_cache(maxsize=4)
def _log_probs(model: Decoder, mesh: jax.sharding.Mesh):
    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def log_probs(variables, batch):
        outputs = without_dropout(model)(variables, **batch["inputs"])
        return -losses.next_token_cross_entropy(
            outputs.hidden,
            outputs.output_embedding,
            batch["targets"],
            batch["targets_mask"],
            chunk_size=CHUNK * batch_shards(mesh),
        )

    return log_probs


def token_log_probs(
    model: Decoder, variables: Params, rows: Mapping[str, PyTree], batch_size: int, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """The log-probability of each target token that counts, the same on every process.

    Args:
      model, variables: the decoder and its parameters, on the mesh.
      rows: all rows, as `policy_rows` makes them, the same on every process.
      batch_size: rows of a forward pass over all devices.
      mesh: the devices.

    Returns:
      [rows, length] float32, in nats; 0 where a token does not count.
    """
    count, indices = len(rows["targets"]), local_row_indices(mesh, batch_size)
    read = {name: rows[name] for name in ("inputs", "targets", "targets_mask")}
    results, log_probs = np.zeros(rows["targets"].shape, np.float32), _log_probs(model, mesh)
    with use(mesh):
        for start in range(0, count, batch_size):
            local = (start + indices) % count
            batch = shard_batch(jax.tree.map(lambda x, local=local: x[local], read), mesh)
            of_batch = np.asarray(jax.device_get(log_probs(variables, batch)))
            stop = min(start + batch_size, count)
            results[start:stop] = of_batch[: stop - start]
    return results

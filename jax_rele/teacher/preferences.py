"""Losses on preferences as terms of a training of the teacher, over rows that hold several preferences each."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax

from jax_rele import losses
from jax_rele.losses.combine import Term


def preference_term(loss: Callable[..., jax.Array], *, chunk_size: int = 512, **options: float) -> Term:
    """A term for `losses.combine` with one element for each preference of `preference_rows`.

    The mean is over preferences, however they are packed and shared by micro-batches, devices and hosts. The term
    raises ValueError at trace time where the loss needs references that the batch does not have.

    Args:
      loss: one of `losses.dpo`, `dpo_hinge`, `ipo`, `orpo` and `simpo`, or a function with parameters of their names.
      chunk_size: positions, counted over all rows, whose logits exist at a time.
      **options: of the loss, such as `beta`.
    """
    parameters = inspect.signature(loss).parameters

    def preference(
        hidden,
        output_embedding,
        targets,
        targets_mask,
        sequence_ids,
        preferences,
        reference_chosen_log_probs=None,
        reference_rejected_log_probs=None,
        where=None,
    ):
        log_probs, lengths = losses.sequence_log_probs(
            hidden,
            output_embedding,
            targets,
            sequence_ids,
            targets_mask,
            sequences=2 * preferences.shape[1],
            chunk_size=chunk_size,
        )
        arrays = {
            "chosen_log_probs": log_probs[:, ::2],
            "rejected_log_probs": log_probs[:, 1::2],
            "chosen_lengths": lengths[:, ::2],
            "rejected_lengths": lengths[:, 1::2],
            "reference_chosen_log_probs": reference_chosen_log_probs,
            "reference_rejected_log_probs": reference_rejected_log_probs,
        }
        columns = {name: array for name, array in arrays.items() if name in parameters}
        missing = [name for name, array in columns.items() if array is None]
        if missing:
            raise ValueError(f"{loss.__name__} needs {missing[0]}, which the batch does not have: compute them first")
        mask = preferences >= 0 if where is None else where
        # The loss knows no rows; under `vmap` every device works on its own.
        return jax.vmap(lambda columns, mask: loss(**columns, where=mask, **options))(columns, mask)

    return losses.term(preference)

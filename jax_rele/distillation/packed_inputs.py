"""Which inputs of the students are packed in training, by the lengths of their rows."""

from __future__ import annotations

from collections.abc import Collection

import jax

from jax_rele import losses
from jax_rele.data.batches.loader import Groups, bucket_length, ragged_columns
from jax_rele.data.batches.packed_rows import ColumnPath, PackedInputs, Parts, choose_rows, row_length
from jax_rele.data.batches.sampler import Order
from jax_rele.distillation.hyperparameters import Terms
from jax_rele.training.sharding import batch_shards

SAMPLED = 64
"""Batches whose lengths decide how many packed rows there are."""


def packable(terms: Terms, names: Collection[str]) -> set[str]:
    """Those of the students whose terms do not read the attention of a row's first token, which needs padded rows."""
    return {name for name in names if "attention" not in losses.needs(terms[name])[0]}


def choose_packing(
    groups: Groups,
    order: Order,
    pack_to: int,
    micro_batches: int,
    mesh: jax.sharding.Mesh,
    left_out: Collection[ColumnPath],
) -> PackedInputs | None:
    """How the inputs of these batches are packed, from the lengths of some of them.

    Args:
      groups, order: the batches.
      pack_to: tokens of a packed row.
      micro_batches: parts of a batch that are computed one after the other.
      mesh: the devices.
      left_out: beginnings of the paths of columns that are not packed.

    Returns:
      None where nothing is packed: it would not save enough, or a device's rows do not divide into micro batches.
    """
    parts = Parts(batch_shards(mesh), micro_batches, groups.members.shape[1])
    if not parts.fits(order.width * groups.members.shape[1]):
        return None
    by_bucket: dict[int, list] = {}
    for step in range(SAMPLED):
        numbers = order.batch(step)
        by_bucket.setdefault(groups.bucket(numbers), []).append(numbers)
    rows: dict[ColumnPath, list[int]] = {}
    for path, column in ragged_columns(groups.columns).items():
        if any(path[: len(beginning)] == beginning for beginning in left_out):
            continue
        rows[path] = [
            choose_rows(
                [groups.row_lengths(path, numbers) for numbers in by_bucket[bucket]],
                bucket_length(column.length, bucket, groups.lengths),
                row_length(column.length, pack_to),
                parts,
            )
            if bucket in by_bucket
            else 0
            for bucket in range(1, groups.lengths + 1)
        ]
    return PackedInputs(parts, pack_to, rows) if any(map(any, rows.values())) else None

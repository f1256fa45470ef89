"""The arrays of a training batch: one table for the dataset, the losses and `plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import jax
import numpy as np

from jax_rele import losses
from jax_rele.losses.combine import Term
from jax_rele.students.base import InputSpec, StudentModel, TokenArray
from jax_rele.types import VERDICTS, PyTree

Fields = dict[str, PyTree]
"""A nested dict of `TokenArray` and `jax.ShapeDtypeStruct`: the shape of each array of a batch, without its rows."""

AUGMENTED = {"augmented_representation", "augmented_logits"}
"""Outputs for which the student has to read each pair's rationale too."""

OFFERED = ("labels", "label_probs", "verdict_probs", "evidence_tags", "rationale_embedding", "confidence", "segments")
"""The fields that a term can read; a FIELD_mask beside it says where it is present."""

KNOWN = frozenset({*OFFERED, *(f"{name}_mask" for name in OFFERED), "mask", "rationale_mask"})
"""Every name that a term can read beside the student's outputs."""


def batch_fields(model: StudentModel, spec: InputSpec, terms: Collection[Mapping[str, Term]]) -> Fields:
    """What a student's batch holds of each pair where it is trained by these sets of terms.

    Args:
      model: the student.
      spec: how pairs become tokens.
      terms: the objectives; the batch has what any of them reads.

    Returns:
      The fields: a `TokenArray` for a row of tokens.
    """
    outputs, fields = (set().union(*parts) for parts in zip((set(), set()), *map(losses.needs, terms)))
    array = jax.ShapeDtypeStruct
    inputs = model.batch_spec(spec)
    batch: Fields = {
        "inputs": dict(inputs),
        "labels": array((), np.int32),
        "labels_mask": array((), bool),
        "label_probs": array((model.labels,), np.float32),
        "verdict_probs": array((model.dimensions, len(VERDICTS)), np.float32),
        "verdict_probs_mask": array((model.dimensions,), bool),
        "confidence": array((), np.float32),
    }
    if AUGMENTED & outputs:
        batch["inputs"]["augmented"] = {
            name: dataclasses.replace(row, length=row.length + spec.rationale_length) for name, row in inputs.items()
        }
        batch["rationale_mask"] = array((), bool)
    if "evidence_tags" in fields:
        length = inputs["tokens"].length
        batch |= {"evidence_tags": TokenArray(length, np.int32), "evidence_tags_mask": TokenArray(length, bool)}
    if "rationale_embedding" in fields:
        width = getattr(model, "latent_width", 0) or model.encoder.width
        batch |= {"rationale_embedding": array((width,), np.float32), "rationale_embedding_mask": array((), bool)}
    return batch

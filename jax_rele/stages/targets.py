"""What the losses of distillation read of the pairs: labels, and the teacher's signals as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from transformers import PreTrainedTokenizerBase

from jax_rele import losses
from jax_rele.config import Config
from jax_rele.data.augmented import encode_augmented
from jax_rele.data.encoding import encode_evidence
from jax_rele.data.loader import group_by_query
from jax_rele.errors import UserError
from jax_rele.inference import embed_rationales
from jax_rele.losses.combine import Term
from jax_rele.models import CrossEncoder
from jax_rele.rationale import parse, render
from jax_rele.stages import students
from jax_rele.training import make_local_mesh
from jax_rele.types import Pair, Signals

AUGMENTED = {"augmented_representation", "augmented_logits"}
"""Outputs for which the student has to read each pair's rationale too."""

OFFERED = ("labels", "label_probs", "verdict_probs", "evidence_tags", "rationale_embedding", "confidence", "segments")
"""The fields that a term can read; a FIELD_mask beside it says where it is there."""


def check_needs(config: Config, student: str, recipe: str, terms: Mapping[str, Term], heads: Collection[str]) -> None:
    """Raises UserError for terms that read an output that the student has not, or a field that is not offered."""
    outputs, fields = losses.needs(terms)
    if missing := sorted(outputs - set(heads)):
        mend = (
            "give student.cross_encoder.latent_width a number"
            if missing[0] == "latent" and student == "cross_encoder"
            else f"take {student} out of distill.students or {recipe} out of distill.recipes"
        )
        raise UserError(f"distill.recipes: {recipe} needs the head {missing[0]!r}, which {student} has not; {mend}")
    known = {*OFFERED, *(f"{name}_mask" for name in OFFERED), "mask", "rationale_mask"}
    if unknown := sorted(fields - known):
        raise UserError(
            f"distill.recipes: {recipe} reads the field {unknown[0]!r}, which is neither a head nor a signal; there "
            f"are the heads {', '.join(sorted(heads))} and the signals {', '.join(OFFERED)}"
        )


def rows(
    config: Config,
    name: str,
    recipe: str,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    terms: Mapping[str, Term],
    pairs: Sequence[Pair],
    signals: Signals,
) -> dict[str, Any]:
    """A row per pair of everything that a student's terms read, and `inputs`, its keyword arguments.

    Raises:
      UserError: signals that a term learns from are missing throughout, or do not fit the student's heads.
    """
    outputs, fields = losses.needs(terms)
    ordered = in_order(pairs, signals)
    made = targets(config, pairs, ordered)
    inputs = students.student_inputs(config, model, tokenizer, pairs)
    if AUGMENTED & outputs:
        # The label is what is to be predicted, so it is not read.
        texts = [_without_label(text) for text in ordered.rationales]
        lengths = config.student.query_length, config.student.item_length, config.student.rationale_length
        inputs["augmented"] = encode_augmented(tokenizer, pairs, texts, config.data.item_fields, *lengths)
        made["rationale_mask"] = np.array([bool(text) for text in texts])
    if "evidence_tags" in fields:
        if not isinstance(model, CrossEncoder):
            raise UserError(f"distill: {name} reads no pair token by token, so it has no evidence_tags to learn from")
        dimensions, lengths = config.rationale.dimensions, (config.student.query_length, config.student.item_length)
        made |= encode_evidence(tokenizer, pairs, ordered.evidence, dimensions, config.data.item_fields, *lengths)
        # Without a rationale there is no evidence to learn, not even that there is none.
        made["evidence_tags_mask"] &= np.array([bool(text) for text in ordered.rationales])[:, None]
    if "rationale_embedding" in fields:
        made |= _rationale_embeddings(config, model, tokenizer, ordered)
    for field, mask, what in (
        ("verdict_probs", "verdict_probs_mask", "verdicts"),
        ("evidence_tags", "evidence_tags_mask", "evidence"),
        ("rationale_embedding", "rationale_embedding_mask", "rationales"),
        ("rationale_mask", "rationale_mask", "rationales"),
    ):
        if field in fields and not made[mask].any():
            raise UserError(
                f"distill.recipes: {recipe} learns from {what}, and the signals hold none; use label_only, score_kd or "
                "margin_mse, or signals that have them (of our own teacher: teacher.order other than label_only)"
            )
    return {"inputs": inputs, **made}


def targets(config: Config, pairs: Sequence[Pair], signals: Signals) -> dict[str, np.ndarray]:
    """Labels, label and verdict distributions and the teacher's confidence, a row per pair, and where they are there.

    Args:
      config: the run.
      pairs: N of them.
      signals: of these pairs in this order, see `in_order`.
    """
    schema, verdict_probs = config.labels.schema_, signals.verdict_probs
    return {
        "labels": np.array([0 if pair.label is None else schema.index(pair.label) for pair in pairs], np.int32),
        "labels_mask": np.array([pair.label is not None for pair in pairs]),
        "label_probs": signals.label_probs,
        "verdict_probs": np.nan_to_num(verdict_probs),
        "verdict_probs_mask": ~np.isnan(verdict_probs).any(axis=-1),
        "confidence": np.asarray(signals.confidence, np.float32),
    }


def in_order(pairs: Sequence[Pair], signals: Signals) -> Signals:
    """The signals of these pairs, in their order.

    Raises:
      UserError: a pair has none.
    """
    place = {pair_id: row for row, pair_id in enumerate(signals.pair_ids)}
    missing = [pair.pair_id for pair in pairs if pair.pair_id not in place]
    if missing:
        raise UserError(
            f"the signals lack {len(missing)} of {len(pairs)} pairs, the first is {missing[0]!r}; delete the folder of "
            "the stage score and run it again"
        )
    rows = [place[pair.pair_id] for pair in pairs]

    def take(values):
        if values is None:
            return None
        return values[rows] if isinstance(values, np.ndarray) else tuple(values[row] for row in rows)

    return Signals(**{field.name: take(getattr(signals, field.name)) for field in dataclasses.fields(signals)})


def groups_of(config: Config, pairs: Sequence[Pair], teacher: bool) -> np.ndarray:
    """[groups, size] rows of `pairs` by query, -1 for none; without a teacher, the same less their unlabelled pairs."""
    labelled = np.array([pair.label is not None for pair in pairs])
    groups = group_by_query([pair.query for pair in pairs], labelled, config.distill.group_size)
    if teacher:
        return groups
    groups = np.where((groups >= 0) & labelled[groups], groups, -1)
    groups = np.take_along_axis(groups, np.argsort(groups < 0, axis=1, kind="stable"), axis=1)
    # Groups that are left empty stay, so that every step holds the same labelled pairs whatever the recipe.
    return groups[:, : (groups >= 0).sum(axis=1).max()]


def _without_label(text: str) -> str:
    return render(dataclasses.replace(parse(text), label=None)) if text else ""


def _rationale_embeddings(
    config: Config, model: nn.Module, tokenizer: PreTrainedTokenizerBase, signals: Signals
) -> dict[str, np.ndarray]:
    """The signals' own, or else those of the encoder that the student starts from, before it is trained."""
    embeddings = signals.rationale_embedding
    if embeddings is None:
        start = _start_of_encoder(config, model, tokenizer)
        length = config.student.rationale_length
        embeddings = embed_rationales(model.encoder, start, tokenizer, signals.rationales, length)
    width = config.student.cross_encoder.latent_width
    if embeddings.shape[1] != width:
        raise UserError(
            f"student.cross_encoder.latent_width: the rationale embeddings have {embeddings.shape[1]} numbers, the "
            f"head {width}; set it to {embeddings.shape[1]}"
        )
    return {
        "rationale_embedding": np.nan_to_num(embeddings),
        "rationale_embedding_mask": ~np.isnan(embeddings).any(axis=-1),
    }


def _start_of_encoder(config: Config, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parameters of the encoder that a student starts from; at random, those of seed 0."""
    encoder = students.loaded_encoder(config, model, make_local_mesh(config.mesh))
    if encoder is None:
        init = students.init_student(config, model, tokenizer)
        encoder = jax.jit(lambda rng: nn.unbox(init(rng)["params"]["encoder"]))(jax.random.key(0))
    return encoder

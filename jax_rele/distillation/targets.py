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
from jax_rele.data.batches.loader import group_by_query
from jax_rele.data.tokens.student_inputs import encode_augmented, encode_evidence
from jax_rele.data.tokens.token_cache import Columns, Ragged
from jax_rele.distillation import dataset as training_data
from jax_rele.distillation.dataset import TrainingData
from jax_rele.errors import UserError
from jax_rele.io import hash_folder
from jax_rele.losses.combine import Term
from jax_rele.rationale import parse, render
from jax_rele.runs import artefacts, students
from jax_rele.students import embed_rationales, padded_inputs
from jax_rele.students.base import BatchSpec
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
        fix = (
            "give student.cross_encoder.latent_width a number"
            if missing[0] == "latent" and student == "cross_encoder"
            else f"take {student} out of distill.students or {recipe} out of distill.recipes"
        )
        raise UserError(f"distill.recipes: {recipe} needs the head {missing[0]!r}, which {student} lacks; {fix}")
    known = {*OFFERED, *(f"{name}_mask" for name in OFFERED), "mask", "rationale_mask"}
    if unknown := sorted(fields - known):
        raise UserError(
            f"distill.recipes: {recipe} reads the field {unknown[0]!r}, which is neither a head nor a signal; there "
            f"are the heads {', '.join(sorted(heads))} and the signals {', '.join(OFFERED)}"
        )


def columns(
    config: Config,
    name: str,
    recipe: str,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    terms: Mapping[str, Term],
    data: TrainingData,
) -> Columns:
    """A row per pair of everything that a student's terms read, and `inputs`, its keyword arguments.

    Each kind of them is computed once for all recipes that read it, and looked up by the content of pairs, signals and
    tokenizer.

    Raises:
      UserError: signals that a term learns from are missing throughout, or do not fit the student's heads.
    """
    student, dimensions = config.student, config.rationale.dimensions
    spec = students.input_spec(config)
    read = {
        "tokenizer": hash_folder(data.run_dir / artefacts.STUDENT_TOKENIZER),
        "fields": config.data.item_fields,
        "lengths": [student.query_length, student.item_length],
    }
    arrays = training_data.columns(
        data,
        f"inputs-{name}",
        read,
        lambda pairs, _: {"inputs": padded_inputs(model, tokenizer, pairs, spec)},
        _fill_values("inputs", tokenizer, model.batch_spec(spec)),
    )
    arrays = {"inputs": dict(arrays["inputs"])}
    arrays |= training_data.columns(
        data, "targets", config.labels.names, lambda pairs, signals: targets(config, pairs, signals)
    )
    outputs, fields = losses.needs(terms)
    if AUGMENTED & outputs:
        augmented_columns = training_data.columns(
            data,
            "augmented",
            [read, student.rationale_length],
            lambda pairs, signals: augmented(config, tokenizer, pairs, signals),
            _fill_values("augmented", tokenizer, model.batch_spec(spec)),
        )
        arrays["inputs"]["augmented"], arrays["rationale_mask"] = (
            augmented_columns["augmented"],
            augmented_columns["rationale_mask"],
        )
    if "evidence_tags" in fields:
        if "token_logits" not in model.heads:
            raise UserError(f"distill: {name} reads no pair token by token, so it has no evidence_tags to learn from")
        arrays |= training_data.columns(
            data,
            "evidence",
            [read, dimensions],
            lambda pairs, signals: evidence(config, tokenizer, pairs, signals),
            {"evidence_tags": 0, "evidence_tags_mask": 0},
        )
    if "rationale_embedding" in fields:
        start = None

        def embedded(_, signals):
            nonlocal start
            if signals.rationale_embedding is None and start is None:
                start = _start_of_encoder(config, model, tokenizer)
            return _rationale_embeddings(config, model, start, tokenizer, signals)

        encoder = [student.init, student.random.model_dump(), student.rationale_length, student.dtype]
        if student.init != "random":
            encoder.append(hash_folder(students.encoder_folder(config)))
        arrays |= training_data.columns(data, "embeddings", [read["tokenizer"], encoder], embedded)
        _check_width(config, arrays["rationale_embedding"])
    _check_present(recipe, fields, arrays)
    return arrays


def _fill_values(prefix: str, tokenizer: PreTrainedTokenizerBase, spec: BatchSpec) -> dict[str, int]:
    """What each ragged array is padded with."""
    return {f"{prefix}.{name}": tokenizer.pad_token_id if array.is_token else 0 for name, array in spec.items()}


def _check_present(recipe: str, fields: Collection[str], arrays: Mapping[str, Any]) -> None:
    """Raises UserError where there is nothing at all of what the terms learn from."""
    for field, mask, what in (
        ("verdict_probs", "verdict_probs_mask", "verdicts"),
        ("evidence_tags", "evidence_tags_mask", "evidence"),
        ("rationale_embedding", "rationale_embedding_mask", "rationales"),
        ("rationale_mask", "rationale_mask", "rationales"),
    ):
        if field not in fields:
            continue
        column = arrays[mask]
        if not (len(column.values) if isinstance(column, Ragged) else column.any()):
            raise UserError(
                f"distill.recipes: {recipe} learns from {what}, and the signals hold none; use label_only, score_kd or "
                "margin_mse, or signals that have them (of our own teacher: teacher.order other than label_only)"
            )


def augmented(
    config: Config, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], signals: Signals
) -> dict[str, Any]:
    """The cross-encoder's inputs with each pair's rationale after it, and which pairs have one."""
    # The label is what is to be predicted, so it is not read.
    texts = [_without_label(text) for text in signals.rationales]
    lengths = config.student.query_length, config.student.item_length, config.student.rationale_length
    return {
        "augmented": encode_augmented(tokenizer, pairs, texts, config.data.item_fields, *lengths),
        "rationale_mask": np.array([bool(text) for text in texts]),
    }


def evidence(
    config: Config, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], signals: Signals
) -> dict[str, np.ndarray]:
    """The evidence tags of the cross-encoder's tokens."""
    dimensions, lengths = config.rationale.dimensions, (config.student.query_length, config.student.item_length)
    tags = encode_evidence(tokenizer, pairs, signals.evidence, dimensions, config.data.item_fields, *lengths)
    # Without a rationale there is no evidence to learn, not even that there is none.
    tags["evidence_tags_mask"] &= np.array([bool(text) for text in signals.rationales])[:, None]
    return tags


def targets(config: Config, pairs: Sequence[Pair], signals: Signals) -> dict[str, np.ndarray]:
    """Labels, label and verdict distributions and the teacher's confidence, a row per pair, and where they are there.

    Args:
      config: the run.
      pairs: N of them.
      signals: of these pairs in this order.
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


def groups_of(config: Config, queries: np.ndarray, labelled: np.ndarray, teacher: bool) -> np.ndarray:
    """[groups, size] rows by query, -1 for none; without a teacher, the same less the unlabelled pairs."""
    groups = group_by_query(queries, labelled, config.distill.group_size)
    if teacher:
        return groups
    groups = np.where((groups >= 0) & labelled[groups], groups, -1)
    groups = np.take_along_axis(groups, np.argsort(groups < 0, axis=1, kind="stable"), axis=1)
    # Groups that are left empty stay, so that every step holds the same labelled pairs whatever the recipe.
    return groups[:, : (groups >= 0).sum(axis=1).max()]


def _without_label(text: str) -> str:
    return render(dataclasses.replace(parse(text), label=None)) if text else ""


def _rationale_embeddings(
    config: Config, model: nn.Module, start: Any, tokenizer: PreTrainedTokenizerBase, signals: Signals
) -> dict[str, np.ndarray]:
    """The signals' own, or else those of the encoder that the student starts from, before it is trained."""
    embeddings = signals.rationale_embedding
    if embeddings is None:
        length = config.student.rationale_length
        embeddings = embed_rationales(model.encoder, start, tokenizer, signals.rationales, length)
    return {
        "rationale_embedding": np.nan_to_num(embeddings),
        "rationale_embedding_mask": ~np.isnan(embeddings).any(axis=-1),
    }


def _check_width(config: Config, embeddings: np.ndarray) -> None:
    width = config.student.cross_encoder.latent_width
    if embeddings.shape[1] != width:
        raise UserError(
            f"student.cross_encoder.latent_width: the rationale embeddings have {embeddings.shape[1]} numbers, the "
            f"head {width}; set it to {embeddings.shape[1]}"
        )


def _start_of_encoder(config: Config, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parameters of the encoder that a student starts from; at random, those of seed 0."""
    encoder = students.loaded_encoder(config, model, make_local_mesh(config.mesh))
    if encoder is None:
        init = students.init_student(config, model, tokenizer)
        encoder = jax.jit(lambda rng: nn.unbox(init(rng)["params"]["encoder"]))(jax.random.key(0))
    return encoder

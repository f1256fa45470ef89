"""The training pairs of a run as arrays, built in one pass and read from disk row by row."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from jax_rele.config import StudentConfig
from jax_rele.data import PairTable
from jax_rele.data.signals.table import has_rationale_embeddings, iter_signals
from jax_rele.data.tokens.evidence_tags import evidence_rows
from jax_rele.data.tokens.pair_texts import PairTexts
from jax_rele.data.tokens.student_inputs import augmented_rows
from jax_rele.data.tokens.text_loss import TextLoss, summarize
from jax_rele.data.tokens.token_cache import Columns, Ragged, RaggedSpec, load_or_build
from jax_rele.distillation.fields import Fields, batch_fields
from jax_rele.errors import UserError
from jax_rele.io import hash_file, hash_folder
from jax_rele.losses.combine import Term
from jax_rele.models.weights import weights_folder
from jax_rele.rationale import parse, render
from jax_rele.students import Student, embed_rationales
from jax_rele.students.base import RaggedInputs, TokenArray, input_rows
from jax_rele.students.weights import init_student, load_encoder
from jax_rele.text import query_id
from jax_rele.types import LabelSchema, Pair, Params, PyTree, Signals

CHUNK = 4096
"""Pairs in memory while their arrays are computed."""

_PACKAGES = ("transformers", "tokenizers")


@dataclass(frozen=True)
class Tables:
    """What a run's students learn from.

    Attributes:
      pairs: the table of labelled pairs with their splits.
      unlabelled: the table of unlabelled training pairs.
      signals: the teacher's signals, in the order of these two tables; pairs without signals are left out.
      tokenizer: the folder of the students' tokenizer.
      schema, dimensions: what the arrays of the signals mean.
      cache: the folder of built datasets.
    """

    pairs: Path
    unlabelled: Path
    signals: Path
    tokenizer: Path
    schema: LabelSchema
    dimensions: tuple[str, ...]
    cache: Path


@dataclass(frozen=True)
class Dataset:
    """A student's training data, a row per pair, labelled pairs first.

    Attributes:
      columns: the arrays of `batch_fields`, `query` [N] uint64, a hash of the query's identity, and `text_loss` [N, 8],
        the columns of `data.tokens.text_loss`.
    """

    columns: Columns

    def __len__(self) -> int:
        return len(self.columns["query"])

    @property
    def text_loss(self) -> TextLoss:
        """What of the pairs' texts the student does not read."""
        return summarize([np.asarray(self.columns["text_loss"])])

    @property
    def labelled(self) -> np.ndarray:
        """[N] bool: whether a pair has a human label."""
        return np.asarray(self.columns["labels_mask"])

    def select(self, fields: Fields) -> Columns:
        """The columns of these `batch_fields`."""
        return _select(self.columns, fields)


def _select(columns: Columns, fields: Mapping[str, PyTree]) -> Columns:
    return {
        name: _select(columns[name], field) if isinstance(field, Mapping) else columns[name]
        for name, field in fields.items()
    }


def examples(tables: Tables) -> Iterator[tuple[list[Pair], Signals]]:
    """The pairs with their signals, labelled pairs first, a few thousand at a time.

    Raises:
      UserError: the signals are damaged, or are not in the order of the pairs.
    """
    labelled = (pair for pair in PairTable(tables.pairs) if pair.split == "train" and pair.label is not None)
    pairs = chain(labelled, PairTable(tables.unlabelled))
    for signals in iter_signals(tables.signals, tables.schema.names, tables.dimensions, CHUNK):
        # Pairs without signals are skipped; a signal whose pair does not come later exhausts the iterator.
        part = [pair for pair_id in signals.pair_ids for pair in _take_until(pairs, pair_id)]
        if len(part) < len(signals.pair_ids):
            raise UserError(
                f"{tables.signals}: the signals of {signals.pair_ids[len(part)]!r} do not follow the order of "
                f"{tables.pairs} and {tables.unlabelled}; delete the folder {tables.signals.parent} and run again"
            )
        yield part, signals


def _take_until(pairs: Iterator[Pair], pair_id: str) -> list[Pair]:
    """The next pair of this name, skipping others; none where the pairs end before it."""
    return next(([pair] for pair in pairs if pair.pair_id == pair_id), [])


def build_dataset(
    tables: Tables, student: Student, terms: Collection[Mapping[str, Term]], start: StudentConfig, mesh: Mesh
) -> Dataset:
    """Everything that a student reads of the pairs where it is trained by any of these objectives.

    The arrays are built once and cached by all that decides them: pairs, signals, tokenizer, fields, lengths, and the
    encoder where it embeds rationales.

    Args:
      tables: the pairs and signals.
      student: how it reads pairs; it needs no parameters.
      terms: the terms of each objective.
      start: what the encoder starts from: signals without rationale embeddings get those of the untrained encoder.
      mesh: this process's devices, for these embeddings.

    Raises:
      UserError: signals that do not fit, or as `token_cache.load_or_build`.
    """
    fields = batch_fields(student.model, student.input_spec, terms)
    embeds = "rationale_embedding" in fields
    encoder: list[object] = []
    if embeds:
        encoder = [start.init, start.random.model_dump(), start.rationale_length, start.dtype]
        encoder += [] if start.init == "random" else [hash_folder(weights_folder(start.init))]

    has_embeddings = embeds and has_rationale_embeddings(tables.signals)
    width = fields["rationale_embedding"].shape[0] if embeds else 0

    @cache
    def encoder_params() -> Params:
        loaded = load_encoder(start, student.model, mesh)
        if loaded is not None:
            return loaded
        return jax.jit(lambda rng: nn.unbox(init_student(student)(rng)["params"]["encoder"]))(jax.random.key(0))

    def chunks():
        for part, signals in examples(tables):
            pairs = PairTexts(student.tokenizer, part, student.input_spec.fields)
            rows: dict[str, PyTree] = {"query": _query_hashes(pairs), **targets(student.label_schema, pairs, signals)}
            losses: list[np.ndarray] = []
            rows["inputs"] = input_rows(student.model, student.tokenizer, pairs, student.input_spec, losses)
            rows["text_loss"] = losses[0]
            if "augmented" in fields["inputs"]:
                rows["inputs"]["augmented"], rows["rationale_mask"] = augmented(student, pairs, signals)
            if "evidence_tags" in fields:
                rows |= evidence(student, pairs, signals)
            if embeds:
                rows |= _rationale_embeddings(student, None if has_embeddings else encoder_params, signals, width)
            yield rows

    flat = flatten_dict(fields, sep=".")
    depends_on = [
        *(hash_file(path) for path in (tables.pairs, tables.unlabelled, tables.signals)),
        hash_folder(tables.tokenizer),
        [tables.schema.names, tables.dimensions],
        dataclasses.astuple(student.input_spec),
        sorted(flat),
        encoder,
        {package: metadata.version(package) for package in _PACKAGES},
    ]
    pad_id = student.tokenizer.pad_token_id
    ragged = {
        name: RaggedSpec(pad_id if field.is_token else 0, field.length, np.dtype(field.dtype))
        for name, field in flat.items()
        if isinstance(field, TokenArray)
    }
    with _without_cycle_collection():
        dataset = Dataset(load_or_build(tables.cache, type(student.model).__name__, depends_on, chunks, ragged))
    if embeds and dataset.columns["rationale_embedding"].shape[1:] != fields["rationale_embedding"].shape:
        width, expected = dataset.columns["rationale_embedding"].shape[1], fields["rationale_embedding"].shape[0]
        raise UserError(
            f"student.cross_encoder.latent_width: the rationale embeddings have {width} numbers, the head {expected}; "
            f"set it to {width}"
        )
    return dataset


def check_present(recipe: str, fields: Collection[str], columns: Columns) -> None:
    """Raises UserError where no pair at all has what an objective learns from.

    Args:
      recipe: its name.
      fields: what its terms read.
      columns: of the dataset.
    """
    for field, mask, what in (
        ("verdict_probs", "verdict_probs_mask", "verdicts"),
        ("evidence_tags", "evidence_tags_mask", "evidence"),
        ("rationale_embedding", "rationale_embedding_mask", "rationales"),
        ("rationale_mask", "rationale_mask", "rationales"),
    ):
        if field in fields:
            column = columns[mask]
            if not (column.values if isinstance(column, Ragged) else column).any():
                raise UserError(
                    f"distill.recipes: {recipe} learns from {what}, and the signals hold none; use label_only, "
                    "score_kd or margin_mse, or signals that have them (of our own teacher: teacher.order other than "
                    "label_only)"
                )


def targets(schema: LabelSchema, pairs: Sequence[Pair], signals: Signals) -> dict[str, np.ndarray]:
    """Labels, label and verdict distributions, the teacher's confidence, a row per pair, and where they are present."""
    return {
        "labels": np.array([0 if pair.label is None else schema.index(pair.label) for pair in pairs], np.int32),
        "labels_mask": np.array([pair.label is not None for pair in pairs]),
        "label_probs": signals.label_probs,
        "verdict_probs": np.nan_to_num(signals.verdict_probs),
        "verdict_probs_mask": ~np.isnan(signals.verdict_probs).any(axis=-1),
        "confidence": np.asarray(signals.confidence, np.float32),
    }


def augmented(student: Student, pairs: Sequence[Pair], signals: Signals) -> tuple[RaggedInputs, np.ndarray]:
    """The cross-encoder's inputs with each pair's rationale after it, and which pairs have one."""
    # The label is what is to be predicted, so it is not read.
    texts = [render(dataclasses.replace(parse(text), label=None)) if text else "" for text in signals.rationales]
    spec = student.input_spec
    lengths = spec.query_length, spec.item_length, spec.rationale_length
    tokens, types = augmented_rows(student.tokenizer, pairs, texts, spec.fields, *lengths)
    rows: RaggedInputs = {"tokens": tokens, "token_types": types, "valid": [[1] * len(row) for row in tokens]}
    return rows, np.array([bool(text) for text in texts])


def evidence(student: Student, pairs: Sequence[Pair], signals: Signals) -> RaggedInputs:
    """The evidence tags of the cross-encoder's tokens; masked where there is no rationale to mark any."""
    spec = student.input_spec
    lengths = spec.query_length, spec.item_length
    tags, masks = evidence_rows(student.tokenizer, pairs, signals.evidence, student.dimensions, spec.fields, *lengths)
    masks = [mask if text else [] for mask, text in zip(masks, signals.rationales)]
    return {"evidence_tags": tags, "evidence_tags_mask": masks}


def _rationale_embeddings(
    student: Student, encoder_params: Callable[[], Params] | None, signals: Signals, width: int
) -> dict[str, np.ndarray]:
    """The signals' own, or where the table has none at all those of the untrained encoder."""
    embeddings = signals.rationale_embedding
    if embeddings is None and encoder_params is None:
        embeddings = np.full((len(signals.pair_ids), width), np.nan, np.float32)  # other pairs of the table have one
    elif embeddings is None and encoder_params is not None:
        encoder, length = student.model.encoder, student.rationale_length
        embeddings = embed_rationales(encoder, encoder_params(), student.tokenizer, signals.rationales, length)
    assert embeddings is not None
    return {
        "rationale_embedding": np.nan_to_num(embeddings),
        "rationale_embedding_mask": ~np.isnan(embeddings).any(axis=-1),
    }


@contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Python looks for no cycles: chunks are millions of small lists without any, and the search takes a third of the
    time. What is not in a cycle is freed as ever."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _query_hashes(pairs: Sequence[Pair]) -> np.ndarray:
    digests = (hashlib.blake2b(query_id(pair.query).encode(), digest_size=8).digest() for pair in pairs)
    return np.frombuffer(b"".join(digests), np.uint64)

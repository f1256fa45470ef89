"""Predictions and embeddings of students: pairs or texts in, numpy arrays out, in input order.

Texts are sorted by length and run in batches that are padded to the next of a few lengths, so each compiles once per
length. The next batch is dispatched before the results of the last one are fetched. The two-tower encodes every
distinct query and item once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase

from jax_rele.data.batches.loader import row_count
from jax_rele.data.rows import as_item, as_pair
from jax_rele.data.tokens.evidence_tags import decode_evidence
from jax_rele.data.tokens.packing import MIN_BATCHES, fewer_lengths, pad
from jax_rele.data.tokens.student_inputs import text_rows, tower_rows
from jax_rele.data.tokens.text_loss import TextLoss, summarize
from jax_rele.models import Encoder, EncoderConfig
from jax_rele.students.base import InputSpec, StudentModel
from jax_rele.types import VERDICTS, Item, LabelSchema, Pair, Params, PyTree, Span, StudentOutputs

LENGTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 513, 64))
"""Padded lengths; a longer row is padded to a multiple of the last. Each compiles once, and those of few batches are
padded to the next, see `packing.fewer_lengths`. Above 32 tokens, otherwise less than a fifth of a row is padding."""

AHEAD = 1
"""Batches that are on the device while another one's results are fetched."""


@dataclass(frozen=True)
class Student:
    """A trained student: a model, its parameters and how pairs become its inputs.

    Attributes:
      model, variables: the Linen module and its parameters.
      tokenizer: the encoder's.
      fields: the item's texts that it reads.
      query_length, item_length: most tokens of a side.
      batch_size: most rows per forward pass.
      schema: the labels; None for a student that only embeds.
      dimensions: names of the D dimensions.
      has_verdicts, has_evidence: whether its recipe trained these heads.
      rationale_length: most tokens of a rationale that it reads after a pair in training.
    """

    model: StudentModel
    variables: dict
    tokenizer: PreTrainedTokenizerBase
    fields: tuple[str, ...]
    query_length: int
    item_length: int
    batch_size: int = 64
    schema: LabelSchema | None = None
    dimensions: tuple[str, ...] = ()
    has_verdicts: bool = False
    has_evidence: bool = False
    rationale_length: int = 0

    def predict(
        self, pairs: Sequence[Pair | tuple[str, str]], *, progress: Callable[[int], None] = lambda pairs: None
    ) -> Predictions:
        """Judges pairs, in order; each a `Pair`, or the texts of a query and an item. `progress` is called after each
        batch with its number of pairs."""
        schema = self.label_schema
        outputs = predict(self, pairs, progress=progress)
        probs = label_probs(outputs)
        verdict_probs = evidence = None
        if self.has_verdicts and outputs.verdict_logits is not None:
            verdict_probs = softmax(np.asarray(outputs.verdict_logits, np.float64), axis=-1)
        if self.has_evidence and outputs.token_logits is not None:
            tags = np.asarray(outputs.token_logits).argmax(axis=-1)
            lengths = self.query_length, self.item_length
            as_pairs = [as_pair(pair) for pair in pairs]
            evidence = decode_evidence(self.tokenizer, as_pairs, tags, self.dimensions, self.fields, *lengths)
        return Predictions(schema.expected_gain(probs), probs, verdict_probs, evidence, outputs)

    @property
    def label_schema(self) -> LabelSchema:
        """The labels. Raises ValueError for a student that has none."""
        if self.schema is None:
            raise ValueError("predict needs a student with a label schema, as load_student gives it")
        return self.schema

    @property
    def input_spec(self) -> InputSpec:
        """How the student's pairs become tokens."""
        return InputSpec(self.fields, self.query_length, self.item_length, self.rationale_length)

    def text_loss(self, pairs: Sequence[Pair | tuple[str, str]]) -> TextLoss:
        """What of the pairs' texts the student does not read."""
        losses: list[np.ndarray] = []
        self.model.tokenize(self.tokenizer, [as_pair(pair) for pair in pairs], self.input_spec, losses)
        return summarize(losses)

    def embed(self, texts: Sequence[str | Item], side: str) -> np.ndarray:
        """[N, E] embeddings of a two-tower's queries or items, see `embed`."""
        return embed(self, texts, side)


@dataclass(frozen=True)
class Predictions:
    """A student's predictions for N pairs.

    Attributes:
      scores: [N] expected gains.
      label_probs: [N, C].
      verdict_probs: [N, D, V]; None where the student's recipe teaches no verdicts.
      evidence: spans of each pair; None where the student's recipe teaches no evidence.
      outputs: the raw outputs of the model.
    """

    scores: np.ndarray
    label_probs: np.ndarray
    verdict_probs: np.ndarray | None
    evidence: tuple[tuple[Span, ...], ...] | None
    outputs: StudentOutputs

    @property
    def verdicts(self) -> list[tuple[str, ...]] | None:
        """The likeliest verdict of each dimension, a tuple of names per pair."""
        if self.verdict_probs is None:
            return None
        return [tuple(VERDICTS[index] for index in row) for row in self.verdict_probs.argmax(axis=-1)]


@partial(jax.jit, static_argnames=("model", "method", "side"))
def _apply(model: nn.Module, variables: dict, *inputs: jax.Array, method: str | None = None, side: int | None = None):
    options: dict[str, PyTree] = {} if side is None else {"side": side}
    return model.apply(variables, *inputs, **options, method=method)


def predict(
    student: Student,
    pairs: Sequence[Pair | tuple[str, str]] | Mapping[str, np.ndarray],
    *,
    progress: Callable[[int], None] = lambda pairs: None,
) -> StudentOutputs:
    """Predicts for pairs, in order.

    Args:
      student: the student.
      pairs: at least one; a `Pair`, or the texts of a query and an item; or the model's arrays, as `padded_inputs`
        returns them.
      progress: called after each batch with its number of pairs.

    Returns:
      Numpy arrays with a row per pair. What is one per token is padded to the longest pair.
    """
    if isinstance(pairs, str) or not len(pairs):
        raise ValueError(f"predict needs a list of at least one pair, got {pairs!r:.80}")
    model = student.model
    if isinstance(pairs, Mapping):
        rows = {
            name: _ragged(pairs[name], pairs[name.replace("token_types", "valid").replace("tokens", "valid")])
            for name in model.batch_spec(student.input_spec)
            if not name.endswith("valid")
        }
    else:
        rows = model.tokenize(student.tokenizer, [as_pair(pair) for pair in pairs], student.input_spec)
    if not model.embeds:
        return _in_buckets(student, rows["tokens"], rows["token_types"], progress=progress)
    return _predict_towers(student, rows["query_tokens"], rows["item_tokens"], progress)


def _predict_towers(
    student: Student,
    query_rows: Sequence[Sequence[int]],
    item_rows: Sequence[Sequence[int]],
    progress: Callable[[int], None],
) -> StudentOutputs:
    """Compares the embeddings of the distinct queries and items."""
    rows = query_rows, item_rows
    query, item = (_distinct(student, side, number) for number, side in enumerate(rows))
    size = row_count(len(rows[0]), student.batch_size)

    def compare_batches():
        for start in range(0, len(rows[0]), size):
            indices = np.arange(start, min(start + size, len(rows[0])))
            embeddings = (_fill_rows(side[0][side[1][indices]], size) for side in (query, item))
            yield len(indices), _apply(student.model, student.variables, *embeddings, method="compare")

    outputs = list(_fetch_batches(compare_batches(), progress))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *outputs)


def embed(student: Student, texts: Sequence[str | Item] | Mapping[str, np.ndarray], side: str) -> np.ndarray:
    """The two-tower's embeddings of texts, in order.

    Args:
      student: a two-tower.
      texts: at least one query or item (an `Item`, or its text); or `tokens` and `valid` [N, L].
      side: `query` or `item`.

    Returns:
      [N, E]; with late interaction [N, L, E], zeros for padding.

    Raises:
      ValueError: there is no text, the student is none, or there is no such side.
    """
    if not student.model.embeds:
        raise ValueError("a cross-encoder has no embeddings of query and item; use a two-tower")
    if side not in ("query", "item"):
        raise ValueError(f"side must be query or item, got {side!r}")
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"embed needs a list of at least one text, got {texts!r:.80}")
    number = ("query", "item").index(side)
    if isinstance(texts, Mapping):
        rows = _ragged(texts["tokens"], texts["valid"])
    else:
        pairs = [
            Pair("", text, Item("", "")) if side == "query" and isinstance(text, str) else Pair("", "", as_item(text))
            for text in texts
        ]
        rows = tower_rows(student.tokenizer, pairs, student.fields, student.query_length, student.item_length)[number]
    return _in_buckets(student, rows, side=number)


def embed_rationales(
    encoder: EncoderConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    length: int,
    batch_size: int = 64,
) -> np.ndarray:
    """[N, W] mean of the token vectors of each text, cut to `length` tokens; NaN for an empty text."""
    rows = text_rows(tokenizer, texts, length)
    student = Student(Encoder(encoder), {"params": params}, tokenizer, (), 0, 0, batch_size)
    outputs = _in_buckets(student, rows, [[0] * len(row) for row in rows], reduce=_mean_of_tokens)
    outputs[[not text for text in texts]] = np.nan
    return outputs


def label_probs(outputs: StudentOutputs) -> np.ndarray:
    """[N, C] float64 label distribution of a student's logits."""
    logits = np.asarray(outputs.logits, np.float64)
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def padded_length(longest: int) -> int:
    """The least of `LENGTHS` that holds so many tokens, or a multiple of the last."""
    return next((length for length in LENGTHS if length >= longest), -(-longest // LENGTHS[-1]) * LENGTHS[-1])


def _in_buckets(
    student: Student,
    rows: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None = None,
    *,
    side: int | None = None,
    reduce: Callable[[PyTree, np.ndarray], PyTree] = lambda outputs, valid: outputs,
    progress: Callable[[int], None] = lambda rows: None,
) -> PyTree:
    """Runs the model over ragged rows, the longest first to show a lack of memory at once; results in input order."""
    order = np.argsort([-len(row) for row in rows], kind="stable")
    # One number of rows for all batches of a call; few rows are not padded to a whole batch.
    size = row_count(len(rows), student.batch_size)
    method = None if side is None else "encode"

    starts = range(0, len(rows), size)
    padded = fewer_lengths([padded_length(len(rows[order[start]])) for start in starts], MIN_BATCHES)

    def run():
        for start, length in zip(starts, padded.tolist()):
            indices = order[start : start + size]
            lengths = np.array([len(rows[index]) for index in indices])
            valid = np.arange(length) < lengths[:, None]
            inputs = [pad([rows[index] for index in indices], length, student.tokenizer.pad_token_id or 0), valid]
            if types is not None:
                inputs.insert(1, pad([types[index] for index in indices], length, 0))
            filled = [_fill_rows(x, size) for x in inputs]
            outputs = _apply(student.model, student.variables, *filled, method=method, side=side)
            yield len(indices), reduce(outputs, filled[-1])

    outputs = list(_fetch_batches(run(), progress))
    back = np.argsort(order, kind="stable")
    return jax.tree.map(lambda *xs: _concatenate(xs)[back], *outputs)


def _fetch_batches(batches: Iterable[tuple[int, PyTree]], progress: Callable[[int], None]) -> Iterator[PyTree]:
    """The first so many rows of each batch, on the host; by then the device has the next batches."""
    waiting: deque[tuple[int, PyTree]] = deque()

    def fetch():
        rows, outputs = waiting.popleft()
        outputs = jax.tree.map(lambda x: x[:rows], jax.device_get(outputs))
        progress(rows)
        return outputs

    for batch in batches:
        waiting.append(batch)
        if len(waiting) > AHEAD:
            yield fetch()
    while waiting:
        yield fetch()


def _concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of one array; what is one per token is padded with zeros to the longest."""
    if parts[0].ndim > 1 and len({part.shape[1] for part in parts}) > 1:
        longest = max(part.shape[1] for part in parts)
        parts = [np.pad(x, [(0, 0), (0, longest - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]) for x in parts]
    return np.concatenate(parts)


@jax.jit
def _mean_of_tokens(hidden: jax.Array, valid: jax.Array) -> jax.Array:
    weights = jnp.asarray(valid, hidden.dtype)[..., None]
    return (hidden * weights).sum(axis=1) / weights.sum(axis=1)


def _distinct(student: Student, rows: Sequence[Sequence[int]], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the distinct rows, and for each row the index of its embedding."""
    numbers: dict[tuple[int, ...], int] = {}
    of_row = np.array([numbers.setdefault(tuple(row), len(numbers)) for row in rows])
    return _in_buckets(student, list(numbers), side=side), of_row


def _fill_rows(x: np.ndarray, rows: int) -> np.ndarray:
    """So many rows, the last one repeated."""
    return np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)]) if len(x) < rows else x


def _ragged(tokens: np.ndarray, valid: np.ndarray) -> list[list[int]]:
    return [np.asarray(row)[np.asarray(mask)].tolist() for row, mask in zip(tokens, valid)]

"""The students at work: pairs or texts in, numpy arrays out, in order.

Texts are sorted by length and run in batches that are padded to the next of a few lengths, so each compiles once per
length. The next batch is given to the device before the last one's results are fetched. The two-tower reads every
distinct query and item once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.augmented import text_rows
from jax_rele.data.tokens.encoding import cross_rows, encode_cross, encode_towers, pad, tower_rows
from jax_rele.models import Encoder, EncoderConfig
from jax_rele.students import CrossEncoder
from jax_rele.teacher.kv_cache import row_count
from jax_rele.types import Item, Pair, StudentOutputs

LENGTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 513, 64))
"""To which rows are padded; a longer row is padded to a multiple of the last. Each is one more program to compile; of a
row of more than 32 tokens less than a fifth is padding."""

AHEAD = 1
"""Batches that are on the device while another one's results are fetched."""


@dataclass(frozen=True)
class Student:
    """A student with what it takes to read pairs.

    Attributes:
      model, variables: the Linen module and its parameters.
      tokenizer: the encoder's.
      fields: the item's texts that it reads.
      query_length, item_length: most tokens of a side.
      batch_size: most rows per forward pass.
    """

    model: nn.Module
    variables: dict
    tokenizer: PreTrainedTokenizerBase
    fields: tuple[str, ...]
    query_length: int
    item_length: int
    batch_size: int = 64


@partial(jax.jit, static_argnames=("model", "method", "side"))
def _apply(model: nn.Module, variables: dict, *inputs: jax.Array, method: str | None = None, side: int | None = None):
    return model.apply(variables, *inputs, **({} if side is None else {"side": side}), method=method)


def encode_inputs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
) -> dict[str, np.ndarray]:
    """The keyword arguments of `model` for these pairs, at full length."""
    encode = encode_cross if isinstance(model, CrossEncoder) else encode_towers
    return encode(tokenizer, pairs, fields, query_length, item_length)


def predict(
    student: Student,
    pairs: Sequence[Pair | tuple[str, str]] | Mapping[str, np.ndarray],
    *,
    progress: Callable[[int], None] = lambda pairs: None,
) -> StudentOutputs:
    """Judges pairs, in order.

    Args:
      student: the student.
      pairs: at least one; a `Pair`, or the texts of a query and an item; or the model's arrays, as `encode_inputs`
        makes them.
      progress: told after each batch how many pairs it judged.

    Returns:
      Numpy arrays with a row per pair. What is one per token is padded to the longest pair.
    """
    cross = isinstance(student.model, CrossEncoder)
    if isinstance(pairs, str) or not len(pairs):
        raise ValueError(f"predict needs a list of at least one pair, got {pairs!r:.80}")
    if isinstance(pairs, Mapping):
        sides = [""] if cross else ["query_", "item_"]
        rows = [_ragged(pairs[f"{side}tokens"], pairs[f"{side}valid"]) for side in sides]
        types = _ragged(pairs["token_types"], pairs["valid"]) if cross else None
    else:
        lengths, wanted = (student.query_length, student.item_length), [_as_pair(pair) for pair in pairs]
        if cross:
            ids, types = cross_rows(student.tokenizer, wanted, student.fields, *lengths)
            rows = [ids]
        else:
            rows, types = list(tower_rows(student.tokenizer, wanted, student.fields, *lengths)), None
    if cross:
        return _in_buckets(student, rows[0], types, progress=progress)
    query, item = (_distinct(student, side, number) for number, side in enumerate(rows))
    size = row_count(len(rows[0]), student.batch_size)

    def compared():
        for start in range(0, len(rows[0]), size):
            places = np.arange(start, min(start + size, len(rows[0])))
            both = (_filled(side[0][side[1][places]], size) for side in (query, item))
            yield len(places), _apply(student.model, student.variables, *both, method="compare")

    outputs = list(_fetched(compared(), progress))
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
    if isinstance(student.model, CrossEncoder):
        raise ValueError("a cross-encoder has no embeddings of query and item; use a two-tower")
    if side not in ("query", "item"):
        raise ValueError(f"side must be query or item, got {side!r}")
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"embed needs a list of at least one text, got {texts!r:.80}")
    number = ("query", "item").index(side)
    if isinstance(texts, Mapping):
        rows = _ragged(texts["tokens"], texts["valid"])
    else:
        pairs = [Pair("", text, Item("", "")) if side == "query" else Pair("", "", _as_item(text)) for text in texts]
        rows = tower_rows(student.tokenizer, pairs, student.fields, student.query_length, student.item_length)[number]
    return _in_buckets(student, rows, side=number)


def embed_rationales(
    encoder: EncoderConfig,
    params: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    length: int,
    batch_size: int = 64,
) -> np.ndarray:
    """[N, W] mean of the token vectors of each text, cut to `length` tokens; NaN for an empty text."""
    rows = text_rows(tokenizer, texts, length)
    student = Student(Encoder(encoder), {"params": params}, tokenizer, (), 0, 0, batch_size)
    found = _in_buckets(student, rows, [[0] * len(row) for row in rows], reduce=_mean_of_tokens)
    found[[not text for text in texts]] = np.nan
    return found


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
    reduce: Callable[[Any, np.ndarray], Any] = lambda outputs, valid: outputs,
    progress: Callable[[int], None] = lambda rows: None,
) -> Any:
    """Runs the model over ragged rows, the longest first so that memory is known at once; results in input order."""
    order = np.argsort([-len(row) for row in rows], kind="stable")
    # One number of rows for all batches of a call; a few rows do not wait for a whole batch of padding.
    size = row_count(len(rows), student.batch_size)
    method = None if side is None else "encode"

    def run():
        for start in range(0, len(rows), size):
            places = order[start : start + size]
            lengths = np.array([len(rows[place]) for place in places])
            length = padded_length(lengths[0])
            valid = np.arange(length) < lengths[:, None]
            inputs = [pad([rows[place] for place in places], length, student.tokenizer.pad_token_id or 0), valid]
            if types is not None:
                inputs.insert(1, pad([types[place] for place in places], length, 0))
            filled = [_filled(x, size) for x in inputs]
            outputs = _apply(student.model, student.variables, *filled, method=method, side=side)
            yield len(places), reduce(outputs, filled[-1])

    found = list(_fetched(run(), progress))
    back = np.argsort(order, kind="stable")
    return jax.tree.map(lambda *xs: _joined(xs)[back], *found)


def _fetched(batches: Iterable[tuple[int, Any]], progress: Callable[[int], None]) -> Iterator[Any]:
    """The first so many rows of each batch, on the host; by then the device has the next batches."""
    waiting: deque[tuple[int, Any]] = deque()

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


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
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
    """Embeddings of the distinct rows, and for each row the number of its own."""
    numbers: dict[tuple[int, ...], int] = {}
    of_row = np.array([numbers.setdefault(tuple(row), len(numbers)) for row in rows])
    return _in_buckets(student, list(numbers), side=side), of_row


def _filled(x: np.ndarray, rows: int) -> np.ndarray:
    """So many rows, the last one repeated."""
    return np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)]) if len(x) < rows else x


def _ragged(tokens: np.ndarray, valid: np.ndarray) -> list[list[int]]:
    return [np.asarray(row)[np.asarray(keep)].tolist() for row, keep in zip(tokens, valid)]


def _as_pair(pair: Pair | tuple[str, str]) -> Pair:
    if isinstance(pair, Pair):
        return pair
    if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
        raise TypeError(f"a pair is a Pair or (query, item), got {pair!r:.80}")
    return Pair("", pair[0], _as_item(pair[1]))


def _as_item(item: str | Item) -> Item:
    if not isinstance(item, str | Item):
        raise TypeError(f"an item is an Item or its text, got {item!r:.80}")
    return item if isinstance(item, Item) else Item("", item)

"""Label distributions of the teacher: the probability of each label's verbalizer after a row of tokens; and the
distributions over the alternatives of several choices inside a row, in one pass over it.

Where the first tokens of the verbalizers differ, the softmax is over these tokens, otherwise over the
log-probabilities of all tokens of each verbalizer. Logits of shape `[rows, length, vocabulary]` are never formed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele.data.batches.loader import row_count
from jax_rele.data.tokens.packing import pad
from jax_rele.losses import next_token_cross_entropy
from jax_rele.models import Decoder
from jax_rele.teacher.kv_cache import base_cache, prefill, read, row_parts, use_mesh
from jax_rele.teacher.shared_prefixes import make_plan
from jax_rele.teacher.verbalizers import Verbalizers
from jax_rele.types import PyTree


@partial(jax.jit, static_argnames=("model",))
def first_token_probs(
    model: Decoder,
    variables: PyTree,
    cache: PyTree,
    parents: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    first: jax.Array,
) -> jax.Array:
    """P(label | row), from the first tokens of the verbalizers.

    Args:
      model, variables, cache, parents, tokens, starts: as for `kv_cache.read`.
      lengths: [B] int, tokens of each row, at least 1.
      first: [C] int, the first token of each verbalizer.

    Returns:
      [B, C] float32.
    """
    outputs, _ = read(model, variables, cache, parents, tokens, starts)
    hidden = _last(outputs.hidden, lengths)
    logits = jnp.einsum("be,ce->bc", hidden, outputs.output_embedding[first], preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits, axis=-1)


@partial(jax.jit, static_argnames=("model",))
def full_probs(
    model: Decoder,
    variables: PyTree,
    cache: PyTree,
    parents: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    verbalizers: jax.Array,
    verbalizer_lengths: jax.Array,
    follow: jax.Array,
) -> jax.Array:
    """P(label | row), from the log-probability of all tokens of each verbalizer.

    The token that follows is included: it distinguishes a verbalizer from a longer one that begins with it.

    Args:
      model, variables, cache, parents, tokens, starts: as for `kv_cache.read`.
      lengths: [B] int, tokens of each row, at least 1.
      verbalizers: [C, W] int, the tokens of each verbalizer, padded on the right.
      verbalizer_lengths: [C] int.
      follow: int, the token after every verbalizer.

    Returns:
      [B, C] float32.
    """
    outputs, grown = read(model, variables, cache, parents, tokens, starts)
    hidden = _last(outputs.hidden, lengths)
    rows, width = len(tokens), verbalizers.shape[1]
    indices = jnp.arange(width + 1)

    def log_prob(verbalizer):
        ids, length = verbalizer
        outputs_after, _ = read(
            model,
            variables,
            grown,
            jnp.arange(rows),
            jnp.broadcast_to(ids, (rows, width)),
            starts + lengths,
        )
        states = jnp.concatenate([hidden[:, None], outputs_after.hidden], axis=1)
        targets = jnp.append(ids, 0).at[length].set(follow)
        return -next_token_cross_entropy(
            states,
            outputs.output_embedding,
            jnp.broadcast_to(targets, (rows, width + 1)),
            jnp.broadcast_to(indices <= length, (rows, width + 1)),
        ).sum(axis=-1)

    # One verbalizer at a time, since each needs its own cache.
    return jax.nn.softmax(jax.lax.map(log_prob, (verbalizers, verbalizer_lengths)).T, axis=-1)


@partial(jax.jit, static_argnames=("model",))
def inner_choice_probs(
    model: Decoder,
    variables: PyTree,
    cache: PyTree,
    parents: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    indices: jax.Array,
    first: jax.Array,
) -> jax.Array:
    """Distributions over the alternatives of C choices inside each row, from their first tokens.

    Args:
      model, variables, cache, parents, tokens, starts: as for `kv_cache.read`.
      lengths: not read: all rows have the same choices.
      indices: [B, C] int, of the token before each choice.
      first: [C, K] int, the first token of each alternative; -1 where a choice has fewer.

    Returns:
      [B, C, K] float32.
    """
    outputs, _ = read(model, variables, cache, parents, tokens, starts)
    hidden = jnp.take_along_axis(outputs.hidden, indices[:, :, None], axis=1)
    embedding = outputs.output_embedding[jnp.maximum(first, 0)]
    logits = jnp.einsum("bce,cke->bck", hidden, embedding, preferred_element_type=jnp.float32)
    return jax.nn.softmax(jnp.where(first >= 0, logits, -jnp.inf), axis=-1)


def _last(hidden: jax.Array, lengths: jax.Array) -> jax.Array:
    return hidden[jnp.arange(len(hidden)), lengths - 1]


def score(
    model: Decoder,
    variables: PyTree,
    rows: Sequence[Sequence[int]],
    verbalizers: Verbalizers,
    follow: int,
    *,
    groups: Sequence[Hashable],
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Computes the label distribution after each row of tokens, in the order of the rows.

    Args:
      model, variables: the decoder and its parameters.
      rows: token ids of prompt and text before the label, `verbalizers.common` included.
      verbalizers: the tokens of the labels.
      follow: the token after a label.
      groups: for each row a key, e.g. its query; rows of equal key likely share a prefix.
      batch_size: rows per forward pass, a multiple of the devices over which the rows are divided.
      mesh: the devices that the variables live on.
      progress: called with the number of rows after each batch.

    Returns:
      [N, C] float32.
    """
    count = len(verbalizers.rests)
    if verbalizers.scoring == "first_token":
        probs_of = partial(first_token_probs, first=np.array([rest[0] for rest in verbalizers.rests], np.int32))
    else:
        lengths = np.array([len(rest) for rest in verbalizers.rests], np.int32)
        probs_of = partial(
            full_probs, verbalizers=pad(verbalizers.rests, lengths.max(), 0), verbalizer_lengths=lengths, follow=follow
        )
    with use_mesh(mesh):
        calls = (
            (batch, probs_of(*arguments))
            for batch, arguments in _batches(model, variables, rows, groups, batch_size, row_parts(mesh))
        )
        return _collect(calls, (len(rows), count), progress)


def score_choices(
    model: Decoder,
    variables: PyTree,
    rows: Sequence[Sequence[int]],
    before: np.ndarray,
    first: np.ndarray,
    *,
    groups: Sequence[Hashable],
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Computes the distributions of choices inside rows of tokens, in the order of the rows.

    Args:
      model, variables, groups, batch_size, mesh, progress: as for `score`.
      rows: token ids, up to the last choice at least.
      before: [N, C] int, the tokens of each row before each of its choices, at least 1, in ascending order.
      first: [C, K] int, the first token of each alternative of a choice; -1 where a choice has fewer.

    Returns:
      [N, C, K] float32.
    """
    # What decides the first choice of a row is read in the row's own batch, so that no choice is in a shared prefix.
    heads = [row[:end] for row, end in zip(rows, before[:, 0].tolist())]

    def calls():
        for batch, arguments in _batches(model, variables, rows, groups, batch_size, row_parts(mesh), heads):
            starts = np.asarray(arguments[-2])
            indices = np.zeros((len(starts), before.shape[1]), np.int32)
            indices[: len(batch)] = before[batch] - 1 - starts[: len(batch), None]
            yield batch, inner_choice_probs(*arguments, indices, first)

    with use_mesh(mesh):
        return _collect(calls(), (len(rows), *first.shape), progress)


def _collect(
    calls: Iterable[tuple[np.ndarray, jax.Array]], shape: tuple[int, ...], progress: Callable[[int], None]
) -> np.ndarray:
    """The results of calls that are started one ahead: the device computes while the host collects."""
    probs = np.zeros(shape, np.float32)
    waiting: deque[tuple[np.ndarray, jax.Array]] = deque()

    def collect():
        done, batch_probs = waiting.popleft()
        probs[done] = np.asarray(batch_probs)[: len(done)]
        progress(len(done))

    for call in calls:
        waiting.append(call)
        if len(waiting) > 1:
            collect()
    while waiting:
        collect()
    return probs


def _batches(
    model: Decoder,
    variables: PyTree,
    rows: Sequence[Sequence[int]],
    groups: Sequence[Hashable],
    batch_size: int,
    parts: int,
    heads: Sequence[Sequence[int]] | None = None,
) -> Iterator[tuple[np.ndarray, tuple]]:
    """The batches of a plan: row indices, and what `first_token_probs` takes up to `lengths`."""
    if not len(rows):
        return
    plan = make_plan(rows, groups, batch_size, parts, heads)
    base, begin = base_cache(model, variables, plan.base, parts), len(plan.base)
    for window in plan.windows:
        cache, starts = base, np.array([begin], np.int32)
        if window.length:
            count = row_count(len(window.prefixes), batch_size, parts)
            tokens = pad([*window.prefixes, *[()] * (count - len(window.prefixes))], window.length, 0)
            cache = prefill(model, variables, base, np.zeros(count, np.int32), tokens, np.full(count, begin, np.int32))
            starts = np.array([begin + len(prefix) for prefix in window.prefixes], np.int32)
        for batch in window.batches:
            fill = plan.batch_size - len(batch.rows)
            parents = np.append(batch.parents, np.zeros(fill, np.int32)).astype(np.int32)
            rests = [rows[row][starts[parent] :] for row, parent in zip(batch.rows, batch.parents)]
            tokens = pad([*rests, *[(0,)] * fill], batch.length, 0)
            lengths = np.array([len(rest) for rest in rests] + [1] * fill, np.int32)
            yield batch.rows, (model, variables, cache, parents, tokens, starts[parents], lengths)

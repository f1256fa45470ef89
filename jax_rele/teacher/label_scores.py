"""The teacher's score: a distribution over label words behind each row of tokens, computed from the last hidden state.

The softmax is over the words' own rows of the output embedding where their first tokens differ, otherwise over the full
log-probabilities of the words. `[rows, length, vocabulary]` is never formed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele.data.tokens.packing import pad
from jax_rele.losses import next_token_cross_entropy
from jax_rele.models import Decoder
from jax_rele.teacher.kv_cache import base_cache, on, prefill, read, row_count, row_parts
from jax_rele.teacher.shared_prefixes import make_plan
from jax_rele.teacher.verbalizers import Verbalizers


@partial(jax.jit, static_argnames=("model",))
def first_token_probs(
    model: Decoder,
    variables: Any,
    cache: Any,
    parents: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    first: jax.Array,
) -> jax.Array:
    """P(word | row), normalised over the words and told by their first tokens.

    Args:
      model, variables, cache, parents, tokens, starts: as for `cache.read`.
      lengths: [B] int, tokens of each row, at least 1.
      first: [C] int, the first token of each word.

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
    variables: Any,
    cache: Any,
    parents: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    words: jax.Array,
    word_lengths: jax.Array,
    follow: jax.Array,
) -> jax.Array:
    """P(word | row), normalised over the words, from the log-probability of all their tokens.

    The token that follows a word counts too: it tells a word from a longer one that begins with it.

    Args:
      model, variables, cache, parents, tokens, starts: as for `cache.read`.
      lengths: [B] int, tokens of each row, at least 1.
      words: [C, W] int, the tokens of each word, padded on the right.
      word_lengths: [C] int.
      follow: int, the token behind every word.

    Returns:
      [B, C] float32.
    """
    outputs, grown = read(model, variables, cache, parents, tokens, starts)
    hidden = _last(outputs.hidden, lengths)
    rows, width = len(tokens), words.shape[1]
    places = jnp.arange(width + 1)

    def log_prob(word):
        ids, length = word
        behind, _ = read(
            model,
            variables,
            grown,
            jnp.arange(rows),
            jnp.broadcast_to(ids, (rows, width)),
            starts + lengths,
        )
        states = jnp.concatenate([hidden[:, None], behind.hidden], axis=1)
        targets = jnp.append(ids, 0).at[length].set(follow)
        return -next_token_cross_entropy(
            states,
            outputs.output_embedding,
            jnp.broadcast_to(targets, (rows, width + 1)),
            jnp.broadcast_to(places <= length, (rows, width + 1)),
        ).sum(axis=-1)

    # One word after the other: each needs a cache of its own.
    return jax.nn.softmax(jax.lax.map(log_prob, (words, word_lengths)).T, axis=-1)


def _last(hidden: jax.Array, lengths: jax.Array) -> jax.Array:
    return hidden[jnp.arange(len(hidden)), lengths - 1]


def score(
    model: Decoder,
    variables: Any,
    rows: Sequence[Sequence[int]],
    words: Verbalizers,
    follow: int,
    *,
    groups: Sequence[Hashable],
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """The distribution over label words behind each row of tokens, in order.

    Args:
      model, variables: the decoder and its parameters.
      rows: token ids up to the words' first that differ, `words.common` included.
      words: the labels.
      follow: the token behind a label.
      groups: for each row what it shares a prefix by, e.g. its query.
      batch_size: rows per forward pass, a multiple of the devices that share the rows.
      mesh: the devices that the variables live on.
      progress: called with the number of rows after each batch.

    Returns:
      [N, C] float32.
    """
    probs = np.zeros((len(rows), len(words.rests)), np.float32)
    waiting: deque[tuple[np.ndarray, jax.Array]] = deque()

    def collect():
        done, found = waiting.popleft()
        probs[done] = np.asarray(found)[: len(done)]
        progress(len(done))

    with on(mesh):
        for call in _calls(model, variables, rows, words, follow, groups, batch_size, row_parts(mesh)):
            waiting.append(call)
            # The device has the next batch to work on while the host takes what the one before gave.
            if len(waiting) > 1:
                collect()
        while waiting:
            collect()
    return probs


def _calls(
    model, variables, rows, words: Verbalizers, follow: int, groups, batch_size: int, parts: int
) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Starts the forward passes of a plan: which rows, and their distributions on the device."""
    if not len(rows):
        return
    if words.scoring == "first_token":
        probs_of = partial(first_token_probs, first=np.array([rest[0] for rest in words.rests], np.int32))
    else:
        lengths = np.array([len(rest) for rest in words.rests], np.int32)
        probs_of = partial(full_probs, words=pad(words.rests, lengths.max(), 0), word_lengths=lengths, follow=follow)
    plan = make_plan(rows, groups, batch_size, parts)
    base, begin = base_cache(model, variables, plan.base, parts), len(plan.base)
    for window in plan.windows:
        cache, starts = base, np.array([begin], np.int32)
        if window.length:
            held = row_count(len(window.prefixes), batch_size, parts)
            tokens = pad([*window.prefixes, *[()] * (held - len(window.prefixes))], window.length, 0)
            cache = prefill(model, variables, base, np.zeros(held, np.int32), tokens, np.full(held, begin, np.int32))
            starts = np.array([begin + len(prefix) for prefix in window.prefixes], np.int32)
        for batch in window.batches:
            fill = plan.batch_size - len(batch.rows)
            parents = np.append(batch.parents, np.zeros(fill, np.int32)).astype(np.int32)
            rests = [rows[row][starts[parent] :] for row, parent in zip(batch.rows, batch.parents)]
            tokens = pad([*rests, *[(0,)] * fill], batch.length, 0)
            lengths = np.array([len(rest) for rest in rests] + [1] * fill, np.int32)
            yield batch.rows, probs_of(model, variables, cache, parents, tokens, starts[parents], lengths)

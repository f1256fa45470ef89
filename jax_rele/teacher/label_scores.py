"""Label distributions of the teacher: the probability of each label's verbalizer after a row of tokens.

Where the first tokens of the verbalizers differ, the softmax is over these tokens, otherwise over the
log-probabilities of all tokens of each verbalizer. Logits of shape `[rows, length, vocabulary]` are never formed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
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
    probs = np.zeros((len(rows), len(verbalizers.rests)), np.float32)
    waiting: deque[tuple[np.ndarray, jax.Array]] = deque()

    def collect():
        done, batch_probs = waiting.popleft()
        probs[done] = np.asarray(batch_probs)[: len(done)]
        progress(len(done))

    with use_mesh(mesh):
        for call in _calls(model, variables, rows, verbalizers, follow, groups, batch_size, row_parts(mesh)):
            waiting.append(call)
            # The device computes the next batch while the host collects the previous one.
            if len(waiting) > 1:
                collect()
        while waiting:
            collect()
    return probs


def _calls(
    model, variables, rows, verbalizers: Verbalizers, follow: int, groups, batch_size: int, parts: int
) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Starts the forward passes of a plan; yields row indices and their label distributions on the device."""
    if not len(rows):
        return
    if verbalizers.scoring == "first_token":
        probs_of = partial(first_token_probs, first=np.array([rest[0] for rest in verbalizers.rests], np.int32))
    else:
        lengths = np.array([len(rest) for rest in verbalizers.rests], np.int32)
        probs_of = partial(
            full_probs, verbalizers=pad(verbalizers.rests, lengths.max(), 0), verbalizer_lengths=lengths, follow=follow
        )
    plan = make_plan(rows, groups, batch_size, parts)
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
            yield batch.rows, probs_of(model, variables, cache, parents, tokens, starts[parents], lengths)

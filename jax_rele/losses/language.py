"""The loss of language modelling, and log-probabilities of texts, without the logits of the whole batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask


def next_token_cross_entropy(
    hidden: ArrayLike,
    output_embedding: ArrayLike,
    targets: ArrayLike,
    where: ArrayLike | None = None,
    *,
    token_weights: ArrayLike | None = None,
    chunk_size: int = 512,
) -> jax.Array:
    r"""Cross entropy of each position's target token, from hidden states.

    .. math::
      \ell_{bl} = -w_{bl} \log \mathrm{softmax}(E h_{bl})_{y_{bl}}

    Logits exist for one chunk of positions at a time, forward and backward: [B, L, vocabulary] is never formed. A chunk
    is the same few columns of every row, so that devices that share the batch work on their own rows in every chunk.
    The unmasked positions of each row come first, and chunks without any are left out: a loss on completions alone does
    not pay for the prompts. Where the output embedding does not learn, as under adapters, the backward pass computes no
    logits again.

    Args:
      hidden: [B, L, E] final hidden states :math:`h`.
      output_embedding: [vocabulary, E] rows of the output embedding :math:`E`.
      targets: [B, L] integer tokens :math:`y` to predict; the caller has shifted them, so that `targets[b, l]` is the
        token after the one that `hidden[b, l]` has read last.
      where: bool mask, broadcastable to [B, L]. A masked element is 0 and passes no gradient.
      token_weights: [B, L] optional factors :math:`w` of the elements.
      chunk_size: static; the number of positions in a chunk, counted over all rows of the batch. A chunk holds at least
        one position of every row. Where devices share the batch, give each its own: 512 times their number.

    Returns:
      [B, L] float32 elements, in nats; NaN for an unmasked target outside the vocabulary. Logits are accumulated in
      float32 from operands in the precision of the inputs.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> hidden, output_embedding = jnp.array([[[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]), jnp.eye(2)
      >>> where = jnp.array([[True, True, False]])
      >>> losses.next_token_cross_entropy(hidden, output_embedding, jnp.array([[0, 1, 0]]), where).round(3)
      Array([[0.   , 0.693, 0.   ]], dtype=float32)

    References:
      Wijmans et al., `Cut Your Losses in Large-Vocabulary Language Models <https://arxiv.org/abs/2411.09009>`_, 2024,
      on what the logits cost.
    """
    name = "next_token_cross_entropy"
    check_shapes(name, targets=(targets, "BL"), hidden=(hidden, "BLE"), output_embedding=(output_embedding, "VE"))
    check_integers(name, targets=targets)
    operand_dtype = jnp.result_type(hidden, output_embedding)
    hidden, output_embedding = (jnp.asarray(array, operand_dtype) for array in (hidden, output_embedding))
    targets = jnp.asarray(targets)
    mask = element_mask(where, targets.shape)
    batch, length = targets.shape
    n_chunks = max(1, -(-length // max(1, chunk_size // max(1, batch))))
    columns = -(-length // n_chunks)
    order = jnp.argsort(~mask, axis=1, stable=True)
    back = jnp.argsort(order, axis=1)
    ordered = [_permuted(blank(mask, array), order, back) for array in (hidden, targets)]
    chunks = (_split(array, n_chunks, columns) for array in ordered)
    # Reduced over the rows once: devices that share the batch must agree on what is left out.
    most = mask.sum(axis=1).max()
    elements = _chunked(next(chunks), output_embedding, next(chunks), jnp.arange(n_chunks) * columns < most)
    elements = elements.swapaxes(0, 1).reshape(batch, n_chunks * columns)[:, :length]
    elements = _permuted(elements, back, order)
    if token_weights is not None:
        check_shapes(name, targets=(targets, "BL"), token_weights=(token_weights, "BL"))
        elements = elements * blank(mask, jnp.asarray(token_weights, jnp.float32))
    return blank(mask, elements)


def sequence_log_probs(
    hidden: ArrayLike,
    output_embedding: ArrayLike,
    targets: ArrayLike,
    sequence_ids: ArrayLike,
    targets_mask: ArrayLike,
    *,
    sequences: int,
    chunk_size: int = 512,
) -> tuple[jax.Array, jax.Array]:
    r"""Log-probability and length of each of the texts that share a row.

    .. math::
      \log p_{bs} = \sum_{l:\, q_{bl} = s + 1,\, m_{bl}} \log \mathrm{softmax}(E h_{bl})_{y_{bl}}, \qquad
      n_{bs} = \left|\{l:\, q_{bl} = s + 1,\, m_{bl}\}\right|

    No text depends on the others of its row, nor on where it stands. Logits exist for one chunk of positions at a time,
    as in `next_token_cross_entropy`. Not a loss: what `losses.dpo` and its like read.

    Args:
      hidden: [B, L, E] final hidden states :math:`h`.
      output_embedding: [vocabulary, E] rows of the output embedding :math:`E`.
      targets: [B, L] integer tokens :math:`y` to predict, shifted by the caller.
      sequence_ids: [B, L] integers :math:`q`: 1 and up for the texts of a row, 0 for padding.
      targets_mask: [B, L] bool :math:`m`, the tokens that count: those of the completion.
      sequences: static; S, the most texts of a row.
      chunk_size: static; the number of positions in a chunk, counted over all rows of the batch.

    Returns:
      [B, S] float32 log-probabilities, 0 for a text without tokens, and [B, S] int32 lengths.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> hidden, targets = jnp.zeros((1, 4, 2)), jnp.array([[0, 1, 1, 0]])
      >>> sequence_ids, mask = jnp.array([[1, 1, 2, 0]]), jnp.array([[True, True, True, False]])
      >>> log_probs, lengths = losses.sequence_log_probs(
      ...     hidden, jnp.eye(2), targets, sequence_ids, mask, sequences=2
      ... )
      >>> print(log_probs.round(2), lengths)
      [[-1.39 -0.69]] [[2 1]]
    """
    check_shapes("sequence_log_probs", targets=(targets, "BL"), sequence_ids=(sequence_ids, "BL"))
    check_integers("sequence_log_probs", sequence_ids=sequence_ids)
    sequence_ids = jnp.asarray(sequence_ids)
    mask = element_mask(targets_mask, sequence_ids.shape, "targets_mask") & (sequence_ids > 0)
    elements = next_token_cross_entropy(hidden, output_embedding, targets, mask, chunk_size=chunk_size)
    # Compared and not scattered: this stays local where devices share the batch.
    members = mask[:, None] & (sequence_ids[:, None] == jnp.arange(1, sequences + 1)[:, None])
    return -jnp.where(members, elements[:, None], 0.0).sum(-1), members.sum(-1, dtype=jnp.int32)


@jax.custom_vjp
def _permuted(array, order, back):
    """The columns of [B, L, ...] in the order [B, L] of each row; `back` is the inverse of `order`."""
    return jnp.take_along_axis(array, order.reshape(*order.shape, *[1] * (array.ndim - 2)), axis=1)


# A gather, where the derivative of a gather would be a scatter of all hidden states.
_permuted.defvjp(
    lambda array, order, back: (_permuted(array, order, back), (order, back)),
    lambda inverse, cotangent: (_permuted(cotangent, *inverse[::-1]), None, None),
)


@jax.custom_vjp
def _chunked(hidden, output_embedding, targets, is_used):
    """[N, B, C, E], [vocabulary, E], [N, B, C], [N] -> [N, B, C] elements of N chunks, one chunk after the other."""

    def chunk(hidden, targets):
        return _elements(_logits(hidden, output_embedding), targets)[0]

    return jax.lax.map(lambda inputs: _if_used(chunk, *inputs), (is_used, hidden, targets))


def _forward(hidden, output_embedding, targets, is_used):
    """The elements, and what the backward pass needs of them.

    The gradient by a hidden state is its element's cotangent times a vector that is known here. So where the embedding
    does not learn, that vector is kept and no logit is computed twice.
    """
    learns = output_embedding.perturbed
    hidden, output_embedding, targets, is_used = (x.value for x in (hidden, output_embedding, targets, is_used))

    def chunk(hidden, targets):
        logits = _logits(hidden, output_embedding)
        elements, log_sum = _elements(logits, targets)
        if learns:
            return elements, log_sum
        return elements, _by_hidden(_slopes(logits, log_sum, targets), output_embedding)

    elements, residuals = jax.lax.map(lambda inputs: _if_used(chunk, *inputs), (is_used, hidden, targets))
    return elements, (hidden, output_embedding, targets, is_used, residuals) if learns else residuals


def _backward(residuals, cotangents):
    if not isinstance(residuals, tuple):
        return (cotangents[..., None] * residuals).astype(residuals.dtype), None, None, None
    hidden, output_embedding, targets, is_used, log_sums = residuals

    def chunk(hidden, targets, log_sum, cotangents):
        slopes = _slopes(_logits(hidden, output_embedding), log_sum, targets) * cotangents[..., None]
        # [E, vocabulary], so that the smaller factor is the one to transpose; in float32, as a bfloat16 sum over many
        # chunks would stop growing.
        by_embedding = jnp.einsum(
            "ble,blv->ev", hidden, slopes.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        return by_embedding, _by_hidden(slopes, output_embedding)

    def add_chunk(total, inputs):
        by_embedding, by_hidden = _if_used(chunk, *inputs)
        return total + by_embedding, by_hidden

    zeros = jnp.zeros(output_embedding.shape[::-1], jnp.float32)
    by_embedding, by_hidden = jax.lax.scan(add_chunk, zeros, (is_used, hidden, targets, log_sums, cotangents))
    return by_hidden, by_embedding.T.astype(output_embedding.dtype), None, None


_chunked.defvjp(_forward, _backward, symbolic_zeros=True)


def _if_used(chunk, is_used, *inputs):
    """What `chunk` makes of the inputs of a chunk; zeros where the chunk is not used."""
    shapes = jax.eval_shape(chunk, *inputs)
    return jax.lax.cond(is_used, chunk, lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), *inputs)


def _logits(hidden, output_embedding):
    """[B, C, vocabulary] float32."""
    return jnp.einsum("ble,ve->blv", hidden, output_embedding, preferred_element_type=jnp.float32)


def _hits(logits, targets):
    # Compared and not gathered or scattered: this stays local where devices share the vocabulary.
    return targets[..., None] == jnp.arange(logits.shape[-1])


def _elements(logits, targets):
    """The elements and the logarithms of the softmax's denominators."""
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.where(_hits(logits, targets), logits, 0.0).sum(-1)
    known = (targets >= 0) & (targets < logits.shape[-1])
    return jnp.where(known, log_sum - picked, jnp.nan), log_sum


def _slopes(logits, log_sum, targets):
    """The derivative of the elements by the logits: softmax less one-hot."""
    probs = jnp.exp(logits - log_sum[..., None])
    return jnp.where(_hits(logits, targets), probs - 1.0, probs)


def _by_hidden(slopes, output_embedding):
    """[B, C, E] in the precision of the operands."""
    slopes = slopes.astype(output_embedding.dtype)
    by_hidden = jnp.einsum("blv,ve->ble", slopes, output_embedding, preferred_element_type=jnp.float32)
    return by_hidden.astype(output_embedding.dtype)


def _split(array, n_chunks, columns):
    """[B, L, ...] -> [n_chunks, B, columns, ...], padded with zeros."""
    batch, length = array.shape[:2]
    padding = [(0, 0), (0, n_chunks * columns - length)] + [(0, 0)] * (array.ndim - 2)
    return jnp.pad(array, padding).reshape(batch, n_chunks, columns, *array.shape[2:]).swapaxes(0, 1)

"""The loss of language modelling, without the logits of the whole batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask, one_hot, times_log


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

    Args:
      hidden: [B, L, E] final hidden states :math:`h`.
      output_embedding: [vocabulary, E] rows of the output embedding :math:`E`.
      targets: [B, L] integer tokens :math:`y` to predict; the caller has shifted them, so that `targets[b, l]` is the
        token after the one that `hidden[b, l]` has read last.
      where: bool mask, broadcastable to [B, L]. A masked element is 0 and passes no gradient.
      token_weights: [B, L] optional factors :math:`w` of the elements.
      chunk_size: static; the number of positions in a chunk, counted over all rows of the batch. A chunk holds at least
        one position of every row.

    Returns:
      [B, L] float32 elements, in nats; NaN for an unmasked target outside the vocabulary. Logits are accumulated in
      float32 from operands in the precision of the inputs.

    Raises:
      AssertionError: at trace time, for shapes that do not agree or targets that are not integers.

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
    hidden, output_embedding, targets = (jnp.asarray(array) for array in (hidden, output_embedding, targets))
    mask = element_mask(where, targets.shape)
    operand_dtype = jnp.result_type(hidden, output_embedding)
    # In float32 outside the loop and in the operands' type inside: the loop then adds up the embedding's gradient in
    # float32, and the compiler drops the pair of casts where there is no gradient.
    embedding = output_embedding.astype(jnp.float32)

    def chunk_elements(chunk):
        hidden, targets, mask = chunk
        logits = jnp.einsum(
            "ble,ve->blv",
            blank(mask, hidden).astype(operand_dtype),
            embedding.astype(operand_dtype),
            preferred_element_type=jnp.float32,
        )
        log_probs = jax.nn.log_softmax(logits)
        return -times_log(one_hot(blank(mask, targets), log_probs.shape[-1]), log_probs).sum(-1)

    batch, length = targets.shape
    n_chunks = max(1, -(-length // max(1, chunk_size // max(1, batch))))
    columns = -(-length // n_chunks)
    chunks = jax.tree.map(lambda array: _split(array, n_chunks, columns), (hidden, targets, mask))
    # The backward pass computes a chunk's logits again instead of keeping them; inside a loop nothing can undo that, so
    # the guard against common subexpressions is not needed.
    elements = jax.lax.map(jax.checkpoint(chunk_elements, prevent_cse=False), chunks)
    elements = elements.swapaxes(0, 1).reshape(batch, n_chunks * columns)[:, :length]
    if token_weights is not None:
        check_shapes(name, targets=(targets, "BL"), token_weights=(token_weights, "BL"))
        elements = elements * blank(mask, jnp.asarray(token_weights, jnp.float32))
    return blank(mask, elements)


def _split(array, n_chunks, columns):
    """[B, L, ...] -> [n_chunks, B, columns, ...], padded with zeros; padding is masked, as False is the mask's zero."""
    batch, length = array.shape[:2]
    padding = [(0, 0), (0, n_chunks * columns - length)] + [(0, 0)] * (array.ndim - 2)
    return jnp.pad(array, padding).reshape(batch, n_chunks, columns, *array.shape[2:]).swapaxes(0, 1)

"""Losses on representations: of the rationale, of the pair read with and without it, of query and item by dimension."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask
from jax_rele.types import VERDICTS


def rationale_mse(latent: ArrayLike, rationale_embedding: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    r"""Mean squared error of the student's latent reasoning against an embedding of the teacher's rationale.

    .. math::
      \ell_b = \frac{1}{R} \sum_r (h_{br} - e_{br})^2

    Args:
      latent: [B, R] output :math:`h` of the student's latent-reasoning extractor.
      rationale_embedding: [B, R] embedding :math:`e` of the rationale. NaN where the teacher gave none, which the mask
        must cover.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.

    Returns:
      [B] float32 elements.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> losses.rationale_mse(jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([[0.0, 1.0], [0.6, 0.8]]))
      Array([1., 0.], dtype=float32)

    References:
      Qiu et al., `Thinking Broad, Acting Fast: Latent Reasoning Distillation from Multi-Perspective Chain-of-Thought
      for E-Commerce Relevance <https://arxiv.org/abs/2601.21611>`_, 2026.
    """
    check_shapes("rationale_mse", latent=(latent, "BR"), rationale_embedding=(rationale_embedding, "BR"))
    mask = element_mask(where, jnp.shape(latent)[:1])
    student, teacher = (blank(mask, jnp.asarray(array, jnp.float32)) for array in (latent, rationale_embedding))
    return ((student - teacher) ** 2).mean(-1)


def rationale_contrast(
    representation: ArrayLike,
    augmented_representation: ArrayLike,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 0.05,
    stop_gradient: bool = True,
) -> jax.Array:
    r"""InfoNCE between the student's view of a pair and its view of the same pair read together with the rationale.

    With :math:`r_b` the representation of the plain input, :math:`a_b` that of the input with the rationale appended,
    and :math:`M` the valid pairs of the batch:

    .. math::
      \ell_b = -\log \frac{\exp(\cos(r_b, a_b) / T)}{\sum_{j \in M} \exp(\cos(r_b, a_j) / T)}

    The student that has read the rationale teaches the student that has not. Published: that the two are aligned by
    InfoNCE. Ours: cosines, the other rows of the batch as negatives, the temperature and the stopped gradient. It
    compares all rows with all: memory and time are O(B²).

    Args:
      representation: [B, W] representation :math:`r` of the plain input.
      augmented_representation: [B, W] representation :math:`a` of the input with the rationale appended.
      where: bool mask, broadcastable to [B]. A masked pair is nobody's negative; its element is 0, without gradient.
      temperature: :math:`T > 0`.
      stop_gradient: whether the augmented side is a fixed target. Without it both sides move towards each other.

    Returns:
      [B] float32 elements, in nats; 0 for the only valid pair of a batch.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> representation = jnp.array([[1.0, 0.0], [1.0, 0.0]])
      >>> losses.rationale_contrast(representation, jnp.array([[2.0, 0.0], [0.0, 2.0]]), temperature=0.5).round(3)
      Array([0.127, 2.127], dtype=float32)

    References:
      Xia et al., `From Reasoning LLMs to BERT: A Two-Stage Distillation Framework for Search Relevance
      <https://arxiv.org/abs/2510.11056>`_, 2025; van den Oord et al., `Representation Learning with Contrastive
      Predictive Coding <https://arxiv.org/abs/1807.03748>`_, 2018 (InfoNCE).
    """
    check_shapes(
        "rationale_contrast",
        representation=(representation, "BW"),
        augmented_representation=(augmented_representation, "BW"),
    )
    mask = element_mask(where, jnp.shape(representation)[:1])
    plain, augmented = (
        _unit(blank(mask, jnp.asarray(array, jnp.float32))) for array in (representation, augmented_representation)
    )
    if stop_gradient:
        augmented = jax.lax.stop_gradient(augmented)
    cosines = jnp.einsum("iw,jw->ij", plain, augmented, precision="highest") / temperature
    own = (plain * augmented).sum(-1) / temperature
    return blank(mask, _info_nce(own, cosines, mask[None, :] & ~jnp.eye(len(mask), dtype=bool)))


def view_contrast(
    query_views: ArrayLike,
    item_views: ArrayLike,
    verdict_probs: ArrayLike,
    segments: ArrayLike,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 0.05,
) -> jax.Array:
    r"""InfoNCE of every dimension's views, with the items that the teacher found to mismatch as hard negatives.

    On dimension :math:`d`, let pair :math:`b` be one whose verdict is `match`, and :math:`N_{bd}` the valid pairs of
    its query whose verdict is `mismatch`:

    .. math::
      \ell_{bd} = -\log \frac{\exp(u_{bd} \cdot v_{bd} / T)}
      {\exp(u_{bd} \cdot v_{bd} / T) + \sum_{j \in N_{bd}} \exp(u_{bd} \cdot v_{jd} / T)}

    The query's view on the brand comes to lie by the items of that brand, away from those of another. The teacher's
    verdicts are its most probable ones. It compares all pairs with all: memory and time are O(B² D). Our construction,
    in the manner of supervised contrastive learning.

    Args:
      query_views: [B, D, K] unit vectors :math:`u`, the query's view on each dimension.
      item_views: [B, D, K] unit vectors :math:`v`, the item's.
      verdict_probs: [B, D, V] verdict distribution of the teacher, in the order of `types.VERDICTS`. NaN where the
        teacher gave no verdict, which the mask must cover.
      segments: [B] integers, equal for the pairs of one query.
      where: bool mask, broadcastable to [B, D]. A masked element is nobody's negative; it is 0, without gradient.
      temperature: :math:`T > 0`.

    Returns:
      [B, D] float32 elements, in nats; 0 where the verdict is no match or the query has no mismatch.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> query_views = jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]])  # one dimension
      >>> item_views = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
      >>> verdict_probs = jnp.array([[[0.9, 0.1, 0.0]], [[0.2, 0.7, 0.1]]])  # a match and a mismatch
      >>> losses.view_contrast(query_views, item_views, verdict_probs, jnp.array([7, 7]), temperature=0.5).round(3)
      Array([[0.127],
             [0.   ]], dtype=float32)

    References:
      Khosla et al., `Supervised Contrastive Learning <https://arxiv.org/abs/2004.11362>`_, 2020; van den Oord et al.,
      `Representation Learning with Contrastive Predictive Coding <https://arxiv.org/abs/1807.03748>`_, 2018.
    """
    check_shapes(
        "view_contrast",
        query_views=(query_views, "BDK"),
        item_views=(item_views, "BDK"),
        verdict_probs=(verdict_probs, "BDV"),
        segments=(segments, "B"),
    )
    check_integers("view_contrast", segments=segments)
    segments = jnp.asarray(segments)
    mask = element_mask(where, jnp.shape(query_views)[:2])
    query, item, teacher = (
        blank(mask, jnp.asarray(array, jnp.float32)) for array in (query_views, item_views, verdict_probs)
    )
    verdict = teacher.argmax(-1)
    match, mismatch = (mask & (verdict == VERDICTS.index(name)) for name in ("match", "mismatch"))
    same = segments[:, None] == segments[None, :]
    negatives = same[:, None, :] & match[:, :, None] & mismatch.T[None]
    products = jnp.einsum("idk,jdk->idj", query, item, precision="highest") / temperature
    elements = blank(negatives.any(-1), _info_nce((query * item).sum(-1) / temperature, products, negatives))
    # The most probable of NaN would be a verdict like any other.
    return jnp.where(jnp.isnan(teacher).any(-1), jnp.nan, elements)


def _unit(vectors):
    """Rows of length 1; a row of zeros stays, with a finite gradient."""
    squares = (vectors**2).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def _info_nce(positive, similarities, negatives):
    """Cross entropy of the positive [*E] among itself and the `negatives` of the similarities [*E, B]."""
    candidates = jnp.concatenate([positive[..., None], similarities], axis=-1)
    among = jnp.concatenate([jnp.ones_like(negatives[..., :1]), negatives], axis=-1)
    return jax.nn.logsumexp(candidates, axis=-1, where=among) - positive

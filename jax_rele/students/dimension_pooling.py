"""What a student reads of a text, or of a pair, on each dimension."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_rele.models.encoder import dense


class DimensionPooling(nn.Module):
    """For each dimension a linear map of a weighted mean of the tokens, with weights of the dimension's own.

    With x_l the token vectors and a_d, W_d the dimension's parameters: y_d = W_d sum_l softmax_l(a_d . x_l) x_l.
    One vector for all dimensions, e.g. the pooled one, must hold what every dimension needs at once, and is learnt
    later (docs/studies/attribute_world.md).

    Attributes:
      dimensions: D.
      features: width of the output for a dimension (F).
      dtype: of the attention scores and the pooled vectors.
    """

    dimensions: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """[B, L, W] token vectors and [B, L] bool, False for padding -> [B, D, F] float32."""
        scores = dense(self.dimensions, ("embed", "head"), "scores", self.dtype)(x).astype(jnp.float32)
        # Not -inf, of which a row without tokens would make NaN.
        weights = jax.nn.softmax(jnp.where(valid[..., None], scores, jnp.finfo(jnp.float32).min), axis=1)
        pooled = jnp.einsum("bld,blw->bdw", weights.astype(x.dtype), x).astype(jnp.float32)
        init = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0), ("dimension", "embed", "head")
        )
        kernel = cast(jax.Array, self.param("kernel", init, (self.dimensions, x.shape[-1], self.features)))
        return jnp.einsum("bdw,dwf->bdf", pooled, kernel)

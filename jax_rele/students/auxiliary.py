"""A representation that a main and an auxiliary task read, where the auxiliary one cannot overrule the main one."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def auxiliary_branch(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` for the main task and `x` for an auxiliary one, whose gradient is limited by the main one's, row by row.

    With m and a the gradients of a row by the two tasks, x receives m + s p: p is a without its component against m
    (gradient surgery: Yu et al., arXiv 2001.06782), and s scales it to at most the norm of m (gradient balancing:
    He et al., MetaBalance, arXiv 2203.06801). Both papers take gradients of the parameters; here they are those of the
    shared representation (as in Sener and Koltun, arXiv 1810.04650), so one backward pass is enough. A row without a
    gradient by the main task, e.g. a pair without label and score, receives a as it is.

    Rows are treated apart, so a batch gives the same gradients however it is divided over devices or micro-batches.

    Args:
      x: [B, ...].

    Returns:
      x twice: the first is for the main task.
    """
    return x, x


def _forward(x: jax.Array):
    return (x, x), None


def _backward(_, gradients: tuple[jax.Array, jax.Array]):
    main, auxiliary = (gradient.astype(jnp.float32) for gradient in gradients)

    def inner_product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)

    squared = inner_product(main, main)
    has_main = squared > 0
    against = jnp.minimum(inner_product(main, auxiliary), 0.0)
    limited = auxiliary - jnp.where(has_main, against / jnp.where(has_main, squared, 1.0), 0.0) * main
    length = inner_product(limited, limited)
    ratio = jnp.sqrt(squared / jnp.where(length > 0, length, 1.0))
    scale = jnp.where(has_main & (length > 0), jnp.minimum(ratio, 1.0), 1.0)
    return ((main + scale * limited).astype(gradients[0].dtype),)


auxiliary_branch.defvjp(_forward, _backward)

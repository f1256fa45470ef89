"""Splash attention: JAX's Pallas kernel for TPUs, with the layout, masks and meshes of this package.

Scores stay in on-chip memory, and blocks that the causal or window mask rules out are skipped. Pallas calls
are not partitioned by the compiler, so under a mesh each device runs the kernel on its own rows and heads.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jax_rele.errors import UserError
from jax_rele.models.partitioning import RULES

VECTOR_WIDTH = 128
"""A TPU's vector width; the kernel's blocks are multiples of it."""

BLOCK = 512
"""Most rows and columns of a block of scores. It keeps the kernel within a few MiB of on-chip memory."""


def block_sizes(length: int) -> tuple[int, int]:
    """(block, padded length): the fewest equal blocks that cover `length`.

    A block is a multiple of `VECTOR_WIDTH` and at most `BLOCK`.
    """
    count = -(-length // BLOCK)
    block = VECTOR_WIDTH * -(-length // (count * VECTOR_WIDTH))
    return block, count * block


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    window: int = 0,
    segments: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Causal scaled dot-product attention by the splash kernel; on a CPU the same kernel is interpreted, which is slow.

    The choice is made when a program is lowered, so a CPU host that compiles for a TPU slice gets the compiled kernel.

    Args:
      query: [B, L, H, head_dim].
      key, value: [B, L, K, head_dim], where K divides H.
      window: where > 0, a query sees only the keys less than this many positions before it.
      segments: ([B, L], [B, L]) int, of queries and keys. A query sees only keys of its own segment.

    Returns:
      [B, L, H, head_dim].

    Raises:
      UserError: the mesh splits heads that do not divide, or the devices are GPUs.
    """
    if jax.default_backend() == "gpu":
        raise UserError("attention: splash is a kernel for TPUs; on a GPU set teacher.attention to cudnn or xla")
    local = partial(_on_one_device, window=window)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(query, key, value, segments)
    rows, heads = (tuple(axis for axis in _mesh_axes(name) if axis in mesh.shape) for name in ("batch", "heads"))
    parts = math.prod(mesh.shape[axis] for axis in heads)
    for name, count in (("query", query.shape[2]), ("key and value", key.shape[2])):
        if count % parts:
            raise UserError(
                f"mesh: {count} {name} heads do not divide over tensor = {parts}; change `mesh` in the config"
            )
    if query.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        rows = ()  # Too few rows to split, e.g. when a model is initialised: every device computes all of them.
    split = PartitionSpec(rows, None, heads)
    ids = None if segments is None else (PartitionSpec(rows), PartitionSpec(rows))
    mapped = jax.shard_map(local, in_specs=(split, split, split, ids), out_specs=split, check_vma=False)
    return mapped(query, key, value, segments)


def _mesh_axes(name: str) -> tuple[str, ...]:
    axes = dict(RULES)[name]
    return (axes,) if isinstance(axes, str) else axes or ()


def _on_one_device(query, key, value, segments, *, window):
    length, head_dim = query.shape[1], query.shape[3]
    block, padded = block_sizes(length)

    def prepare(x):
        # The kernel takes [heads, length, head_dim]. Padding keys come after every query or have segment -1.
        return jnp.pad(x, ((0, 0), (0, padded - length), (0, 0), (0, 0))).swapaxes(1, 2)

    # The kernel does not scale the scores. The product is rounded once; a scale in bfloat16 would shift every score.
    query = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    query, key, value = prepare(query), prepare(key), prepare(value)
    if segments is not None:
        fill = ((0, 0), (0, padded - length))
        segments = tuple(jnp.pad(ids.astype(jnp.int32), fill, constant_values=-1) for ids in segments)
    run = partial(_kernel, window=window, block=block)
    out = jax.lax.platform_dependent(
        query, key, value, segments, cpu=partial(run, interpret=True), tpu=partial(run, interpret=False)
    )
    return out.swapaxes(1, 2)[:, :length]


def _kernel(query, key, value, segments, *, window, block, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, length = query.shape[1:3]
    shape = (length, length)
    mask = splash.LocalMask(shape, (window - 1, 0), 0) if window else splash.CausalMask(shape)
    blocks = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(blocks, block)),
        interpret=interpret,
    )
    ids = None if segments is None else splash.SegmentIds(*segments)
    return jax.vmap(kernel)(query, key, value, ids)

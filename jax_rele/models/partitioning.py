"""One table from the logical axes of parameters and activations to the axes of a mesh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from flax import linen as nn

from jax_rele.errors import UserError
from jax_rele.types import PyTree

AXES = ("data", "fsdp", "tensor")
"""The axes of a mesh."""

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    *((name, None) for name in ("length", "embed_activation", "embed_out", "embedding", "dimension", "head")),
    *((name, None) for name in ("head_dim", "layers", "lora_rank", "position", "token_type")),
)
"""Logical axis -> mesh axes; None: not split."""


@contextmanager
def use(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Sets the mesh and the rules for every trace inside the block."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def shardings(boxed: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """The sharding of every leaf of a tree whose arrays (or their shapes) carry logical axis names.

    Raises:
      UserError: the devices of a mesh axis do not divide an axis of an array that is split over them.
    """
    tree = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(tree)):
        leaf = leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf
        for size, axes in zip(leaf.shape, sharding.spec):
            names = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[name] for name in names)
            if size % parts:
                raise UserError(
                    f"mesh: {' x '.join(names)} = {parts} devices do not divide an axis of {size} in "
                    f"{jax.tree_util.keystr(path, simple=True, separator='/')}; change `mesh` in the config"
                )
    return tree


def check_heads(model: str, heads: int, kv_heads: int, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where a head would be split over devices; `model` is its name in the message."""
    tensor = mesh.shape["tensor"]
    for name, count in (("heads", heads), ("kv_heads", kv_heads)):
        if count % tensor:
            raise UserError(
                f"mesh: tensor = {tensor} devices do not divide the {model}'s {count} {name}; change `mesh.tensor`"
            )

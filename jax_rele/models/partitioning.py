"""One table from the logical axes of parameters and activations to the axes of a mesh."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any

import jax
from flax import linen as nn

from jax_rele.errors import UserError

AXES = ("data", "fsdp", "tensor")
"""The axes of a mesh."""

RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("length", None),
    ("embed_activation", None),
    ("embed_out", None),
    ("embedding", None),
    ("dimension", None),
    ("head", None),
    ("head_dim", None),
    ("layers", None),
    ("lora_rank", None),
    ("position", None),
    ("token_type", None),
)
"""Logical axis -> mesh axes. The only place where the two meet."""


@contextmanager
def use(mesh: jax.sharding.Mesh):
    """Makes the mesh and the rules those of every trace inside."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def shardings(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
    """The sharding of every leaf of a tree whose arrays (or their shapes) carry logical axis names.

    Raises:
      UserError: the devices of a mesh axis do not divide an axis that is split over them.
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
    """Raises UserError where a head of the model, which the message calls `model`, would be split over devices."""
    tensor = mesh.shape["tensor"]
    for name, count in (("heads", heads), ("kv_heads", kv_heads)):
        if count % tensor:
            raise UserError(
                f"mesh: tensor = {tensor} devices do not divide the {model}'s {count} {name}; change `mesh.tensor`"
            )

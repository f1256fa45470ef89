"""What a PEFT folder changes in the base itself: modules that are saved whole, adapters on the embeddings.

Adapters on the two embeddings are merged into them, which computes the same. Where a base whose output embedding is its
input embedding gets another one of them, the two part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele.errors import UserError
from jax_rele.models.decoder import DecoderConfig
from jax_rele.models.files import JsonObject, Tensor
from jax_rele.models.quantize import is_quantized
from jax_rele.models.tables import DECODER, WeightRow
from jax_rele.types import Params, PyTree

PREFIX = "base_model.model."
EMBEDDINGS = {"embedding": "model.embed_tokens", "output_embedding": "lm_head"}
"""Path of each embedding -> its module in torch."""

FACTORS = {
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "output_embedding": ("lora_A.weight", "lora_B.weight"),
}
"""Path of each embedding -> the names of its adapter's factors, [r, in] and [out, r] as torch has them."""


@dataclasses.dataclass(frozen=True)
class EmbeddingAdapter:
    """An adapter on an embedding: its rank, and the scale of its product."""

    rank: int
    scale: float


@dataclasses.dataclass(frozen=True)
class BaseChanges:
    """What a folder changes in the base.

    Attributes:
      saved: tensor of the folder -> (its row of the table, layer), of modules that are saved whole.
      adapters: path of an embedding -> its adapter.
      bases: path of an embedding -> the tensor that replaces it before its adapter, where the folder holds one.
    """

    saved: Mapping[str, tuple[WeightRow, int]]
    adapters: Mapping[str, EmbeddingAdapter]
    bases: Mapping[str, str]

    @property
    def tensors(self) -> list[str]:
        """The names of all tensors."""
        names = [f"{PREFIX}{EMBEDDINGS[path]}.{factor}" for path in self.adapters for factor in FACTORS[path]]
        return [*self.saved, *self.bases.values(), *names]

    @property
    def modules(self) -> list[str]:
        """The modules, for messages."""
        saved = {row.name.format("*").rpartition(".")[0] for row, _ in self.saved.values()}
        return sorted(saved | {EMBEDDINGS[path] for path in self.adapters})


def find_changes(
    where: Path,
    raw: JsonObject,
    config: DecoderConfig,
    tensors: Mapping[str, Tensor],
    adapters: Mapping[str, EmbeddingAdapter],
) -> BaseChanges:
    """What a folder with these tensors changes in the base.

    Raises:
      UserError: `modules_to_save` names a module that the base does not have, or the base's tie of embeddings would
        need what is not implemented.
    """
    names = raw.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: key modules_to_save is {names!r:.60}; it must be a list of names")
    saved: dict[str, tuple[WeightRow, int]] = {}
    for name in names:
        rows_of_name = {
            f"{PREFIX}{tensor}": (row, layer)
            for row in DECODER.rows
            if _is_in_model(row, config)
            for layer, tensor in enumerate(row.names(config.layers))
            if _is_module(tensor.rpartition(".")[0], name)
        }
        if not rows_of_name:
            raise UserError(f"{where}: key modules_to_save names {name!r:.60}, which the model does not have")
        saved |= rows_of_name
    if raw.get("ensure_weight_tying") and (head := f"{PREFIX}lm_head.weight") in tensors:
        # A copy of the input embedding, to which it was tied.
        saved[head] = next((row, 0) for row in DECODER.rows if row.path == "output_embedding")
    bases = {path: f"{PREFIX}{EMBEDDINGS[path]}.base_layer.weight" for path in EMBEDDINGS}
    changes = BaseChanges(saved, adapters, {path: name for path, name in bases.items() if name in tensors})
    if config.tied and raw.get("ensure_weight_tying") and adapters:
        raise UserError(
            f"{where}: key ensure_weight_tying is True beside an adapter on {', '.join(changes.modules)}; merge it "
            "into the base with PEFT"
        )
    return changes


def _is_in_model(row: WeightRow, config: DecoderConfig) -> bool:
    has_bias = {"q_proj": config.qkv_bias, "k_proj": config.qkv_bias, "v_proj": config.qkv_bias}
    has_bias |= {"o_proj": config.output_bias, "mlp": config.mlp_bias}
    if row.path.endswith("/bias"):
        return any(applies for part, applies in has_bias.items() if part in row.path.split("/"))
    return config.qk_norm or row.path.split("/")[-2:][0] not in ("q_norm", "k_norm")


def _is_module(module: str, name: str) -> bool:
    """Whether a module's name ends with the name, as `peft` compares them, or it is inside such a module."""
    parts = module.split(".")
    return any(".".join(parts[: end + 1]).endswith(name) for end in range(len(parts)))


def check_shapes(where: Path, changes: BaseChanges, config: DecoderConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError where the adapter of an embedding, or what replaces it, has another shape than the model's."""
    vocab, width = config.vocab_size, config.width
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(changes.bases.values(), (vocab, width))
    for path, adapter in changes.adapters.items():
        first, second = (f"{PREFIX}{EMBEDDINGS[path]}.{factor}" for factor in FACTORS[path])
        inner, outer = (vocab, width) if path == "embedding" else (width, vocab)
        expected |= {first: (adapter.rank, inner), second: (outer, adapter.rank)}
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{tensors[name].file}: tensor {name} is {list(tensors[name].shape)} but the config and the model say "
                f"{list(shape)}; the adapter is for another model"
            )


def change_base(
    config: DecoderConfig, params: Params, changes: BaseChanges, tensors: Mapping[str, Tensor], tie: bool
) -> tuple[DecoderConfig, dict[str, PyTree]]:
    """The config and the parameters of the base with the changes.

    Args:
      config, params: of the base.
      changes, tensors: of the folder.
      tie: whether a saved input embedding is the output embedding of a base that ties them.

    Raises:
      UserError: a tensor has another shape than the parameter, or the parameter is quantized.
    """
    result: dict[str, PyTree] = dict(params)
    outputs = {"output_embedding"} & ({row.path for row, _ in changes.saved.values()} | changes.adapters.keys())
    inputs = {"embedding"} & ({row.path for row, _ in changes.saved.values()} | changes.adapters.keys())
    if config.tied and (outputs or inputs) and not (tie and inputs and not outputs):
        config = dataclasses.replace(config, tied=False)
        result["output_embedding"] = result["embedding"]
    for path, name in changes.bases.items():
        if path in result:
            result[path] = _values(tensors[name]).astype(result[path].dtype)
    for name, (row, layer) in changes.saved.items():
        _replace(result, row, layer, tensors[name])
    for path, adapter in changes.adapters.items():
        first, second = (_values(tensors[f"{PREFIX}{EMBEDDINGS[path]}.{factor}"]) for factor in FACTORS[path])
        delta = first.T @ second.T if path == "embedding" else second @ first
        leaf = result[path]
        result[path] = (leaf.astype(jnp.float32) + adapter.scale * delta).astype(leaf.dtype)
    return config, result


def _values(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.values[:], np.float32)


def _replace(params: dict[str, PyTree], row: WeightRow, layer: int, tensor: Tensor) -> None:
    """Sets one parameter, or one layer of it, in a nested dict whose inner dicts are copied."""
    *folders, leaf_name = row.path.split("/")
    holder: dict[str, PyTree] = params
    for folder in folders:
        holder[folder] = dict(holder[folder])
        holder = holder[folder]
    leaf: jax.Array = holder[leaf_name]
    if is_quantized(leaf):
        raise UserError(f"{tensor.file}: {row.path} is quantized and the folder replaces it; load the base as it is")
    values = _values(tensor)
    values = (values.T if leaf_name == "kernel" else values).astype(leaf.dtype)
    shape: Sequence[int] = leaf.shape[1:] if "{}" in row.name else leaf.shape
    if values.shape != tuple(shape):
        raise UserError(
            f"{tensor.file}: a saved module of {list(values.shape)} stands for {row.path} of {list(shape)}; the folder "
            "is for another model"
        )
    holder[leaf_name] = leaf.at[layer].set(values) if "{}" in row.name else jnp.asarray(values)

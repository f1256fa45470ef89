"""Weights of open models: one table between the tensors of a Hugging Face folder and the decoder's parameters.

Every tensor is used exactly once or named in an error. Loading reads just the slices that each device holds, straight
into its sharding and dtype; writing gathers one block at a time. Neither holds a second copy of the model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from jax_rele.errors import UserError
from jax_rele.models.decoder import Decoder, DecoderConfig
from jax_rele.models.families import TOKENS, decoder_config, hf_config
from jax_rele.models.files import BLOCK, Outgoing, Tensor, check_names, open_tensors, read_json, resolve, write_folder
from jax_rele.models.lora import COLLECTION, merge
from jax_rele.models.partitioning import shardings
from jax_rele.models.quantize import is_quantized

NEEDED = ("config.json", "model*.safetensors", "model.safetensors.index.json")
"""Files of a hub's repository that `from_hf` reads."""

SIDE_FILES = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)
"""Files beside the weights that a model needs to be used."""

TABLE = (
    ("embedding", "model.embed_tokens.weight"),
    *(
        (f"layers/{ours}", f"model.layers.{{}}.{theirs}")
        for ours, theirs in (
            ("input_norm/scale", "input_layernorm.weight"),
            *(
                (f"attention/{name}/{leaf}", f"self_attn.{name}.{tensor}")
                for name in ("q_proj", "k_proj", "v_proj", "o_proj")
                for leaf, tensor in (("kernel", "weight"), ("bias", "bias"))
            ),
            *((f"attention/{name}/scale", f"self_attn.{name}.weight") for name in ("q_norm", "k_norm")),
            ("mlp_norm/scale", "post_attention_layernorm.weight"),
            *(
                (f"mlp/{name}/{leaf}", f"mlp.{name}.{tensor}")
                for name in ("gate_proj", "up_proj", "down_proj")
                for leaf, tensor in (("kernel", "weight"), ("bias", "bias"))
            ),
        )
    ),
    ("final_norm/scale", "model.norm.weight"),
    ("output_embedding", "lm_head.weight"),
)
"""Our path, their name. Under `layers/` ours stacks what they number; a `kernel` is [in, out], theirs [out, in]."""

COMPUTED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
"""Tensors of older folders that follow from the config."""


@dataclass(frozen=True)
class Parameter:
    """A row of the table for one model.

    Attributes:
      path: ours.
      pattern: their name, with `{}` for the layer's number.
      shape: ours, [layers, ...] where stacked.
    """

    path: str
    pattern: str
    shape: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Their names, by layer."""
        return [self.pattern.format(layer) for layer in range(self.shape[0])] if self.stacked else [self.pattern]

    @property
    def stacked(self) -> bool:
        return "{}" in self.pattern

    @property
    def transposed(self) -> bool:
        return self.path.endswith("/kernel")

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Of each of their tensors."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def _boxed(config: DecoderConfig) -> dict[str, Any]:
    """The base parameters' shapes with their logical axes."""
    model = Decoder(dataclasses.replace(config, lora=None))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]


def _parameters(config: DecoderConfig) -> list[Parameter]:
    """The rows of the table that a model has, in their order."""
    shapes = {path: leaf.shape for path, leaf in flatten_dict(nn.unbox(_boxed(config)), sep="/").items()}
    if unknown := shapes.keys() - dict(TABLE).keys():
        raise ValueError(f"no Hugging Face name for {', '.join(sorted(unknown))}")
    return [Parameter(path, pattern, shapes[path]) for path, pattern in TABLE if path in shapes]


# ---- loading


def from_hf(
    source: str | Path, *, dtype: Any, mesh: jax.sharding.Mesh | None = None, **overrides: Any
) -> tuple[Decoder, dict[str, Any]]:
    """An open model, ready to run.

    Args:
      source: a folder in the Hugging Face form (config.json and safetensors), or `hf:ORG/NAME` on the hub.
      dtype: of parameters and activations, e.g. `jnp.bfloat16`; norms, softmax and rotations are computed in float32.
      mesh: where the parameters live, sharded by `partitioning.RULES`. None: on the default device.
      overrides: fields of `DecoderConfig` that say how it is computed, e.g. `attention`, `remat`, `lora`.

    Returns:
      The decoder and `{"params": ...}`. Adapters, where `lora` is given, are the caller's to make or load.

    Raises:
      UserError: the config is not supported, a file is missing or damaged, or the tensors are not the config's. All of
        this is found before a value is read.
    """
    folder = resolve(source, NEEDED)
    config = decoder_config(folder, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype), **overrides)
    return Decoder(config), {"params": load_params(folder, config, mesh)}


def load_params(source: str | Path, config: DecoderConfig, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """The base parameters of `config` from a folder or the hub; see `from_hf`."""
    parameters = _parameters(config)
    tensors = _checked(resolve(source, NEEDED), parameters, config)
    if mesh is None:
        placed = dict.fromkeys(parameter.path for parameter in parameters)
    else:
        placed = flatten_dict(shardings(_boxed(config), mesh), sep="/")
    return unflatten_dict(
        {
            parameter.path: _load(parameter, tensors, jnp.dtype(config.param_dtype), placed[parameter.path])
            for parameter in parameters
        },
        sep="/",
    )


def check_weights(source: str | Path, config: DecoderConfig) -> None:
    """Raises UserError where the tensors of a folder are not those of `config`; reads their headers alone."""
    _checked(resolve(source, NEEDED), _parameters(config), config)


def _checked(folder: Path, parameters: list[Parameter], config: DecoderConfig) -> dict[str, Tensor]:
    """The folder's tensors, after every check that headers allow."""
    tensors = open_tensors(folder)
    expected = {name: parameter for parameter in parameters for name in parameter.names}
    head, embedding = dict(TABLE)["output_embedding"], dict(TABLE)["embedding"]
    repeated = config.tied and head in tensors
    optional = {head} if repeated else set()
    used = [name for name in tensors if name not in optional and not COMPUTED.fullmatch(name)]
    check_names(folder, "config.json", expected, used)
    for name, parameter in expected.items():
        tensor = tensors[name]
        if tensor.shape != parameter.their_shape:
            raise UserError(
                f"{tensor.file}: tensor {name} is {list(tensor.shape)} but config.json says "
                f"{list(parameter.their_shape)}; fetch both from one model"
            )
        if tensor.dtype not in ("F32", "F16", "BF16", "F64"):
            raise UserError(
                f"{tensor.file}: tensor {name} is {tensor.dtype}; quantised weights are not read, "
                "give the model in bfloat16 or float32"
            )
    if repeated and not _equal(tensors[head], tensors[embedding]):
        raise UserError(
            f"{tensors[head].file}: tensor {head} differs from {embedding} though config.json says "
            "tie_word_embeddings; set that to false to use both"
        )
    return tensors


def _equal(a: Tensor, b: Tensor) -> bool:
    rows = _rows_per_block(a.shape, 4)
    blocks = (slice(start, min(start + rows, a.shape[0])) for start in range(0, a.shape[0], rows))
    return a.shape == b.shape and all(np.array_equal(a.values[block], b.values[block]) for block in blocks)


def _rows_per_block(shape: tuple[int, ...], itemsize: int) -> int:
    return max(1, BLOCK // max(1, int(np.prod(shape[1:])) * itemsize))


def _load(
    parameter: Parameter, tensors: Mapping[str, Tensor], dtype: np.dtype, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """One parameter in its place. Each distinct shard is read once, whatever the number of devices that hold it."""
    if sharding is None:
        everything = tuple(slice(0, size) for size in parameter.shape)
        return jax.block_until_ready(jax.device_put(_read(parameter, tensors, dtype, everything)))
    holders: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(parameter.shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, parameter.shape))
        holders.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in holders.items():
        values = _read(parameter, tensors, dtype, tuple(slice(*ends) for ends in bounds))
        # Awaited, so that the buffer is gone before the next is filled.
        shards += jax.block_until_ready([jax.device_put(values, device) for device in devices])
    return jax.make_array_from_single_device_arrays(parameter.shape, sharding, shards)


def _read(parameter: Parameter, tensors: Mapping[str, Tensor], dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a parameter, filled block by block."""
    values = _aligned(tuple(part.stop - part.start for part in index), dtype)
    if not parameter.stacked:
        _fill(values, tensors[parameter.pattern], index)
        return values
    for place, layer in enumerate(range(index[0].start, index[0].stop)):
        inner, target = index[1:], values[place]
        if parameter.transposed:
            inner, target = inner[::-1], target.T
        _fill(target, tensors[parameter.pattern.format(layer)], inner)
    return values


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that JAX's CPU backend takes over as it is, where it would copy one that is not aligned."""
    size, alignment = int(np.prod(shape)) * dtype.itemsize, 64
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)


def _fill(target: np.ndarray, tensor: Tensor, index: tuple[slice, ...]) -> None:
    rows, *columns = index
    step = _rows_per_block(target.shape, 4)
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        target[start - rows.start : stop - rows.start] = tensor.values[(slice(start, stop), *columns)]


# ---- writing


def to_hf(
    model: Decoder,
    variables: Mapping[str, Any],
    path: str | Path,
    *,
    source: str | Path | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Writes a folder that `from_hf` and torch `transformers` load. It appears whole or not at all.

    Every process of a run calls it; the first one writes.

    Args:
      model: the decoder.
      variables: `params`, and `lora` where adapters are to be merged into the weights that are written.
      path: the folder; it must not exist or be empty.
      source: the folder of the model that this one was made from, or of its tokenizer; tokenizer, chat template,
        generation config and token ids that are there are copied. None: these are the caller's.
      max_shard_size: bytes of a weights file.

    Raises:
      UserError: `path` is not empty, or `source` is no folder.
    """
    config = model.config
    raw = hf_config(config)
    files: dict[str, dict[str, Any] | Path] = {"config.json": raw}
    if source is not None:
        folder = resolve(source, ("config.json", *SIDE_FILES))
        known = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        raw.update({key: known[key] for key in TOKENS if key in known})
        files.update({file.name: file for pattern in SIDE_FILES for file in folder.glob(pattern) if file.is_file()})
    write_folder(path, files, _outgoing(config, variables), max_shard_size=max_shard_size)


def _outgoing(config: DecoderConfig, variables: Mapping[str, Any]) -> list[Outgoing]:
    """Every tensor to write, in the table's order, by name."""
    params = flatten_dict(nn.unbox(variables["params"]), sep="/")
    lora = flatten_dict(nn.unbox(variables.get(COLLECTION, {})), sep="/")
    if any(map(is_quantized, params.values())):
        raise ValueError("quantized weights have no form there: restore the base with `dequantize_params` first")
    parameters = _parameters(config)
    if {path: leaf.shape for path, leaf in params.items()} != {each.path: each.shape for each in parameters}:
        raise ValueError("params are not those of the model's config")
    if lora and config.lora is None:
        raise ValueError("variables hold adapters but the model's config has no LoraSpec")
    kernels = {path.removesuffix("kernel") for path in params if path.endswith("/kernel")}
    if unknown := lora.keys() - {module + name for module in kernels for name in ("a", "b")}:
        raise ValueError(f"adapters for what the model does not have: {', '.join(sorted(unknown))}")
    tensors = []
    for parameter in parameters:
        module = parameter.path.removesuffix("kernel")
        adapter = {name: lora[module + name] for name in ("a", "b") if module in kernels and module + name in lora}
        for layer, name in enumerate(parameter.names):
            tensors.append(
                Outgoing(
                    name,
                    parameter.their_shape,
                    jnp.dtype(config.param_dtype),
                    partial(_blocks, parameter, layer, params[parameter.path], adapter, config),
                )
            )
    return tensors


def _blocks(
    parameter: Parameter, layer: int, leaf: jax.Array, adapter: dict[str, jax.Array], config: DecoderConfig
) -> Iterator[np.ndarray]:
    """One of their tensors on this host, in blocks along the first axis."""
    if not parameter.stacked:
        rows = _rows_per_block(leaf.shape, 4)
        for start in range(0, leaf.shape[0], rows):
            block = jax.lax.dynamic_slice_in_dim(leaf, start, min(rows, leaf.shape[0] - start))
            yield on_host(block.astype(config.param_dtype))
        return
    # A fresh array for each layer: JAX keeps the host's copy of an array as long as the array itself.
    value, *factors = (jax.lax.dynamic_index_in_dim(each, layer, keepdims=False) for each in (leaf, *adapter.values()))
    if factors:
        value = merge({"kernel": value}, dict(zip(adapter, factors)), config.lora.scale)["kernel"]
    yield on_host((value.T if parameter.transposed else value).astype(config.param_dtype))


def on_host(x: jax.Array) -> np.ndarray:
    """The whole array on every process's host, wherever its shards are."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))

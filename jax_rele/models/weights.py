"""Weights of open models: the tensors of a Hugging Face folder and the parameters of a decoder or encoder, both ways.

Every tensor is used exactly once or named in an error. Loading reads just the slices that each device holds, straight
into its sharding and dtype; writing gathers one block at a time. Neither holds a second copy of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
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
from jax_rele.models.encoder import Encoder, EncoderConfig
from jax_rele.models.encoder_families import FAMILIES as ENCODER_FAMILIES
from jax_rele.models.encoder_families import encoder_config, encoder_hf_config
from jax_rele.models.families import FAMILIES as DECODER_FAMILIES
from jax_rele.models.families import decoder_config, hf_config
from jax_rele.models.files import (
    BLOCK,
    Outgoing,
    Tensor,
    check_names,
    open_tensors,
    read_config,
    read_json,
    resolve,
    write_folder,
)
from jax_rele.models.lora import COLLECTION, LoraSpec, merge
from jax_rele.models.partitioning import shardings
from jax_rele.models.quantize import is_quantized
from jax_rele.models.tables import DECODER, ENCODERS, Layout, Parameter

NEEDED = ("config.json", "model*.safetensors", "model.safetensors.index.json")
"""Files of a hub's repository that `from_hf` reads."""

SIDE_FILES = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template*",
)
"""Files beside the weights that a model needs to be used."""

Config = DecoderConfig | EncoderConfig
Model = Decoder | Encoder


def _layout(config: Config) -> Layout:
    return DECODER if isinstance(config, DecoderConfig) else ENCODERS[config.family]


def _boxed(config: Config) -> dict[str, Any]:
    """The base parameters' shapes with their logical axes, with those that a folder may lack."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    if isinstance(config, DecoderConfig):
        model = Decoder(dataclasses.replace(config, lora=None))
        init = partial(model.init, jax.random.key(0), tokens)
    else:
        model, pools = Encoder(config), bool(_layout(config).optional)

        def outputs(model, *inputs):
            hidden = model(*inputs)
            return model.pool(hidden) if pools else hidden

        init = partial(model.init, jax.random.key(0), tokens, tokens, tokens > 0, method=outputs)
    return jax.eval_shape(init)["params"]


def _parameters(config: Config, prefix: str = "", without: Container[str] = ()) -> list[Parameter]:
    """The rows of the table that a model has, in their order.

    Args:
      config: the model.
      prefix: stands before their names.
      without: paths that are not there.
    """
    shapes = {path: leaf.shape for path, leaf in flatten_dict(nn.unbox(_boxed(config)), sep="/").items()}
    rows = [row for row in _layout(config).rows if row.path in shapes]
    if unknown := shapes.keys() - {row.path for row in rows}:
        raise ValueError(f"no Hugging Face name for {', '.join(sorted(unknown))}")
    return [
        Parameter(row, tuple(prefix + name for name in row.names(config.layers)), shapes[row.path])
        for row in rows
        if row.path not in without
    ]


# ---- loading


def from_hf(
    source: str | Path, *, dtype: Any, mesh: jax.sharding.Mesh | None = None, **overrides: Any
) -> tuple[Model, dict[str, Any]]:
    """An open model, ready to run: a decoder or an encoder, by what its config says.

    Args:
      source: a folder in the Hugging Face form (config.json and safetensors), `hf:ORG/NAME` on the hub, or
        `bundled:decoder` or `bundled:encoder`, which the package brings along.
      dtype: of parameters and activations, e.g. `jnp.bfloat16`; norms, softmax and rotations are computed in float32.
        An override `param_dtype` gives the parameters another.
      mesh: where the parameters live, sharded by `partitioning.RULES`. None: on the default device.
      overrides: fields of `DecoderConfig` or `EncoderConfig` that say how it is computed, e.g. `attention`, `remat`,
        `lora`; `dropout`.

    Returns:
      The model and `{"params": ...}`, an encoder's with `pooler` where the folder has it. A decoder's adapters, where
      `lora` is given, are the caller's to make or load.

    Raises:
      UserError: the config is not supported, a file is missing or damaged, or the tensors are not the config's. All of
        this is found before a value is read.
    """
    folder = resolve(source, NEEDED)
    where, raw = read_config(folder)
    kind, kinds = raw.get("model_type"), (*DECODER_FAMILIES, *ENCODER_FAMILIES)
    if kind not in kinds:
        raise UserError(f"{where}: model_type {kind!r} is not supported; supported are {', '.join(kinds)}")
    overrides = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(dtype), **overrides}
    if kind in DECODER_FAMILIES:
        model: Model = Decoder(decoder_config(folder, **overrides))
    else:
        model = Encoder(encoder_config(folder, **overrides))
    return model, {"params": load_params(folder, model.config, mesh)}


def load_params(source: str | Path, config: Config, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """The base parameters of `config` from a folder or the hub; see `from_hf`."""
    parameters, tensors = _checked(resolve(source, NEEDED), config)
    if mesh is None:
        leaf_shardings = dict.fromkeys(parameter.path for parameter in parameters)
    else:
        leaf_shardings = flatten_dict(shardings(_boxed(config), mesh), sep="/")
    return unflatten_dict(
        {
            parameter.path: _load(parameter, tensors, jnp.dtype(config.param_dtype), leaf_shardings[parameter.path])
            for parameter in parameters
        },
        sep="/",
    )


def weights_folder(init: str) -> Path:
    """The folder of the weights that a config's `init` names; fetched from the hub where it is a name there."""
    return resolve(init, (*NEEDED, *SIDE_FILES))


def check_weights(source: str | Path, config: Config) -> None:
    """Raises UserError where the tensors of a folder are not those of `config`; reads their headers alone."""
    _checked(resolve(source, NEEDED), config)


def _checked(folder: Path, config: Config) -> tuple[list[Parameter], dict[str, Tensor]]:
    """What a folder holds of the model, and its tensors by today's names, after every check that headers allow."""
    layout, tensors = _layout(config), {}
    for name, tensor in open_tensors(folder).items():
        ending = next((old for old in layout.renamed if name.endswith(old)), None)
        now = name if ending is None else name.removesuffix(ending) + layout.renamed[ending]
        if now in tensors:
            raise UserError(f"{tensor.file}: tensor {now} is there by an older name too; fetch the folder again")
        tensors[now] = tensor
    prefix = layout.prefix if layout.prefix and any(name.startswith(layout.prefix) for name in tensors) else ""
    parameters = _parameters(config, prefix)
    if tensors.keys().isdisjoint(each.names[0] for each in parameters if each.path in layout.optional):
        parameters = [each for each in parameters if each.path not in layout.optional]
    expected = {name: parameter for parameter in parameters for name in parameter.names}
    head, embedding = layout.repeats or (None, None)
    repeated = head in tensors and head not in expected
    unused = [head] if repeated else []
    if prefix:
        unused += [name for name in tensors if name.startswith(layout.heads) and not name.startswith(prefix)]
    used = [name for name in tensors if name not in unused and not layout.computed.fullmatch(name)]
    check_names(folder, "config.json", expected, used)
    for name, parameter in expected.items():
        tensor = tensors[name]
        if tensor.shape != parameter.tensor_shape:
            raise UserError(
                f"{tensor.file}: tensor {name} is {list(tensor.shape)} but config.json says "
                f"{list(parameter.tensor_shape)}; fetch both from one model"
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
    return parameters, tensors


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
    offset = parameter.row.part * parameter.part_shape[0]
    whole, names, inner = values[None], parameter.names, index
    if parameter.stacked:
        whole, names, inner = values, parameter.names[index[0]], index[1:]
    for target, name in zip(whole, names, strict=True):
        rows, *columns = inner[::-1] if parameter.transposed else inner
        rows = slice(rows.start + offset, rows.stop + offset)
        _fill(target.T if parameter.transposed else target, tensors[name], (rows, *columns))
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
    model: Model,
    variables: Mapping[str, Any],
    path: str | Path,
    *,
    source: str | Path | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Writes a folder that `from_hf` and torch `transformers` load. It appears whole or not at all.

    Every process of a run calls it; the first one writes.

    Args:
      model: a decoder or an encoder; an encoder is written as the base model of its family, without heads.
      variables: `params`, with or without an encoder's `pooler`, and `lora` where adapters are to be merged into the
        weights that are written.
      path: the folder; it must not exist or be empty.
      source: the folder of the model that this one was made from, or of its tokenizer; tokenizer, chat template,
        generation config and token ids that are there are copied. None: these are the caller's.
      max_shard_size: bytes of a weights file.

    Raises:
      UserError: `path` is not empty, or `source` is no folder.
    """
    config = model.config
    raw = hf_config(config) if isinstance(config, DecoderConfig) else encoder_hf_config(config)
    files: dict[str, dict[str, Any] | Path] = {"config.json": raw}
    if source is not None:
        folder = resolve(source, ("config.json", *SIDE_FILES))
        known = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        raw.update(
            {
                key: known[key]
                for key, value in raw.items()
                if key.endswith("_token_id") and value is None and key in known
            }
        )
        files.update({file.name: file for pattern in SIDE_FILES for file in folder.glob(pattern) if file.is_file()})
    write_folder(path, files, _outgoing(config, variables), max_shard_size=max_shard_size)


def _outgoing(config: Config, variables: Mapping[str, Any]) -> list[Outgoing]:
    """Every tensor to write, in the table's order."""
    params = flatten_dict(nn.unbox(variables["params"]), sep="/")
    lora = flatten_dict(nn.unbox(variables.get(COLLECTION, {})), sep="/")
    if any(map(is_quantized, params.values())):
        raise ValueError("quantized weights have no form there: restore the base with `dequantize_params` first")
    parameters = _parameters(config, without=_layout(config).optional - params.keys())
    if {path: leaf.shape for path, leaf in params.items()} != {each.path: each.shape for each in parameters}:
        raise ValueError("params are not those of the model's config")
    spec = getattr(config, "lora", None)
    if lora and spec is None:
        raise ValueError("variables hold adapters but the model's config has no LoraSpec")
    kernels = {path.removesuffix("kernel") for path in params if path.endswith("/kernel")}
    if unknown := lora.keys() - {module + name for module in kernels for name in ("a", "b")}:
        raise ValueError(f"adapters for what the model does not have: {', '.join(sorted(unknown))}")
    pieces: dict[str, list[Callable[[], Iterator[np.ndarray]]]] = {}
    shapes = {}
    for parameter in parameters:
        module = parameter.path.removesuffix("kernel")
        adapter = {name: lora[module + name] for name in ("a", "b") if module in kernels and module + name in lora}
        for layer, name in enumerate(parameter.names):
            # The parts of a tensor are in the table in their order.
            shapes[name] = parameter.tensor_shape
            pieces.setdefault(name, []).append(
                partial(_blocks, parameter, layer, params[parameter.path], adapter, spec, config.param_dtype)
            )
    return [
        Outgoing(name, shapes[name], jnp.dtype(config.param_dtype), partial(_joined, parts))
        for name, parts in pieces.items()
    ]


def _joined(parts: Iterable[Callable[[], Iterator[np.ndarray]]]) -> Iterator[np.ndarray]:
    for part in parts:
        yield from part()


def _blocks(
    parameter: Parameter, layer: int, leaf: jax.Array, adapter: dict[str, jax.Array], spec: LoraSpec | None, dtype: Any
) -> Iterator[np.ndarray]:
    """What is ours of one of their tensors, on this host, in blocks along the first axis."""
    if not parameter.stacked and not parameter.transposed:
        rows = _rows_per_block(leaf.shape, 4)
        for start in range(0, leaf.shape[0], rows):
            block = jax.lax.dynamic_slice_in_dim(leaf, start, min(rows, leaf.shape[0] - start))
            yield on_host(block.astype(dtype))
        return
    value = leaf
    if parameter.stacked:
        # A fresh array for each layer: JAX keeps the host's copy of an array as long as the array itself.
        value, *factors = (
            jax.lax.dynamic_index_in_dim(each, layer, keepdims=False) for each in (leaf, *adapter.values())
        )
        if factors:
            value = merge({"kernel": value}, dict(zip(adapter, factors)), spec.scale)["kernel"]
    yield on_host((value.T if parameter.transposed else value).astype(dtype))


def on_host(x: jax.Array) -> np.ndarray:
    """The whole array on every process's host, wherever its shards are."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))

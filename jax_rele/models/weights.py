"""Weights of open models: Hugging Face tensors to the parameters of a decoder or encoder and back.

Every tensor is used exactly once or named in an error. Loading reads only the slices that each device holds, directly
into its sharding and dtype; writing gathers one block at a time. Neither holds a second copy of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from jax_rele.errors import UserError, named
from jax_rele.io import hash_ends
from jax_rele.models.decoder import Decoder, DecoderConfig
from jax_rele.models.encoder import Encoder, EncoderConfig
from jax_rele.models.encoder_families import FAMILIES as ENCODER_FAMILIES
from jax_rele.models.encoder_families import encoder_config, encoder_hf_config
from jax_rele.models.families import FAMILIES as DECODER_FAMILIES
from jax_rele.models.families import decoder_config, family_of, hf_config
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
from jax_rele.models.lora import COLLECTION, merge
from jax_rele.models.partitioning import shardings
from jax_rele.models.quantize import is_quantized
from jax_rele.models.tables import DECODER, ENCODERS, Layout, Parameter
from jax_rele.types import Params, PyTree

NEEDED = ("config.json", "model*.safetensors", "model.safetensors.index.json")
"""Files of a repository on the hub that `from_hf` reads."""

SIDE_FILES = (
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template*"),
)
"""Files beside the weights that are needed to use a model."""

Config = DecoderConfig | EncoderConfig
Model = Decoder | Encoder


def _layout(config: Config) -> Layout:
    return DECODER if isinstance(config, DecoderConfig) else ENCODERS[config.family]


def _boxed(config: Config) -> PyTree:
    """The shapes of the base parameters with their logical axes, including those that a checkpoint may lack."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    if isinstance(config, DecoderConfig):
        decoder = Decoder(dataclasses.replace(config, lora=None))
        return jax.eval_shape(partial(decoder.init, jax.random.key(0), tokens))["params"]

    def outputs(encoder, *inputs):
        hidden = encoder(*inputs)
        return encoder.pool(hidden) if _layout(config).optional else hidden

    init = partial(Encoder(config).init, jax.random.key(0), tokens, tokens, tokens > 0, method=outputs)
    return jax.eval_shape(init)["params"]


def _parameters(config: Config, prefix: str = "", without: Container[str] = ()) -> list[Parameter]:
    """The parameters of a model in the order of the table, less the paths `without`; `prefix` precedes the names."""
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
    source: str | Path, *, dtype: DTypeLike, mesh: jax.sharding.Mesh | None = None, **overrides: Any
) -> tuple[Model, dict[str, PyTree]]:
    """An open model, ready to run: a decoder or an encoder, as its config says.

    Args:
      source: a folder in the Hugging Face form (config.json and safetensors), `hf:ORG/NAME` on the hub, or
        `bundled:decoder` or `bundled:encoder`, which are part of the package.
      dtype: of parameters and activations, e.g. `jnp.bfloat16`; norms, softmax and rotations are computed in float32.
        An override `param_dtype` gives the parameters another.
      mesh: the devices of the parameters, which are sharded by `partitioning.RULES`. None: the default device.
      overrides: fields of `DecoderConfig` or `EncoderConfig` that say how it is computed, e.g. `attention`, `remat`,
        `lora`; `dropout`.

    Returns:
      The model and `{"params": ...}`, an encoder's with `pooler` where the folder has it. Where `lora` is given, the
      caller initialises or loads the adapters.

    Raises:
      UserError: the config is not supported, a file is missing or damaged, or the tensors are not the config's. All of
        this is checked before a value is read.
    """
    folder = resolve(source, NEEDED)
    where, raw = read_config(folder)
    families: dict[str, object] = {**DECODER_FAMILIES, **ENCODER_FAMILIES}
    kind, _ = family_of(where, raw, families)
    overrides = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(dtype), **overrides}
    model: Model = (
        Decoder(decoder_config(folder, **overrides))
        if kind in DECODER_FAMILIES
        else Encoder(encoder_config(folder, **overrides))
    )
    return model, {"params": load_params(folder, model.config, mesh)}


def load_params(source: str | Path, config: Config, mesh: jax.sharding.Mesh | None = None) -> dict[str, PyTree]:
    """The base parameters of `config` from a folder or the hub; see `from_hf`."""
    parameters, tensors = _checked(resolve(source, NEEDED), config)
    leaf_shardings = {} if mesh is None else flatten_dict(shardings(_boxed(config), mesh), sep="/")
    dtype = jnp.dtype(config.param_dtype)
    return unflatten_dict(
        {each.path: _load(each, tensors, dtype, leaf_shardings.get(each.path)) for each in parameters}, sep="/"
    )


def weights_folder(init: str, where: str = "") -> Path:
    """The folder of the weights that a config's `init` names; fetched from the hub where it is a name there.

    Args:
      init: a folder, or a name as `resolve` takes it.
      where: the config path, for messages.

    Raises:
      UserError: as `resolve`.
    """
    with named(where, "") if where else nullcontext():
        folder = resolve(init, (*NEEDED, *SIDE_FILES))
        if any(folder.glob("model*.safetensors")):
            _refuse_adapters_beside(folder)
        else:
            _refuse_other_form(folder, is_student=where.startswith("student"))
        return folder


def _refuse_adapters_beside(folder: Path) -> None:
    """Raises UserError for a folder that holds a model and PEFT adapters, as only the model would be read."""
    if (folder / "adapter_config.json").is_file() and any(folder.glob("adapter_model.*")):
        raise UserError(
            f"{folder}: holds PEFT adapters beside the model, which would not be read; merge them (`load_peft` and "
            "`to_hf` of jax_rele.models, see docs/weights.md), or move adapter_config.json elsewhere to leave them out"
        )


def _refuse_other_form(folder: Path, *, is_student: bool) -> None:
    """Raises UserError for a folder that holds PEFT adapters or GGUF files alone."""
    adapters = folder / "adapter_config.json"
    if adapters.is_file():
        base = read_json(adapters).get("base_model_name_or_path") or "their base"
        raise UserError(
            f"{folder}: holds PEFT adapters, no model; merge them into {base!s:.100} and give the merged folder: "
            "`load_peft` and `to_hf` of jax_rele.models do it in one line, see docs/weights.md"
        )
    if files := sorted(path for path in folder.glob("*") if path.suffix.lower() == ".gguf"):
        if is_student:
            raise UserError(
                f"{folder}: holds no weights but GGUF files, which are decoders; a student needs an encoder in the "
                "Hugging Face form (config.json, model.safetensors, a tokenizer), or bundled:encoder"
            )
        more = f" or another of its {len(files)} GGUF files" if len(files) > 1 else ""
        raise UserError(f"{folder}: holds no weights but GGUF files; write gguf:{files[0]}{more}")


def weights_hash(init: str) -> str:
    """A hash of the weights that a config's `init` names, and of their config and tokenizer; see `hash_ends`."""
    folder = weights_folder(init)
    return hash_ends({file for pattern in (*NEEDED, *SIDE_FILES) for file in folder.glob(pattern)})


def check_weights(source: str | Path, config: Config) -> None:
    """Raises UserError where the tensors of a folder are not those of `config`; reads their headers alone."""
    _checked(resolve(source, NEEDED), config)


def _checked(folder: Path, config: Config) -> tuple[list[Parameter], dict[str, Tensor]]:
    """The parameters that a folder holds, and its tensors by their current names, after every check of the headers."""
    layout = _layout(config)
    tensors: dict[str, Tensor] = {}
    for name, tensor in open_tensors(folder).items():
        ending = next((old for old in layout.renamed if name.endswith(old)), None)
        name = name if ending is None else name.removesuffix(ending) + layout.renamed[ending]
        if name in tensors:
            raise UserError(f"{tensor.file}: tensor {name} is there by an older name too; fetch the folder again")
        tensors[name] = tensor
    prefix = layout.prefix if layout.prefix and any(name.startswith(layout.prefix) for name in tensors) else ""
    parameters = _parameters(config, prefix)
    if tensors.keys().isdisjoint(each.names[0] for each in parameters if each.path in layout.optional):
        parameters = [each for each in parameters if each.path not in layout.optional]
    expected = {name: parameter for parameter in parameters for name in parameter.names}
    repeat, original = layout.repeats or ("", "")
    is_repeated = repeat in tensors and repeat not in expected
    unused = [repeat] if is_repeated else []
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
    if is_repeated and not _equal(tensors[repeat], tensors[original]):
        raise UserError(
            f"{tensors[repeat].file}: tensor {repeat} differs from {original} though config.json says "
            "tie_word_embeddings; set that to false to use both"
        )
    return parameters, tensors


def _equal(a: Tensor, b: Tensor) -> bool:
    blocks = _row_blocks(a.shape, 0, a.shape[0])
    return a.shape == b.shape and all(np.array_equal(a.values[block], b.values[block]) for block in blocks)


def _row_blocks(shape: tuple[int, ...], start: int, stop: int) -> Iterator[slice]:
    """The rows from start to stop in slices of at most `BLOCK` bytes of float32."""
    step = max(1, BLOCK // max(1, int(np.prod(shape[1:])) * 4))
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _load(
    parameter: Parameter, tensors: Mapping[str, Tensor], dtype: np.dtype, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """One parameter on its devices. Each distinct shard is read once, however many devices hold it."""
    if sharding is None:
        whole = tuple(slice(0, size) for size in parameter.shape)
        return jax.block_until_ready(jax.device_put(_read(parameter, tensors, dtype, whole)))
    holders: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(parameter.shape).items():
        assert index is not None  # The device is addressable.
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, parameter.shape))
        holders.setdefault(bounds, []).append(device)
    shards: list[jax.Array] = []
    for bounds, devices in holders.items():
        values = _read(parameter, tensors, dtype, tuple(slice(*ends) for ends in bounds))
        # Awaited, so that the buffer is freed before the next one is filled.
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
    """An empty array with the alignment that lets JAX's CPU backend use it without a copy."""
    size, alignment = int(np.prod(shape)) * dtype.itemsize, 64
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)


def _fill(target: np.ndarray, tensor: Tensor, index: tuple[slice, ...]) -> None:
    rows, *columns = index
    for block in _row_blocks(target.shape, rows.start, rows.stop):
        target[block.start - rows.start : block.stop - rows.start] = tensor.values[(block, *columns)]


# ---- writing


def to_hf(
    model: Model,
    variables: Params,
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
      source: the folder of the model that this one is derived from, or of its tokenizer; its tokenizer, chat template,
        generation config and token ids are copied. None: the caller adds them.
      max_shard_size: bytes of a weights file.

    Raises:
      UserError: `path` is not empty, or `source` does not exist.
    """
    config = model.config
    raw = hf_config(config) if isinstance(config, DecoderConfig) else encoder_hf_config(config)
    files: dict[str, dict[str, object] | Path] = {"config.json": raw}
    if source is not None:
        folder = resolve(source, ("config.json", *SIDE_FILES))
        known = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        missing = [key for key, value in raw.items() if key.endswith("_token_id") and value is None]
        raw.update({key: known[key] for key in missing if key in known})
        files.update({file.name: file for pattern in SIDE_FILES for file in folder.glob(pattern) if file.is_file()})
    write_folder(path, files, _outgoing(config, variables), max_shard_size=max_shard_size)


def _outgoing(config: Config, variables: Params) -> list[Outgoing]:
    """Every tensor to write, in the table's order."""
    params = flatten_dict(nn.unbox(variables["params"]), sep="/")
    lora = flatten_dict(nn.unbox(variables.get(COLLECTION, {})), sep="/")
    if any(map(is_quantized, params.values())):
        raise ValueError("quantized weights cannot be written: restore the base with `dequantize_params` first")
    parameters = _parameters(config, without=_layout(config).optional - params.keys())
    if {path: leaf.shape for path, leaf in params.items()} != {each.path: each.shape for each in parameters}:
        raise ValueError("params are not those of the model's config")
    spec = getattr(config, "lora", None)
    if lora and spec is None:
        raise ValueError("variables hold adapters but the model's config has no LoraSpec")
    kernels = {path.removesuffix("kernel") for path in params if path.endswith("/kernel")}
    if unknown := lora.keys() - {module + name for module in kernels for name in ("a", "b")}:
        raise ValueError(f"adapters for what the model does not have: {', '.join(sorted(unknown))}")
    scale, dtype = spec.scale if spec else 1.0, jnp.dtype(config.param_dtype)
    pieces: dict[str, list[Callable[[], Iterator[np.ndarray]]]] = {}
    shapes = {}
    for parameter in parameters:
        module = parameter.path.removesuffix("kernel")
        adapter = {name: lora[module + name] for name in ("a", "b") if module in kernels and module + name in lora}
        for layer, name in enumerate(parameter.names):
            # The table lists the parts of a tensor in order.
            shapes[name] = parameter.tensor_shape
            blocks = partial(_blocks, parameter, layer, params[parameter.path], adapter, scale, dtype)
            pieces.setdefault(name, []).append(blocks)
    return [Outgoing(name, shapes[name], dtype, partial(_joined, parts)) for name, parts in pieces.items()]


def _joined(parts: Iterable[Callable[[], Iterator[np.ndarray]]]) -> Iterator[np.ndarray]:
    for part in parts:
        yield from part()


def _blocks(
    parameter: Parameter, layer: int, leaf: jax.Array, adapter: dict[str, jax.Array], scale: float, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """The parameter's rows of one tensor, on this host, in blocks along the first axis."""
    if not parameter.stacked and not parameter.transposed:
        for block in _row_blocks(leaf.shape, 0, leaf.shape[0]):
            yield on_host(jax.lax.dynamic_slice_in_dim(leaf, block.start, block.stop - block.start).astype(dtype))
        return
    value = leaf
    if parameter.stacked:
        # A new array for each layer: JAX keeps the host's copy of an array as long as the array itself.
        value, *factors = (
            jax.lax.dynamic_index_in_dim(each, layer, keepdims=False) for each in (leaf, *adapter.values())
        )
        if factors:
            value = merge({"kernel": value}, dict(zip(adapter, factors)), scale)["kernel"]
    yield on_host((value.T if parameter.transposed else value).astype(dtype))


def on_host(x: jax.Array) -> np.ndarray:
    """The whole array on every process's host, wherever its shards are."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))

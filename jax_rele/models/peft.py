"""Adapter folders in the form of the `peft` package, read and written."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jax_rele.errors import UserError
from jax_rele.models.decoder import Decoder, DecoderConfig
from jax_rele.models.files import (
    JsonObject,
    Outgoing,
    Tensor,
    check_keys,
    check_names,
    open_tensors,
    read_json,
    resolve,
    words,
    write_folder,
)
from jax_rele.models.lora import COLLECTION, LoraSpec
from jax_rele.models.partitioning import shardings
from jax_rele.models.peft_weights import EMBEDDINGS, EmbeddingAdapter, change_base, check_shapes, find_changes
from jax_rele.models.tables import DECODER
from jax_rele.models.weights import on_host
from jax_rele.types import Params, PyTree

STEM = "adapter_model"

READ = words(
    "peft_type r lora_alpha lora_dropout use_rslora target_modules exclude_modules layers_to_transform layers_pattern",
    "rank_pattern alpha_pattern modules_to_save",
)
"""Keys of adapter_config.json that are read."""

HARMLESS = words(
    "auto_mapping base_model_name_or_path ensure_weight_tying inference_mode megatron_core peft_version",
    "qalora_group_size revision runtime_config",
)
"""Keys that do not change what is computed."""

FIXED: Mapping[str, tuple[object, ...]] = {
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    # Other initializations change the base's weights, which the folder of an adapter does not hold.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "lora_bias": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
}
"""Keys that would change what is computed, and their values that do not."""

MODULES = {
    row.path.removesuffix("/kernel"): row.name.removesuffix(".weight")
    for row in DECODER.rows
    if row.path.endswith("/kernel")
}
"""Path of each projection -> its module in torch, with `{}` for the layer's number."""

FACTORS = {"a": "lora_A", "b": "lora_B"}
"""The factors of an adapter, [in, r] and [r, out], and their names in `peft`, which stores the transposes."""


def load_peft(
    source: str | Path,
    model: Decoder,
    mesh: jax.sharding.Mesh | None = None,
    *,
    params: Params | None = None,
) -> tuple[Decoder, Params]:
    """The adapters of a PEFT folder, and the base's parameters where it changes them.

    Layers of an adapted projection that the folder leaves out get zeros, which compute and train like no adapter. So
    do the columns by which a module's rank (`rank_pattern`) is smaller than the largest one; where its scale differs
    (`alpha_pattern`), its second factor is scaled.

    Args:
      source: a folder with adapter_config.json and adapter_model.safetensors, or `hf:ORG/NAME` on the hub.
      model: the base that they were trained for; its own adapters are replaced.
      mesh: the devices of the adapters. None: the default device.
      params: the base's parameters, for a folder that changes them: with `modules_to_save`, or adapters on
        `embed_tokens` or `lm_head`, which are merged into them.

    Returns:
      The model with the folder's `LoraSpec`, and `{"lora": ...}`, float32; with `{"params": ...}` too where the folder
      changes the base. A base that ties its embeddings is untied where only one of them changes.

    Raises:
      UserError: a file is missing or damaged, a key's meaning is not implemented, or the tensors are not those that
        the config names for this model.
    """
    folder = resolve(source, ("adapter_config.json", f"{STEM}*.safetensors", f"{STEM}.safetensors.index.json"))
    where = folder / "adapter_config.json"
    raw = read_json(where)
    _check_config(where, raw)
    targets = {path: layers for path in MODULES if (layers := _layers(where, raw, path, model.config.layers))}
    adapters_of_embeddings = {
        path: EmbeddingAdapter(*_rank_and_scale(where, raw, module))
        for path, module in EMBEDDINGS.items()
        if raw["target_modules"] != "all-linear" and _adapts(where, raw, module, None)
    }
    tensors = open_tensors(folder, STEM)
    changes = find_changes(where, raw, model.config, tensors, adapters_of_embeddings)
    if not targets and not changes.tensors:
        raise UserError(f"{where}: key target_modules ({raw['target_modules']!r:.60}) names no projection of the model")
    if changes.tensors and params is None:
        raise UserError(
            f"{where}: the folder changes the base ({', '.join(changes.modules)}); give load_peft its `params` too"
        )
    ranks = {
        (path, layer): _rank_and_scale(where, raw, MODULES[path].format(layer))
        for path, layers in targets.items()
        for layer in layers
    }
    spec = _spec(raw, targets, [rank for rank, _ in ranks.values()])
    model = Decoder(dataclasses.replace(model.config, lora=spec), model.cache_length)
    boxed = {} if spec is None else _boxed(model.config)
    shapes = _shapes(boxed)
    _check_tensors(folder, tensors, ranks, shapes, changes.tensors)
    check_shapes(where, changes, model.config, tensors)
    result: dict[str, PyTree] = {}
    if changes.tensors:
        assert params is not None
        tie = bool(raw.get("ensure_weight_tying"))
        config, result["params"] = change_base(model.config, params, changes, tensors, tie)
        model = Decoder(config, model.cache_length)
    if spec is None:
        return model, result
    leaf_shardings = {} if mesh is None else flatten_dict(shardings(boxed, mesh), sep="/")
    adapters = {}
    for path, shape in shapes.items():
        values = np.zeros(shape, np.float32)
        module, _, factor = path.rpartition("/")
        for layer in targets[module]:
            rank, scale = ranks[module, layer]
            read = np.asarray(tensors[_name(module, layer, factor)].values[:], np.float32).T
            if factor == "a":
                values[layer, :, :rank] = read
            else:
                values[layer, :rank] = read if scale == spec.scale else read * (scale / spec.scale)
        if mesh is None:
            adapters[path] = jnp.asarray(values)
        else:
            adapters[path] = jax.make_array_from_callback(shape, leaf_shardings[path], values.__getitem__)
    return model, {COLLECTION: unflatten_dict(adapters, sep="/"), **result}


def _spec(raw: JsonObject, targets: Mapping[str, list[int]], ranks: Sequence[int]) -> LoraSpec | None:
    """The spec of the projections' adapters, with the largest of their ranks and the scale of the whole folder."""
    if not targets:
        return None
    spec = LoraSpec(
        rank=raw["r"],
        alpha=raw["lora_alpha"],
        dropout=raw.get("lora_dropout") or 0.0,
        targets="|".join(path.rpartition("/")[2] for path in targets),
        rank_stabilized=bool(raw.get("use_rslora")),
    )
    if (rank := max(ranks)) == spec.rank:
        return spec
    divisor = math.sqrt(rank) if spec.rank_stabilized else rank
    return dataclasses.replace(spec, rank=rank, alpha=spec.scale * divisor)


def _rank_and_scale(where: Path, raw: JsonObject, module: str) -> tuple[int, float]:
    """Rank and scale of a module's adapter: those of the first pattern that its name ends with, by `peft`'s rule."""
    values = []
    for key, default in (("rank_pattern", raw["r"]), ("alpha_pattern", raw["lora_alpha"])):
        patterns = raw.get(key) or {}
        try:
            name = next((name for name in patterns if re.match(rf"(.*\.)?({name})$", module)), None)
        except re.error as error:
            raise UserError(f"{where}: key {key} holds what is not a regular expression ({error})") from None
        values.append(default if name is None else patterns[name])
    rank, alpha = values
    return rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def _boxed(config: DecoderConfig) -> PyTree:
    """The adapters' shapes with their logical axes."""
    return jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))[COLLECTION]


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten_dict(nn.unbox(tree), sep="/").items()}


def _name(module: str, layer: int, factor: str) -> str:
    return f"base_model.model.{MODULES[module].format(layer)}.{FACTORS[factor]}.weight"


def _check_config(where: Path, raw: JsonObject) -> None:
    if raw.get("peft_type") != "LORA":
        raise UserError(f"{where}: key peft_type is {raw.get('peft_type')!r}; supported is 'LORA'")
    check_keys(where, raw, READ | HARMLESS, FIXED)
    for key in ("r", "lora_alpha"):
        if not isinstance(raw.get(key), int if key == "r" else int | float) or not 0 < raw[key] < math.inf:
            raise UserError(f"{where}: key {key} is {raw.get(key)!r}; it must be a positive number")
    for key, kind in (("rank_pattern", int), ("alpha_pattern", int | float)):
        patterns = raw.get(key) or {}
        if not isinstance(patterns, dict) or not all(isinstance(each, kind) and each > 0 for each in patterns.values()):
            raise UserError(f"{where}: key {key} is {patterns!r:.60}; it must map names of modules to positive numbers")
    targets = raw.get("target_modules")
    if not isinstance(targets, str | list):
        raise UserError(f"{where}: key target_modules is {targets!r:.60}; it must be a list or a regex")
    dropout = raw.get("lora_dropout") or 0.0
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise UserError(f"{where}: key lora_dropout is {dropout!r:.60}; it must be a number from 0 to 1")
    form: type
    for key, form, what in (
        ("exclude_modules", str, "a list of names, or a regex"),
        ("layers_pattern", str, "a name or a list of names"),
        ("layers_to_transform", int, "a layer's number or a list of them"),
    ):
        value = raw.get(key)
        if not all(isinstance(each, form) for each in (value if isinstance(value, list) else [value] if value else [])):
            raise UserError(f"{where}: key {key} is {value!r:.60}; it must be {what}")


def _layers(where: Path, raw: JsonObject, path: str, layers: int) -> list[int]:
    """The layers in which the config gives a projection an adapter, by the rules of `peft`."""
    pattern = raw.get("layers_pattern")
    if pattern and "layers" not in ([pattern] if isinstance(pattern, str) else pattern):
        raise UserError(f"{where}: key layers_pattern is {pattern!r:.60}; the model's layers are called 'layers'")
    return [layer for layer in range(layers) if _adapts(where, raw, MODULES[path].format(layer), layer)]


def _adapts(where: Path, raw: JsonObject, name: str, layer: int | None) -> bool:
    """Whether the config gives a module an adapter; `layer` is None for one that is in no layer."""
    targets, excluded = raw["target_modules"], raw.get("exclude_modules")
    selected = raw.get("layers_to_transform")
    selected = [selected] if isinstance(selected, int) else selected
    if excluded and _matches(where, "exclude_modules", excluded, name):
        return False
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or _matches(where, "target_modules", targets, name)
    if name in targets:
        return True
    return _matches(where, "target_modules", targets, name) and (not selected or layer in selected)


def _matches(where: Path, key: str, patterns: str | list[str], name: str) -> bool:
    """A regex matches the whole name; an entry of a list is the name or its last parts."""
    if isinstance(patterns, str):
        try:
            return re.fullmatch(patterns, name) is not None
        except re.error as error:
            raise UserError(f"{where}: key {key} ({patterns!r:.60}) is not a regular expression ({error})") from None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _check_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    ranks: Mapping[tuple[str, int], tuple[int, float]],
    shapes: Mapping[str, tuple[int, ...]],
    others: Sequence[str],
) -> None:
    """Raises UserError unless the folder holds the factors of each adapter, in their shapes, and the `others`."""
    expected: dict[str, tuple[int, ...]] = {}
    for (module, layer), (rank, _) in ranks.items():
        expected[_name(module, layer, "a")] = (rank, shapes[f"{module}/a"][1])
        expected[_name(module, layer, "b")] = (shapes[f"{module}/b"][2], rank)
    check_names(folder, "adapter_config.json and the model", [*expected, *others], tensors)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{tensors[name].file}: tensor {name} is {list(tensors[name].shape)} but the config and the model say "
                f"{list(shape)}; the adapter is for another model"
            )


def save_peft(model: Decoder, variables: Params, path: str | Path, *, base: str | None = None) -> None:
    """Writes adapters so that `peft.PeftModel.from_pretrained` and `load_peft` read them.

    Every process of a run calls it; the first one writes.

    Args:
      model: the decoder, with a `LoraSpec`.
      variables: `lora`; other collections are ignored.
      path: the folder; it must not exist or be empty.
      base: the base's folder or name on the hub, for loading the adapters without naming one.

    Raises:
      UserError: `path` is not empty.
    """
    spec = model.config.lora
    if spec is None:
        raise ValueError("the model's config has no LoraSpec")
    adapters = flatten_dict(nn.unbox(variables[COLLECTION]), sep="/")
    if _shapes(variables[COLLECTION]) != _shapes(_boxed(model.config)):
        raise ValueError("adapters are not those of the model's config")
    raw: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rank_stabilized,
        "target_modules": sorted({leaf_path.split("/")[-2] for leaf_path in adapters}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    tensors = []
    for leaf_path, leaf in adapters.items():
        module, _, factor = leaf_path.rpartition("/")
        for layer in range(leaf.shape[0]):
            block = partial(_block, leaf, layer)
            tensors.append(Outgoing(_name(module, layer, factor), leaf.shape[:0:-1], np.dtype(np.float32), block))
    write_folder(path, {"adapter_config.json": raw}, tensors, stem=STEM)


def _block(leaf: jax.Array, layer: int) -> Iterator[np.ndarray]:
    yield on_host(jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False).astype(jnp.float32)).T

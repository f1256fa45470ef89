"""Adapter folders in PEFT's form, read and written, and what is refused."""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, PartitionSpec
from safetensors.numpy import load_file, save_file

from jax_rele.errors import UserError
from jax_rele.models import Decoder, DecoderConfig, LoraSpec, load_peft, merge, save_peft
from jax_rele.models.partitioning import AXES

CONFIG = DecoderConfig(vocab_size=24, layers=3, width=16, heads=4, kv_heads=2, head_dim=8, mlp_width=20)
MODEL = Decoder(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 24, (2, 11))
RAW = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 3,
    "target_modules": ["q_proj", "down_proj"],
}
SIZES = {"self_attn.q_proj": (16, 32), "mlp.down_proj": (20, 16)}


def tensors(layers=range(3)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        f"base_model.model.model.layers.{layer}.{name}.{factor}.weight": rng.standard_normal(shape, np.float32)
        for layer in layers
        for name, (inner, outer) in SIZES.items()
        for factor, shape in (("lora_A", (2, inner)), ("lora_B", (outer, 2)))
    }


def folder(path: Path, raw: dict = RAW, values: dict[str, np.ndarray] | None = None) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(raw))
    save_file(tensors() if values is None else values, path / "adapter_model.safetensors")
    return path


@partial(jax.jit, static_argnums=0)
def hidden(model, variables):
    return model.apply(variables, TOKENS).hidden


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda rng: nn.unbox(MODEL.init(rng, TOKENS)))(jax.random.key(0))["params"]


def test_every_tensor_has_its_place_and_goes_back(tmp_path):
    model, adapters = load_peft(folder(tmp_path / "peft", {**RAW, "use_rslora": True, "lora_dropout": 0.2}), MODEL)
    assert model.config.lora == LoraSpec(2, 3, 0.2, "q_proj|down_proj", rank_stabilized=True)
    assert dataclasses.replace(model.config, lora=None) == CONFIG
    values, layers = tensors(), adapters["lora"]["layers"]
    for layer in range(3):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        np.testing.assert_array_equal(layers["attention"]["q_proj"]["a"][layer], values[f"{name}.lora_A.weight"].T)
        np.testing.assert_array_equal(layers["attention"]["q_proj"]["b"][layer], values[f"{name}.lora_B.weight"].T)
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        np.testing.assert_array_equal(layers["mlp"]["down_proj"]["a"][layer], values[f"{name}.lora_A.weight"].T)
    save_peft(model, adapters, tmp_path / "again", base="org/name")
    written = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert written.keys() == values.keys()
    assert all(np.array_equal(written[name], values[name]) for name in values)
    raw = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (raw["base_model_name_or_path"], raw["use_rslora"]) == ("org/name", True)
    assert load_peft(tmp_path / "again", MODEL)[0].config.lora.scale == pytest.approx(3 / 2**0.5)


def test_loaded_adapters_are_merged_ones(tmp_path, params):
    model, adapters = load_peft(folder(tmp_path / "peft"), MODEL)
    adapted = hidden(model, {"params": params, **adapters})
    assert np.abs(adapted - hidden(MODEL, {"params": params})).max() > 0.1
    # By hand, from the paper: W + alpha / r * B A.
    merged = flatten_dict(params, sep="/")
    for name, path in (("self_attn.q_proj", "attention/q_proj"), ("mlp.down_proj", "mlp/down_proj")):
        parts = [f"base_model.model.model.layers.{layer}.{name}" for layer in range(3)]
        values = tensors()
        delta = [values[f"{part}.lora_B.weight"] @ values[f"{part}.lora_A.weight"] for part in parts]
        merged[f"layers/{path}/kernel"] += 3 / 2 * np.stack(delta).swapaxes(1, 2)
    ours = merge(params, adapters["lora"], model.config.lora.scale)
    for path, leaf in flatten_dict(ours, sep="/").items():
        np.testing.assert_allclose(leaf, merged[path], atol=1e-5)
    np.testing.assert_allclose(hidden(MODEL, {"params": ours}), adapted, atol=2e-5)


@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({"layers_to_transform": [0, 2]}, (0, 2)),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, (1,)),
        ({"exclude_modules": r".*layers\.1\..*"}, (0, 2)),
        ({"target_modules": r".*\.[02]\..*(q_proj|down_proj)"}, (0, 2)),
    ],
)
def test_layers_without_adapters_get_zeros(keys, layers, tmp_path):
    _, adapters = load_peft(folder(tmp_path / "peft", {**RAW, **keys}, tensors(layers)), MODEL)
    assert adapted_layers(adapters["lora"]) == set(layers)


def test_training_leaves_them_zero(tmp_path, params):
    path = folder(tmp_path / "peft", {**RAW, "layers_to_transform": [0, 2]}, tensors((0, 2)))
    model, adapters = load_peft(path, MODEL)

    @jax.jit
    def loss(lora):
        return (model.apply({"params": params, "lora": lora}, TOKENS).hidden ** 2 * jnp.arange(16)).mean()

    assert adapted_layers(jax.grad(loss)(adapters["lora"])) == {0, 2}


def adapted_layers(lora: dict) -> set[int]:
    (layers,) = {frozenset(np.flatnonzero(np.any(leaf, axis=(1, 2)))) for leaf in jax.tree.leaves(lora)}
    return set(layers)


def test_all_linear_and_whole_names(tmp_path):
    values = tensors((1,))
    names = ["model.layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"]
    assert load_peft(folder(tmp_path / "names", {**RAW, "target_modules": names}, values), MODEL)[0]
    raw = {**RAW, "target_modules": "all-linear"}
    with pytest.raises(UserError, match="38 missing"):
        load_peft(folder(tmp_path / "linear", raw, values), MODEL)


def test_adapters_live_on_a_mesh(tmp_path):
    mesh = jax.make_mesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    path = folder(tmp_path / "peft")
    model, sharded = load_peft(path, MODEL, mesh)
    whole = load_peft(path, MODEL)[1]
    jax.tree.map(np.testing.assert_array_equal, sharded, whole)
    assert sharded["lora"]["layers"]["attention"]["q_proj"]["b"].sharding.spec == PartitionSpec(None, None, "tensor")
    save_peft(model, sharded, tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, load_peft(tmp_path / "again", MODEL)[1], whole)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "the folder changes the base (lm_head); give load_peft its `params` too"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save names 'classifier', which the model does not have"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'; it must be a list"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "the folder changes the base (model.embed_tokens)"),
        ({"target_modules": ["lm_head"], "ensure_weight_tying": True}, "ensure_weight_tying is True beside an adapter"),
        ({"rank_pattern": {"q_proj": 4}}, "lora_A.weight is [2, 16] but the config and the model say [4, 16]"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is {'q_proj': 0}; it must map names of modules to positive"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern holds what is not a regular expression"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is ['q_proj']; it must map names of modules"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"invented_here": False}, "invented_here"),
        ({"r": 0}, "key r is 0"),
        ({"r": 3}, "lora_A.weight is [2, 16] but the config and the model say [3, 16]"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"target_modules": None}, "target_modules is None"),
        ({"target_modules": ["query"]}, "target_modules (['query']) names no projection"),
        ({"target_modules": "("}, "target_modules ('(') is not a regular expression"),
        ({"target_modules": ["q_proj"]}, "6 not of the model (base_model.model.model.layers.0.mlp.down_proj.lora_A"),
        (
            {"target_modules": ["q_proj", "down_proj", "v_proj"]},
            "6 missing (base_model.model.model.layers.0.self_attn.v",
        ),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "layers_pattern is 'h'"),
        ({"layers_to_transform": "0"}, "layers_to_transform is '0'; it must be a layer's number"),
        ({"layers_pattern": 5}, "layers_pattern is 5; it must be a name"),
        ({"exclude_modules": 5}, "exclude_modules is 5; it must be a list of names"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"lora_dropout": "x"}, "lora_dropout is 'x'; it must be a number from 0 to 1"),
        ({"lora_dropout": 1.5}, "lora_dropout is 1.5"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(keys, message, tmp_path):
    with pytest.raises(UserError) as error:
        load_peft(folder(tmp_path / "peft", {**RAW, **keys}), MODEL)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pattern_gives_a_module_its_rank_and_scale(tmp_path, params):
    values = tensors()
    name = "base_model.model.model.layers.1.self_attn.q_proj.{}.weight"
    rng = np.random.default_rng(5)
    values[name.format("lora_A")] = rng.standard_normal((5, 16), np.float32)
    values[name.format("lora_B")] = rng.standard_normal((32, 5), np.float32)
    raw = {**RAW, "rank_pattern": {"layers.1.self_attn.q_proj": 5}, "alpha_pattern": {"down_proj": 7}}
    model, adapters = load_peft(folder(tmp_path / "peft", raw, values), MODEL)
    assert (model.config.lora.rank, model.config.lora.scale) == (5, 1.5)
    kernels = merge(params, adapters["lora"], model.config.lora.scale)["layers"]
    for layer in range(3):
        for module, path, scale in (
            ("self_attn.q_proj", ("attention", "q_proj"), 3 / 5 if layer == 1 else 3 / 2),
            ("mlp.down_proj", ("mlp", "down_proj"), 7 / 2),
        ):
            a, b = (values[f"base_model.model.model.layers.{layer}.{module}.{x}.weight"] for x in ("lora_A", "lora_B"))
            base = params["layers"][path[0]][path[1]]["kernel"][layer]
            expected = base + scale * (b @ a).T
            np.testing.assert_allclose(kernels[path[0]][path[1]]["kernel"][layer], expected, atol=1e-5)


def test_what_a_folder_changes_in_the_base(tmp_path, params):
    head = np.random.default_rng(3).standard_normal((24, 16), np.float32)
    norm = np.full(16, 2.0, np.float32)
    values = tensors() | {"base_model.model.lm_head.weight": head, "base_model.model.model.norm.weight": norm}
    raw = {**RAW, "modules_to_save": ["lm_head", "model.norm"]}
    model, variables = load_peft(folder(tmp_path / "peft", raw, values), MODEL, params=params)
    assert not model.config.tied
    np.testing.assert_array_equal(variables["params"]["output_embedding"], head)
    np.testing.assert_array_equal(variables["params"]["embedding"], params["embedding"])
    np.testing.assert_array_equal(variables["params"]["final_norm"]["scale"], norm)
    assert "output_embedding" not in params
    assert float(params["final_norm"]["scale"][0]) == 1.0
    assert variables["lora"].keys() == {"layers"}
    other = {**values, "base_model.model.lm_head.weight": head[:, :4]}
    with pytest.raises(UserError, match=r"a saved module of \[24, 4\] stands for output_embedding of \[24, 16\]"):
        load_peft(folder(tmp_path / "other", raw, other), MODEL, params=params)
    del values["base_model.model.lm_head.weight"]
    with pytest.raises(UserError, match=r"1 missing \(base_model\.model\.lm_head\.weight\)"):
        load_peft(folder(tmp_path / "less", raw, values), MODEL, params=params)


def test_adapters_on_embeddings_alone(tmp_path, params):
    rng = np.random.default_rng(4)
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    sizes = {"A": (2, 24), "B": (16, 2)}
    values = {f"{prefix}{factor}": rng.standard_normal(size, np.float32) for factor, size in sizes.items()}
    raw = {**RAW, "target_modules": ["embed_tokens"]}
    model, variables = load_peft(folder(tmp_path / "peft", raw, values), MODEL, params=params)
    assert (model.config.lora, model.config.tied, variables.keys()) == (None, False, {"params"})
    expected = params["embedding"] + 1.5 * values[f"{prefix}A"].T @ values[f"{prefix}B"].T
    np.testing.assert_allclose(variables["params"]["embedding"], expected, atol=1e-5)
    np.testing.assert_array_equal(variables["params"]["output_embedding"], params["embedding"])


def test_folders_that_are_not_whole(tmp_path):
    path = folder(tmp_path / "peft")
    whole = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: truncated or damaged"):
        load_peft(path, MODEL)
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only adapter_model\.bin; convert it"):
        load_peft(path, MODEL)
    (path / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json: no such file"):
        load_peft(path, MODEL)


def test_what_is_not_an_adapter_of_the_model_is_not_written(tmp_path):
    model, adapters = load_peft(folder(tmp_path / "peft"), MODEL)
    with pytest.raises(ValueError, match="no LoraSpec"):
        save_peft(MODEL, adapters, tmp_path / "new")
    other = Decoder(dataclasses.replace(model.config, lora=LoraSpec(2, 3, targets="q_proj")))
    with pytest.raises(ValueError, match="not those of the model"):
        save_peft(other, adapters, tmp_path / "new")
    with pytest.raises(UserError, match="is not empty"):
        save_peft(model, adapters, tmp_path / "peft")
    assert [path.name for path in tmp_path.iterdir()] == ["peft"]

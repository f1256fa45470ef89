"""Folders in the Hugging Face form: strict both ways, sharded, without a second copy."""

import dataclasses
import json
from pathlib import Path

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, PartitionSpec
from safetensors.numpy import load_file, save_file

from jax_rele.errors import UserError
from jax_rele.models import Decoder, DecoderConfig, LoraSpec, Rope, from_hf, hf_config, load_params, to_hf, weights
from jax_rele.models.partitioning import AXES

CONFIG = DecoderConfig(
    family="llama",
    vocab_size=24,
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=20,
    tied=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    qk_norm=False,
    max_length=64,
)
SHAPES = {
    "model.embed_tokens.weight": (24, 16),
    "model.norm.weight": (16,),
    "lm_head.weight": (24, 16),
    **{
        f"model.layers.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "input_layernorm.weight": (16,),
            "post_attention_layernorm.weight": (16,),
            "self_attn.q_proj.weight": (32, 16),
            "self_attn.k_proj.weight": (16, 16),
            "self_attn.v_proj.weight": (16, 16),
            "self_attn.o_proj.weight": (16, 32),
            "self_attn.q_proj.bias": (32,),
            "self_attn.k_proj.bias": (16,),
            "self_attn.v_proj.bias": (16,),
            "self_attn.o_proj.bias": (16,),
            "mlp.gate_proj.weight": (20, 16),
            "mlp.up_proj.weight": (20, 16),
            "mlp.down_proj.weight": (16, 20),
            "mlp.gate_proj.bias": (20,),
            "mlp.up_proj.bias": (20,),
            "mlp.down_proj.bias": (16,),
        }.items()
    },
}


def tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32).astype(dtype) for name, shape in SHAPES.items()}


def folder(path: Path, values: dict[str, np.ndarray], config: DecoderConfig = CONFIG) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hf_config(config)))
    save_file(values, path / "model.safetensors")
    return path


def mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def same(a, b):
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(np.asarray(a[path], np.float32), np.asarray(b[path], np.float32), err_msg=path)


def shapes(config: DecoderConfig) -> dict:
    return nn.unbox(jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))))


def random_params(config: DecoderConfig) -> dict:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes(config))


# ---- one table, both ways


def test_every_tensor_has_its_place(tmp_path):
    values = tensors()
    model, variables = from_hf(folder(tmp_path / "hf", values), dtype=jnp.float32)
    assert model == Decoder(CONFIG)
    params = variables["params"]
    np.testing.assert_array_equal(params["embedding"], values["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["output_embedding"], values["lm_head.weight"])
    np.testing.assert_array_equal(params["final_norm"]["scale"], values["model.norm.weight"])
    for layer in range(2):
        theirs = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in values.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        ours = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        np.testing.assert_array_equal(ours["input_norm"]["scale"], theirs["input_layernorm.weight"])
        np.testing.assert_array_equal(ours["mlp_norm"]["scale"], theirs["post_attention_layernorm.weight"])
        for block, name in (("attention", "self_attn"), ("mlp", "mlp")):
            for projection, leaves in ours[block].items():
                np.testing.assert_array_equal(leaves["kernel"], theirs[f"{name}.{projection}.weight"].T)
                np.testing.assert_array_equal(leaves["bias"], theirs[f"{name}.{projection}.bias"])
    to_hf(model, variables, tmp_path / "again")
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(written[name], value)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_written_and_loaded_again_is_bit_equal(family, dtype, tmp_path):
    config = DecoderConfig(
        family=family,
        vocab_size=24,
        layers=3,
        width=16,
        heads=4,
        kv_heads=2,
        head_dim=6,
        mlp_width=20,
        rope=Rope(5e5, "yarn", 4.0, 32),
        tied=family in ("qwen2", "qwen3"),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        windows={"qwen2": (0, 5, 0), "mistral": (7, 7, 7)}.get(family, ()),
        max_length=64,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(dtype),
    )
    params = random_params(config)
    to_hf(Decoder(config), params, tmp_path / "hf", max_shard_size=2000)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    model, loaded = from_hf(tmp_path / "hf", dtype=dtype)
    assert model.config == config
    same(loaded, params)


def test_values_are_cast_as_they_are_read(tmp_path):
    values = tensors()
    path = folder(tmp_path / "hf", values)
    _, variables = from_hf(path, dtype=jnp.bfloat16)
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), from_hf(path, dtype=jnp.float32)[1])
    same(variables, expected)
    half = folder(tmp_path / "half", tensors(np.float16))
    assert from_hf(half, dtype=jnp.float32)[1]["params"]["embedding"].dtype == jnp.float32


# ---- meshes


@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 2), (8, 1, 1)])
def test_loading_sharded_equals_loading_whole(sizes, tmp_path):
    path = folder(tmp_path / "hf", tensors())
    model, whole = from_hf(path, dtype=jnp.float32)
    _, sharded = from_hf(path, dtype=jnp.float32, mesh=mesh(*sizes))
    same(sharded, whole)
    kernel = sharded["params"]["layers"]["attention"]["q_proj"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16 // sizes[1], 32 // sizes[2])}
    to_hf(model, sharded, tmp_path / "again", max_shard_size=3000)
    same(from_hf(tmp_path / "again", dtype=jnp.float32)[1], whole)


def test_a_shard_is_read_once_and_nothing_else(tmp_path, monkeypatch):
    read, original = [], weights._read

    def count(*args):
        values = original(*args)
        read.append(values.nbytes)
        return values

    monkeypatch.setattr(weights, "_read", count)
    path = folder(tmp_path / "hf", tensors())
    params = load_params(path, CONFIG, mesh(2, 2, 2))
    assert sum(read) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_a_mesh_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UserError, match="mesh: tensor = 3 devices do not divide"):
        from_hf(folder(tmp_path / "hf", tensors()), dtype=jnp.float32, mesh=mesh(1, 1, 3))


# ---- bad folders


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        from_hf(path, dtype=jnp.float32)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def nothing_is_read(monkeypatch):
    def read(*args):
        raise AssertionError("a value was read before the checks were done")

    monkeypatch.setattr(weights, "_read", read)


@pytest.mark.usefixtures("nothing_is_read")
def test_tensors_that_do_not_fit_are_listed(tmp_path):
    values = tensors()
    del values["model.norm.weight"]
    values["score.weight"] = np.zeros((1, 16), np.float32)
    message = refused(folder(tmp_path / "a", values))
    assert "1 missing (model.norm.weight); 1 not of the model (score.weight)" in message
    message = refused(folder(tmp_path / "b", {name.removeprefix("model."): value for name, value in tensors().items()}))
    assert "34 missing (model.embed_tokens.weight, model.layers.0." in message
    assert "34 not of the model (" in message
    values = tensors()
    values["model.layers.1.mlp.up_proj.weight"] = np.zeros((16, 20), np.float32)
    message = refused(folder(tmp_path / "c", values))
    assert "model.layers.1.mlp.up_proj.weight is [16, 20] but config.json says [20, 16]" in message
    values = tensors()
    values["model.layers.1.mlp.up_proj.weight"] = np.zeros((20, 16), np.int8)
    assert "model.layers.1.mlp.up_proj.weight is I8; quantised" in refused(folder(tmp_path / "d", values))


def test_what_follows_from_the_config_may_be_there(tmp_path):
    values = tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    from_hf(folder(tmp_path / "hf", values), dtype=jnp.float32)


def test_a_tied_model_may_repeat_its_embedding_but_not_change_it(tmp_path):
    tied = dataclasses.replace(CONFIG, tied=True)
    values = tensors()
    message = refused(folder(tmp_path / "different", values, tied))
    assert "lm_head.weight differs from model.embed_tokens.weight" in message
    values["lm_head.weight"] = values["model.embed_tokens.weight"].copy()
    _, repeated = from_hf(folder(tmp_path / "repeated", values, tied), dtype=jnp.float32)
    del values["lm_head.weight"]
    _, absent = from_hf(folder(tmp_path / "absent", values, tied), dtype=jnp.float32)
    same(repeated, absent)


@pytest.mark.usefixtures("nothing_is_read")
def test_folders_that_are_not_whole(tmp_path):
    path = folder(tmp_path / "hf", tensors())
    file = path / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-5], whole[:100], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        assert f"{file}: truncated or damaged" in refused(path)
    file.unlink()
    assert "no weights" in refused(path)
    (path / "pytorch_model.bin").write_bytes(b"")
    assert "only pytorch_model.bin; convert it" in refused(path)
    (path / "model-00001-of-00002.safetensors").write_bytes(whole)
    assert "has model-00001-of-00002.safetensors but neither model.safetensors nor its index" in refused(path)
    index = path / "model.safetensors.index.json"
    index.write_text("{}")
    assert f"{index}: no `weight_map`" in refused(path)
    names = dict.fromkeys(SHAPES, "model-00001-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": {**names, "lm_head.weight": "model-00002-of-00002.safetensors"}}))
    assert "model-00002-of-00002.safetensors: named by model.safetensors.index.json but not there" in refused(path)
    (path / "model-00002-of-00002.safetensors").write_bytes(whole)
    assert "is in model-00001-of-00002.safetensors too" in refused(path)
    save_file({"other": np.zeros(1)}, path / "model-00002-of-00002.safetensors")
    assert "tensor lm_head.weight is not in model-00002-of-00002.safetensors" in refused(path)
    (path / "config.json").unlink()
    assert f"{path}: no config.json" in refused(path)


# ---- writing


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    model, variables = from_hf(folder(tmp_path / "hf", tensors()), dtype=jnp.float32)
    with pytest.raises(UserError, match="exists and is not empty"):
        to_hf(model, variables, tmp_path / "hf")
    original, calls = weights.on_host, []

    def fail_late(x):
        calls.append(x)
        if len(calls) > 20:
            raise RuntimeError("the disk is full")
        return original(x)

    monkeypatch.setattr(weights, "on_host", fail_late)
    with pytest.raises(RuntimeError):
        to_hf(model, variables, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    monkeypatch.undo()
    (tmp_path / "new").mkdir()
    to_hf(model, variables, tmp_path / "new")
    same(from_hf(tmp_path / "new", dtype=jnp.float32)[1], variables)


def test_tokenizer_and_token_ids_come_from_the_source(tmp_path):
    source = folder(tmp_path / "hf", tensors())
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "eos_token_id": [3, 4], "bos_token_id": 1}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        (source / name).write_text(f'"{name}"')
    model, variables = from_hf(source, dtype=jnp.float32)
    to_hf(model, variables, tmp_path / "new", source=source)
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == ([3, 4], 1)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "new" / "tokenizer.json").read_text() == '"tokenizer.json"'


def test_adapters_are_merged_into_what_is_written(tmp_path):
    path = folder(tmp_path / "hf", tensors())
    model, variables = from_hf(path, dtype=jnp.float32, lora=LoraSpec(2, 3.0, targets="q_proj|down_proj"))
    adapters = random_params(model.config)["lora"]
    tokens = np.arange(20).reshape(2, 10)
    apply = jax.jit(lambda model, variables: model.apply(variables, tokens).hidden, static_argnums=0)
    adapted = apply(model, {**variables, "lora": adapters})
    assert np.abs(adapted - apply(model, variables)).max() > 0.1
    to_hf(model, {**variables, "lora": adapters}, tmp_path / "merged")
    merged, loaded = from_hf(tmp_path / "merged", dtype=jnp.float32)
    # The kernels are the sums, rounded once; what rounding does to the outputs of such large weights is another matter.
    kernels = [flatten_dict(each["params"], sep="/") for each in (variables, loaded)]
    factors = flatten_dict(adapters, sep="/")
    changed = {path.removesuffix("/a") for path in factors if path.endswith("/a")}
    for path in kernels[0]:
        exact = np.asarray(kernels[0][path], np.float64)
        if (module := path.removesuffix("/kernel")) in changed:
            a, b = (np.asarray(factors[f"{module}/{name}"], np.float64) for name in "ab")
            exact = exact + model.config.lora.scale * a @ b
        np.testing.assert_allclose(kernels[1][path], exact, rtol=3e-7, atol=3e-7)
    assert len(changed) == 2
    np.testing.assert_allclose(apply(merged, loaded), adapted, atol=2e-4)
    with pytest.raises(ValueError, match="no LoraSpec"):
        to_hf(Decoder(CONFIG), {**variables, "lora": adapters}, tmp_path / "other")
    with pytest.raises(ValueError, match="not those of the model"):
        to_hf(model, {"params": {"embedding": variables["params"]["embedding"]}}, tmp_path / "other")


# ---- the hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's local cache, with the network off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_name_on_the_hub_is_found_in_its_cache(cache, tmp_path):
    model = cache / "models--org--name"
    (model / "snapshots").mkdir(parents=True)
    folder(model / "snapshots" / "abc", tensors())
    for revision in ("main", "v2"):
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / revision).write_text("abc")
    expected = from_hf(folder(tmp_path / "hf", tensors()), dtype=jnp.float32)
    for name in ("hf:org/name", "hf:org/name@v2"):
        loaded = from_hf(name, dtype=jnp.float32)
        assert loaded[0] == expected[0]
        same(loaded[1], expected[1])


@pytest.mark.usefixtures("cache")
def test_a_name_that_the_hub_does_not_give():
    for name, message in (("hf:org/absent", "not in the local cache"), ("hf:a b/c", "write hf:ORG/NAME")):
        with pytest.raises(UserError, match=message) as error:
            from_hf(name, dtype=jnp.float32)
        assert "\n" not in str(error.value)

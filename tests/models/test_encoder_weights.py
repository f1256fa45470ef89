"""Encoders' folders in the Hugging Face form: strict both ways, with and without heads, sharded."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from safetensors.numpy import load_file, save_file

from jax_rele.errors import UserError
from jax_rele.models import Encoder, EncoderConfig, check_weights, from_hf, load_params, to_hf, weights
from jax_rele.models.encoder_families import encoder_hf_config
from jax_rele.models.partitioning import AXES

from .test_encoder import CONFIGS, TOKENS, TYPES, VALID, random_variables

CONFIG = dataclasses.replace(CONFIGS["bert"], heads=4)


def names(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's tensors in torch, for width 24 and 32 in the feed-forward."""
    square, up, down, one = (24, 24), (32, 24), (24, 32), (24,)
    if family == "modernbert":
        return {
            "attn_norm.weight": one,
            "attn.Wqkv.weight": (72, 24),
            "attn.Wo.weight": square,
            "mlp_norm.weight": one,
            "mlp.Wi.weight": (64, 24),
            "mlp.Wo.weight": down,
        }
    linears = {
        "bert": ("attention.self.{}", "attention.output.dense", "intermediate.dense", "output.dense"),
        "distilbert": ("attention.{}_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
    }[family]
    norms = {
        "bert": ("attention.output.LayerNorm", "output.LayerNorm"),
        "distilbert": ("sa_layer_norm", "output_layer_norm"),
    }[family]
    shapes = {}
    kinds = ("query", "key", "value") if family == "bert" else "qkv"
    for name, shape in (
        *((linears[0].format(kind), square) for kind in kinds),
        (linears[1], square),
        (linears[2], up),
        (linears[3], down),
    ):
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {f"{norm}.{leaf}": one for norm in norms for leaf in ("weight", "bias")}


def tensors(family: str = "bert", pooler: bool = True) -> dict[str, np.ndarray]:
    """What torch saves of a small model, written down from its modules' names."""
    kind = "bert" if "roberta" in family else family
    layer = {"bert": "encoder.layer", "distilbert": "transformer.layer", "modernbert": "layers"}[kind]
    shapes: dict[str, tuple[int, ...]] = {}
    if kind == "modernbert":
        shapes |= {"embeddings.tok_embeddings.weight": (40, 24), "embeddings.norm.weight": (24,)}
        shapes |= {"final_norm.weight": (24,)}
    else:
        shapes |= {"embeddings.word_embeddings.weight": (40, 24)}
        shapes |= {"embeddings.position_embeddings.weight": (26 if "roberta" in family else 24, 24)}
        shapes |= {f"embeddings.LayerNorm.{leaf}": (24,) for leaf in ("weight", "bias")}
    if kind == "bert":
        shapes["embeddings.token_type_embeddings.weight"] = (1 if "roberta" in family else 2, 24)
        if pooler:
            shapes |= {"pooler.dense.weight": (24, 24), "pooler.dense.bias": (24,)}
    for number in range(3):
        shapes |= {f"{layer}.{number}.{name}": shape for name, shape in names(kind).items()}
    if kind == "modernbert":
        del shapes["layers.0.attn_norm.weight"]
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def folder(path: Path, values: dict[str, np.ndarray], config: EncoderConfig = CONFIG) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(encoder_hf_config(config)))
    save_file(values, path / "model.safetensors")
    return path


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


FAMILIES = {**CONFIGS, "xlm-roberta": dataclasses.replace(CONFIGS["roberta"], family="xlm-roberta")}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_has_its_place_and_goes_back(family, tmp_path):
    values = tensors(family)
    model, variables = from_hf(folder(tmp_path / "hf", values, FAMILIES[family]), dtype=jnp.float32)
    assert model == Encoder(FAMILIES[family])
    params = variables["params"]
    if family == "modernbert":
        for part, name in enumerate(("query", "key", "value")):
            theirs = values["layers.1.attn.Wqkv.weight"][24 * part : 24 * (part + 1)]
            np.testing.assert_array_equal(params["layers"][name]["kernel"][1], theirs.T)
        for part, name in enumerate(("gate", "up")):
            theirs = values["layers.2.mlp.Wi.weight"][32 * part : 32 * (part + 1)]
            np.testing.assert_array_equal(params["layers"][name]["kernel"][2], theirs.T)
        following = [values[f"layers.{number}.attn_norm.weight"] for number in (1, 2)]
        np.testing.assert_array_equal(params["layers"]["next_norm"]["scale"], [*following, values["final_norm.weight"]])
    if family == "bert":
        np.testing.assert_array_equal(params["pooler"]["kernel"], values["pooler.dense.weight"].T)
        theirs = values["encoder.layer.1.intermediate.dense.weight"]
        np.testing.assert_array_equal(params["layers"]["up"]["kernel"][1], theirs.T)
    to_hf(model, variables, tmp_path / "again", max_shard_size=9000)
    written = {}
    for file in (tmp_path / "again").glob("*.safetensors"):
        written |= load_file(file)
    assert written.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(written[name], value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_written_and_loaded_again_is_bit_equal(family, dtype, tmp_path):
    config = dataclasses.replace(FAMILIES[family], dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype), dropout=0.2)
    variables = random_variables(config)
    to_hf(Encoder(config), variables, tmp_path / "hf")
    assert "pooler.dense.weight" not in load_file(tmp_path / "hf" / "model.safetensors")
    model, loaded = from_hf(tmp_path / "hf", dtype=dtype)
    assert model.config == config
    same(loaded, variables)


def test_parameters_may_be_kept_wider_than_activations(tmp_path):
    path = folder(tmp_path / "hf", tensors())
    model, variables = from_hf(path, dtype=jnp.bfloat16, param_dtype=jnp.float32, dropout=0.0)
    assert (model.config.dtype, model.config.dropout) == (jnp.bfloat16, 0.0)
    same(variables, from_hf(path, dtype=jnp.float32)[1])


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_loading_sharded_equals_loading_whole(family, tmp_path):
    config = dataclasses.replace(CONFIGS[family], heads=4)
    path = folder(tmp_path / "hf", tensors(family), config)
    model, whole = from_hf(path, dtype=jnp.float32)
    mesh = jax.make_mesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    _, sharded = from_hf(path, dtype=jnp.float32, mesh=mesh)
    same(sharded, whole)
    kernel = sharded["params"]["layers"]["query"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    apply = jax.jit(model.apply)
    ours, expected = (apply(variables, TOKENS, TYPES, VALID) for variables in (sharded, whole))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    to_hf(model, sharded, tmp_path / "again")
    same(from_hf(tmp_path / "again", dtype=jnp.float32)[1], whole)


# ---- what is there beside the encoder

HEADS = {
    "bert": ("bert.", "cls.predictions.bias", "cls.seq_relationship.weight", "classifier.weight", "qa_outputs.bias"),
    "roberta": ("roberta.", "lm_head.layer_norm.weight", "classifier.out_proj.weight"),
    "distilbert": ("distilbert.", "vocab_transform.weight", "pre_classifier.bias", "vocab_projector.bias"),
    "modernbert": ("model.", "head.norm.weight", "decoder.bias", "classifier.weight"),
}


@pytest.mark.parametrize("family", HEADS)
def test_heads_are_left_out_and_nothing_else(family, tmp_path):
    prefix, *heads = HEADS[family]
    plain = tensors(family, pooler=False)
    _, expected = from_hf(folder(tmp_path / "plain", plain, CONFIGS[family]), dtype=jnp.float32)
    assert "pooler" not in expected["params"]
    values = {prefix + name: value for name, value in plain.items()} | {name: np.zeros(2) for name in heads}
    _, loaded = from_hf(folder(tmp_path / "headed", values, CONFIGS[family]), dtype=jnp.float32)
    same(loaded, expected)
    strange = folder(tmp_path / "strange", values | {"adapter.weight": np.zeros(2)}, CONFIGS[family])
    assert "1 not of the model (adapter.weight)" in refused(strange)
    inner = folder(tmp_path / "inner", values | {f"{prefix}{heads[0]}": np.zeros(2)}, CONFIGS[family])
    assert f"1 not of the model ({prefix}{heads[0]})" in refused(inner)
    # A head without the prefix has no place: the folder is of one model, not of two.
    bare = folder(tmp_path / "bare", plain | {heads[0]: np.zeros(2)}, CONFIGS[family])
    assert f"1 not of the model ({heads[0]})" in refused(bare)


def test_old_names_and_buffers(tmp_path):
    values = tensors()
    _, expected = from_hf(folder(tmp_path / "new", values), dtype=jnp.float32)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in values.items()
    }
    old["embeddings.position_ids"] = np.arange(24)[None]
    same(from_hf(folder(tmp_path / "old", old), dtype=jnp.float32)[1], expected)
    both = folder(tmp_path / "both", values | {"embeddings.LayerNorm.gamma": np.zeros(24, np.float32)})
    assert "tensor embeddings.LayerNorm.weight is there by an older name too" in refused(both)


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
def test_what_does_not_fit_is_named(tmp_path):
    values = tensors()
    del values["encoder.layer.2.output.dense.bias"]
    values["encoder.layer.3.output.dense.bias"] = np.zeros(24, np.float32)
    message = refused(folder(tmp_path / "a", values))
    assert "1 missing (encoder.layer.2.output.dense.bias)" in message
    assert "1 not of the model (encoder.layer.3.output.dense.bias)" in message
    values = tensors()
    del values["pooler.dense.bias"]
    assert "1 missing (pooler.dense.bias)" in refused(folder(tmp_path / "b", values))
    values = tensors()
    values["embeddings.position_embeddings.weight"] = np.zeros((30, 24), np.float32)
    assert "position_embeddings.weight is [30, 24] but config.json says [24, 24]" in refused(
        folder(tmp_path / "c", values)
    )
    values = tensors("modernbert")
    values["layers.0.attn_norm.weight"] = np.zeros(24, np.float32)
    assert "1 not of the model (layers.0.attn_norm.weight)" in refused(
        folder(tmp_path / "d", values, CONFIGS["modernbert"])
    )
    path = folder(tmp_path / "e", tensors())
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert f"{file}: truncated or damaged" in refused(path)
    with pytest.raises(UserError, match="truncated"):
        check_weights(path, CONFIG)
    file.unlink()
    assert "no weights" in refused(path)
    (path / "config.json").unlink()
    assert f"{path}: no config.json" in refused(path)
    (path / "config.json").write_text('{"model_type": "albert"}')
    message = refused(path)
    assert "model_type 'albert' is not supported" in message
    assert "qwen3" in message
    assert "modernbert" in message


def test_weights_of_another_shape_are_found_by_their_headers(tmp_path):
    path = folder(tmp_path / "hf", tensors())
    check_weights(path, CONFIG)
    same({"params": load_params(path, CONFIG)}, from_hf(path, dtype=jnp.float32)[1])
    with pytest.raises(UserError, match=r"but config\.json says"):
        check_weights(path, dataclasses.replace(CONFIG, vocab_size=41))


def test_what_has_no_name_there_is_not_written(tmp_path):
    config = CONFIGS["distilbert"]
    with pytest.raises(ValueError, match="not those of the model"):
        to_hf(Encoder(config), random_variables(config, pooler=True), tmp_path / "hf")
    variables = random_variables(CONFIG)
    del variables["params"]["embedding_norm"]
    with pytest.raises(ValueError, match="not those of the model"):
        to_hf(Encoder(CONFIG), variables, tmp_path / "hf")


def test_tokenizer_and_token_ids_come_from_the_source(tmp_path):
    config = CONFIGS["roberta"]
    source = folder(tmp_path / "hf", tensors("roberta"), config)
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "eos_token_id": 7, "pad_token_id": 9}))
    for name in ("vocab.txt", "sentencepiece.bpe.model", "tokenizer.json", "README.md"):
        (source / name).write_text(name)
    to_hf(Encoder(config), random_variables(config), tmp_path / "new", source=source)
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    # Positions begin after padding's id, so that is the model's and not the tokenizer's to say.
    assert (written["eos_token_id"], written["bos_token_id"], written["pad_token_id"]) == (7, None, 1)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "sentencepiece.bpe.model",
        "tokenizer.json",
    }

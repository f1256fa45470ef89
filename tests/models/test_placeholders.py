"""Folders of models that hold something else than the model: recognised by name."""

import json
import shutil

import jax.numpy as jnp
import pytest

from jax_rele.data.tokens.tokenizers import DECODER_TOKENS, load_tokenizer
from jax_rele.errors import UserError
from jax_rele.models import Decoder, DecoderConfig, files, from_hf, load_peft
from jax_rele.models.bundled import folder as bundled_folder
from jax_rele.models.weights import check_weights, weights_folder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n"
PAGE = b"\n<!DOCTYPE html><html><title>Sign in</title></html>"


@pytest.fixture
def model(tmp_path):
    shutil.copytree(bundled_folder("bundled:decoder"), tmp_path / "model")
    return tmp_path / "model"


def refused(act, *arguments):
    with pytest.raises(UserError) as error:
        act(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def load(folder):
    return from_hf(folder, dtype=jnp.float32)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(("content", "words"), [(POINTER, "is a Git LFS pointer"), (PAGE, "is a web page")])
def test_a_pointer_or_page_in_place_of_weights(model, name, content, words):
    (model / name).write_bytes(content)
    message = refused(load, model)
    assert message.startswith(f"{model / name}: {words}, not the file; ")
    assert "git lfs pull" in message or "download the file itself" in message


def test_a_pointer_in_place_of_a_shard_an_index_or_a_tokenizer(model):
    weights = model / "model.safetensors"
    index = {"weight_map": {"a": "model-1.safetensors"}}
    weights.unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model-1.safetensors").write_bytes(POINTER)
    config = load(bundled_folder("bundled:decoder"))[0].config
    assert "model-1.safetensors: is a Git LFS pointer" in refused(check_weights, model, config)
    (model / "model.safetensors.index.json").write_bytes(POINTER)
    assert "index.json: is a Git LFS pointer" in refused(check_weights, model, config)
    (model / "tokenizer.json").write_bytes(POINTER)
    assert "tokenizer.json: is a Git LFS pointer" in refused(load_tokenizer, model, DECODER_TOKENS)


def test_a_pointer_in_place_of_adapters_and_gguf(tmp_path):
    base = Decoder(DecoderConfig(vocab_size=8, layers=1, width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=8))
    raw = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(raw))
    (tmp_path / "adapter_model.safetensors").write_bytes(POINTER)
    assert "adapter_model.safetensors: is a Git LFS pointer" in refused(load_peft, tmp_path, base)
    (tmp_path / "adapter_config.json").write_bytes(POINTER)
    assert "adapter_config.json: is a Git LFS pointer" in refused(load_peft, tmp_path, base)
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(POINTER)
    assert "m.gguf: is a Git LFS pointer" in refused(load, f"gguf:{tmp_path / 'm.gguf'}")


def test_a_folder_of_gguf_files_alone(model, tmp_path):
    (tmp_path / "only").mkdir()
    for name in ("q4.gguf", "q8.gguf"):
        (tmp_path / "only" / name).write_bytes(b"GGUF")
    hint = f"write gguf:{tmp_path}/only/q4.gguf or another of its 2 GGUF files"
    assert refused(load, tmp_path / "only").endswith(f"no config.json; for a decoder {hint}")
    (model / "model.safetensors").unlink()
    (model / "q4.gguf").write_bytes(b"GGUF")
    assert f"no weights; for a decoder write gguf:{model}/q4.gguf" in refused(load, model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.onnx", "x.pth"])
def test_weights_in_other_forms_are_named(model, name):
    (model / "model.safetensors").rename(model / name)
    assert f"has no safetensors, only {name}; convert it" in refused(load, model)


def test_a_missing_folder_is_named_with_its_key_and_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = f"teacher.init: smol: no such folder; it is neither beside the config nor in {tmp_path}"
    assert refused(weights_folder, "smol", "teacher.init") == message
    assert refused(weights_folder, "/smol", "student.init") == "student.init: /smol: no such folder"


@pytest.mark.parametrize("path", ["teacher.init", "student.init"])
def test_gguf_files_alone_are_named_with_what_each_model_needs(model, path):
    (model / "model.safetensors").rename(model / "model-q4.gguf")
    message = refused(weights_folder, str(model), path)
    assert message.startswith(f"{path}: {model}: holds no weights but GGUF files")
    if path == "teacher.init":
        assert message.endswith(f"write gguf:{model / 'model-q4.gguf'}")
    else:
        assert "a student needs an encoder in the Hugging Face form" in message
        assert "gguf:" not in message


@pytest.mark.parametrize("path", ["teacher.init", "student.init"])
@pytest.mark.parametrize("has_config", [True, False])
def test_adapters_alone_are_sent_to_their_base(model, path, has_config):
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    if not has_config:
        (model / "config.json").unlink()
    message = refused(weights_folder, str(model), path)
    assert message.startswith(f"{path}: {model}: holds PEFT adapters, no model; merge them into org/base")
    assert "docs/weights.md" in message


def test_adapters_beside_a_whole_model_do_no_harm(model):
    (model / "adapter_config.json").write_text("{}")
    assert weights_folder(str(model), "teacher.init") == model


@pytest.mark.parametrize("missing", [None, "config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_in_the_hubs_cache_is_local_where_it_is_whole(model, monkeypatch, missing):
    monkeypatch.setattr(files, "snapshot_download", lambda name, **_: str(model))
    if missing:
        (model / missing).unlink()
    assert files.is_local("hf:org/name@main") == (missing is None)
    assert files.is_local(str(model))
    assert files.is_local("bundled:decoder")


@pytest.mark.parametrize("path", ["teacher.init", "student.init"])
def test_adapters_beside_a_model_are_not_left_out_in_silence(model, path):
    weights_folder(str(model), path)
    (model / "adapter_config.json").write_text("{}")
    (model / "adapter_model.safetensors").write_bytes(b"")
    message = refused(weights_folder, str(model), path)
    assert "holds PEFT adapters beside the model, which would not be read; merge them" in message

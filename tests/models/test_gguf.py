"""GGUF files: what llama.cpp's layout says, against arrays that are laid out here by its published rules."""

import json
import sys
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.errors import UserError
from jax_rele.models import Decoder, from_hf, to_hf
from jax_rele.models import gguf as reader
from jax_rele.models.families import decoder_config, hf_config

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODULES = {hf: name for name, hf in reader.TENSORS.items()}
OUTER = {hf: name for name, hf in reader.OUTER_TENSORS.items()}


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer as GPT-2's, with two control tokens."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    trained.train_from_iterator(["red shoes 12 don't", "Acme café 電池"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token=special[1], eos_token=special[2])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(reader, "HF_HOME", str(tmp_path_factory.mktemp("cache")))


def interleaved(rows, heads):
    """llama.cpp's order of the rows of queries and keys: the two halves of a head's dimensions alternate."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_name(name):
    stem, _, suffix = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{suffix}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{MODULES[module]}.{suffix}"


def write(path, kind, config, tensors, tokenizer, quantization="F32", change=lambda writer: None, pre="gpt-2"):
    """Writes a GGUF file; returns the values that a reader should see, by name in `transformers`."""
    writer, expected = gguf.GGUFWriter(path, kind), {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens) | {"<|endoftext|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([reader.CONTROL if token in special else 1 for token, _ in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    change(writer)
    for name, values in tensors.items():
        values = np.asarray(values, np.float32)
        quantized = quantization if values.ndim == 2 else "F32"
        type_ = gguf.GGMLQuantizationType[quantized]
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        stored = interleaved(values, config[heads]) if kind == "llama" and heads else values
        data = quantize(stored, type_)
        back = data if quantized in ("F32", "F16") else dequantize(data, type_)
        if kind == "llama" and heads:
            back = back.reshape(config[heads], -1, 2, *back.shape[1:]).swapaxes(1, 2).reshape(back.shape)
        expected[name] = np.asarray(back, np.float32)
        writer.add_tensor(gguf_name(name), data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def model_of(kind, tmp_path):
    """A random model of a family: its config, its tensors by name."""
    raw = {"model_type": kind, **SIZES, "tie_word_embeddings": kind == "llama"}
    config = decoder_config(raw, dtype=jnp.float32, param_dtype=jnp.float32)
    model = Decoder(config)
    params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
    # Biases and norms start at constants, which would hide that they are exchanged.
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    to_hf(model, params, tmp_path / "hf")
    return hf_config(config), load_file(tmp_path / "hf" / "model.safetensors"), model, params


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_float_file_is_the_model(tmp_path, tokenizer, kind):
    config, tensors, model, params = model_of(kind, tmp_path)
    write(tmp_path / "m.gguf", kind, config, tensors, tokenizer)
    read, variables = from_hf(f"gguf:{tmp_path / 'm.gguf'}", dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], params["params"])
    ids = jnp.array([[5, 9, 250, 17]])
    np.testing.assert_array_equal(read.apply(variables, ids).hidden, model.apply(params, ids).hidden)


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_tensors_are_dequantized(tmp_path, tokenizer, quantization):
    config, tensors, _, _ = model_of("llama", tmp_path)
    expected = write(tmp_path / "m.gguf", "llama", config, tensors, tokenizer, quantization)
    folder = reader.folder(f"gguf:{tmp_path / 'm.gguf'}")
    read = load_file(folder / "model.safetensors")
    assert read.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(np.asarray(read[name], np.float32), values, err_msg=name)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("red shoes 12'tAcmé電池\n ✅<|im_end|>"), max_size=30))
def test_the_tokenizer_writes_the_same_tokens(tmp_path, tokenizer, text):
    file = tmp_path / "t.gguf"
    if not file.exists():
        config, tensors, _, _ = model_of("llama", tmp_path)
        write(file, "llama", config, tensors, tokenizer)
    read = load_tokenizer(reader.folder(f"gguf:{file}"), ("eos",))
    assert read(text, split_special_tokens=True)["input_ids"] == tokenizer(text, split_special_tokens=True)["input_ids"]
    assert read(text)["input_ids"] == read(text, split_special_tokens=True)["input_ids"]
    assert (read.bos_token_id, read.eos_token_id) == (1, 2)


def test_a_file_is_converted_once_and_a_changed_one_again(tmp_path, tokenizer, monkeypatch):
    config, tensors, _, _ = model_of("llama", tmp_path)
    file, calls, convert = tmp_path / "m.gguf", [], reader._convert
    monkeypatch.setattr(reader, "_convert", lambda *args: calls.append(1) or convert(*args))
    write(file, "llama", config, tensors, tokenizer)
    first = reader.folder(f"gguf:{file}")
    assert reader.folder(f"gguf:{file}") == first
    write(file, "llama", config, tensors, tokenizer, "F16")
    assert reader.folder(f"gguf:{file}") != first
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda writer: writer.add_uint32("llama.attention.sliding_window", 8), "key llama.attention.sliding_window"),
        (lambda writer: writer.add_uint32("split.count", 3), "one of 3 parts; join them"),
        (lambda writer: writer.add_rope_dimension_count(8), r"rope.dimension_count is 8; supported is 16"),
        (lambda writer: writer.add_tensor("blk.0.extra.weight", np.zeros((2, 2), np.float32)), "blk.0.extra.weight is"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.zeros(8, np.float32)), "rope_freqs.weight"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, tokenizer, change, message):
    config, tensors, _, _ = model_of("llama", tmp_path)
    write(tmp_path / "m.gguf", "llama", config, tensors, tokenizer, change=change)
    error = error_of(tmp_path / "m.gguf")
    assert message in error


def error_of(path):
    with pytest.raises(UserError) as caught:
        reader.folder(f"gguf:{path}")
    assert "\n" not in str(caught.value)
    assert {entry.suffix for entry in Path(reader.HF_HOME).rglob("*") if entry.is_file()} <= {".lock"}
    return str(caught.value)


def test_other_files_are_named(tmp_path, tokenizer):
    config, tensors, _, _ = model_of("llama", tmp_path)
    write(tmp_path / "whole.gguf", "llama", config, tensors, tokenizer)
    content = (tmp_path / "whole.gguf").read_bytes()
    for size in (20, 2000, len(content) // 2, len(content) - 100):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        assert "truncated" in error_of(tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    assert "not a GGUF file" in error_of(tmp_path / "text.gguf")
    assert "cannot be read: No such file" in error_of(tmp_path / "none.gguf")
    write(tmp_path / "other.gguf", "gptneox", config, tensors, tokenizer)
    assert "architecture 'gptneox' is not supported; supported are" in error_of(tmp_path / "other.gguf")
    write(tmp_path / "pre.gguf", "llama", config, tensors, tokenizer, pre="deepseek-coder")
    assert "tokenizer.ggml.pre 'deepseek-coder' is not supported" in error_of(tmp_path / "pre.gguf")
    fewer = {**tensors, "model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:200]}
    write(tmp_path / "fewer.gguf", "llama", config, fewer, tokenizer)
    assert "the tokenizer has 286 tokens, the embedding 200 rows" in error_of(tmp_path / "fewer.gguf")


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'jax_rele[gguf]'" in error_of(tmp_path / "m.gguf")

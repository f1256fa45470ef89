"""Configs of open models: read, written and refused."""

import copy
import dataclasses
import json

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.errors import UserError
from jax_rele.models import DecoderConfig, LoraSpec, Rope, decoder_config, hf_config
from jax_rele.models.families import FAMILIES

COMMON = {"transformers_version": "4.40.0", "use_cache": True, "initializer_range": 0.02, "attention_dropout": 0.0}
QWEN25_7B = {
    **COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_8B = {
    **COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA31_8B = {
    **COMMON,
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
PUBLISHED = {"qwen2": QWEN25_7B, "qwen3": QWEN3_8B, "llama": LLAMA31_8B, "mistral": MISTRAL_7B}


def test_published_configs_are_read():
    qwen2 = decoder_config(QWEN25_7B, dtype=jnp.bfloat16, lora=LoraSpec(4, 8.0))
    assert qwen2 == DecoderConfig(
        family="qwen2",
        vocab_size=152064,
        layers=28,
        width=3584,
        heads=28,
        kv_heads=4,
        head_dim=128,
        mlp_width=18944,
        rope=Rope(theta=1e6),
        max_length=32768,
        tied=False,
        qkv_bias=True,
        qk_norm=False,
        dtype=jnp.bfloat16,
        lora=LoraSpec(4, 8.0),
    )
    qwen3 = decoder_config(QWEN3_8B)
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias, qwen3.windows) == (128, True, False, ())
    llama = decoder_config(LLAMA31_8B)
    assert llama.rope == Rope(5e5, "llama3", 8.0, 8192, 1.0, 4.0)
    assert (llama.norm_eps, llama.qk_norm, llama.head_dim, llama.max_length) == (1e-5, False, 128, 131072)
    mistral = decoder_config(MISTRAL_7B)
    assert mistral.windows == (4096,) * 32
    assert decoder_config({**MISTRAL_7B, "sliding_window": None}).windows == ()


def test_keys_that_are_missing_have_the_defaults_of_the_class():
    assert decoder_config({"model_type": "mistral"}).windows == (4096,) * 32
    assert decoder_config({"model_type": "qwen3"}).head_dim == 128
    llama = decoder_config({"model_type": "llama"})
    assert (llama.kv_heads, llama.tied, llama.rope) == (32, False, Rope())


def test_layers_that_slide():
    slides = {**QWEN25_7B, "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 9}
    assert decoder_config({**slides, "max_window_layers": 3}).windows == (0, 0, 0, 9)
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert decoder_config({**slides, "layer_types": kinds}).windows == (9, 0, 0, 9)


def test_versions_without_layer_types_read_the_same_where_they_can():
    config = decoder_config({**QWEN25_7B, "num_hidden_layers": 4, "sliding_window": 9, "use_sliding_window": True})
    for windows in ((), (0, 0, 9, 9), (9, 9, 9, 9)):
        raw = hf_config(dataclasses.replace(config, windows=windows))
        del raw["layer_types"]
        assert decoder_config(raw).windows == windows


YARN = {"factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"rope_theta": 5e5}, Rope(5e5)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, Rope(5e5, "linear", 2.0)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}, Rope(5e5, "linear", 2.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", **YARN}}, Rope(5e5, "yarn", 4.0, 4096)),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "yarn", **YARN}}, Rope(5e5, "yarn", 4.0, 4096)),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, Rope(1e4, "yarn", 4.0, 131072)),
        (
            {"rope_parameters": {"rope_type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
            Rope(1e4, "yarn", 4.0, 4096, attention_factor=1.0),
        ),
    ],
)
def test_old_and_new_keys_of_the_rope(keys, rope):
    raw = {key: value for key, value in LLAMA31_8B.items() if not key.startswith("rope")}
    config = {**raw, **keys}
    before = copy.deepcopy(config)
    assert decoder_config(config).rope == rope
    assert config == before


@pytest.mark.parametrize(
    ("family", "keys", "named"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("llama", {"sliding_window": 4096}, "sliding_window"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("llama", {"auto_map": {"AutoModel": "modeling.Model"}}, "auto_map"),
        ("llama", {"invented_here": False}, "invented_here"),
        ("qwen2", {"is_causal": False}, "is_causal"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias"),
        ("mistral", {"attention_bias": True}, "attention_bias"),
        ("mistral", {"layer_types": ["full_attention"] * 32}, "layer_types"),
        ("qwen3", {"num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        (
            "qwen3",
            {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
            "sliding_attention",
        ),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen3", {"head_dim": 15}, "head_dim"),
        ("qwen3", {"num_key_value_heads": 5}, "num_key_value_heads"),
        ("qwen3", {"num_hidden_layers": 0, "layer_types": []}, "num_hidden_layers"),
        ("qwen3", {"hidden_size": "wide"}, "hidden_size"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}, "rope_scaling": None}, "rope_parameters.rope_type"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": "big"}}, "rope_scaling.factor"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}}, "mrope_section"),
        ("llama", {"rope_scaling": [8.0]}, "rope_scaling"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 4.0}},
            "rope_parameters.factor",
        ),
        ("llama", {"rope_theta": 1e4, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(family, keys, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")) as refused:
        decoder_config({**PUBLISHED[family], **keys})
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("config: ")


def test_values_that_change_nothing_are_allowed():
    for raw in PUBLISHED.values():
        added = {"invented_here": None, "quantization_config": None, "partial_rotary_factor": 1.0, "pretraining_tp": 2}
        assert decoder_config({**raw, **added}) == decoder_config(raw)


def test_folders_that_are_no_models(tmp_path):
    for content, named in ((None, "no config.json"), ("{", "not readable as JSON"), ("[]", "not a JSON object")):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=named):
            decoder_config(tmp_path)
    with pytest.raises(UserError, match="model_type 'gemma2' is not supported; supported are qwen2"):
        decoder_config({"model_type": "gemma2"})
    with pytest.raises(UserError, match="no such folder; for the Hugging Face hub write hf:Qwen/Qwen3-8B"):
        decoder_config("Qwen/Qwen3-8B")
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    assert decoder_config(tmp_path) == decoder_config(str(tmp_path)) == decoder_config(QWEN3_8B)


@st.composite
def configs(draw):
    name = draw(st.sampled_from(sorted(FAMILIES)))
    family = FAMILIES[name]
    layers, kv_heads, group = (draw(st.integers(1, 4)) for _ in range(3))
    head_dim = 2 * draw(st.integers(2, 20))

    def bias(rule, linked=None):
        return rule if isinstance(rule, bool) else draw(st.booleans()) if linked is None else linked

    window = draw(st.integers(1, 99))
    windows = {
        "none": st.just(()),
        "all": st.sampled_from([(), (window,) * layers]),
        "layer_types": st.lists(st.sampled_from([0, window]), min_size=layers, max_size=layers).map(
            lambda sizes: tuple(sizes) if any(sizes) else ()
        ),
    }
    positive = st.floats(0.5, 64, allow_nan=False)
    rope = draw(
        st.one_of(
            st.builds(Rope, theta=st.floats(100, 1e7)),
            st.builds(Rope, kind=st.just("linear"), factor=positive),
            st.builds(Rope, kind=st.just("llama3"), factor=positive, original_length=st.integers(1, 9000)),
            st.builds(
                Rope,
                kind=st.just("yarn"),
                factor=positive,
                original_length=st.integers(1, 9000),
                attention_factor=st.none() | positive,
                beta_fast=st.floats(4, 99),
                truncate=st.booleans(),
            ),
        )
    )
    qkv_bias = bias(family.qkv_bias)
    return DecoderConfig(
        family=name,
        vocab_size=draw(st.integers(1, 999)),
        layers=layers,
        width=kv_heads * group * 8,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=draw(st.integers(1, 99)),
        rope=rope,
        norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        max_length=draw(st.integers(1, 99999)),
        tied=draw(st.booleans()),
        qkv_bias=qkv_bias,
        output_bias=bias(family.output_bias, qkv_bias),
        mlp_bias=bias(family.mlp_bias),
        qk_norm=family.qk_norm,
        windows=draw(windows[family.windows]),
    )


@given(configs())
@settings(max_examples=60)
def test_a_written_config_is_read_as_it_was(config):
    assert decoder_config(json.loads(json.dumps(hf_config(config)))) == config


def test_what_a_family_has_no_words_for_is_not_written():
    config = decoder_config({**LLAMA31_8B, "num_hidden_layers": 2})
    for change in (
        {"qk_norm": True},
        {"qkv_bias": True},
        {"windows": (5, 5)},
        {"family": "mistral", "windows": (5, 0)},
        {"family": "qwen3", "qk_norm": True, "windows": (5, 7)},
    ):
        with pytest.raises(ValueError, match=f"have no ({'|'.join(change)})="):
            hf_config(dataclasses.replace(config, **change))

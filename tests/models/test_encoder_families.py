"""Configs of open encoders: as the hub has them, read, written and refused."""

import copy
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.errors import UserError
from jax_rele.models import EncoderConfig, encoder_config
from jax_rele.models.encoder_families import FAMILIES, encoder_hf_config

BERT = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
MULTILINGUAL = {
    **BERT,
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
    "vocab_size": 119547,
}
ROBERTA = {
    "architectures": ["RobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
XLM_R = {**ROBERTA, "model_type": "xlm-roberta", "output_past": True, "vocab_size": 250002, "hidden_size": 1024}
XLM_R |= {"num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
DISTILBERT = {
    "activation": "gelu",
    "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "vocab_size": 30522,
}
MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 50368,
}
HUB = {
    "bert-base-uncased": BERT,
    "bert-base-multilingual-cased": MULTILINGUAL,
    "roberta-base": ROBERTA,
    "xlm-roberta-large": XLM_R,
    "distilbert-base-uncased": DISTILBERT,
    "ModernBERT-base": MODERNBERT,
}


def test_the_hub_s_configs_are_read():
    base = EncoderConfig(30522, 512, 12, 768, 12, 3072)
    assert encoder_config(BERT) == base
    assert encoder_config(MULTILINGUAL) == dataclasses.replace(base, vocab_size=119547)
    roberta = dataclasses.replace(
        base, vocab_size=50265, token_types=1, norm_eps=1e-5, family="roberta", position_offset=2
    )
    assert encoder_config(ROBERTA) == roberta
    assert encoder_config(XLM_R) == dataclasses.replace(
        roberta, family="xlm-roberta", vocab_size=250002, layers=24, width=1024, heads=16, mlp_width=4096
    )
    assert encoder_config(DISTILBERT) == dataclasses.replace(base, layers=6, token_types=0, family="distilbert")
    layers = [layer % 3 == 0 for layer in range(22)]
    assert encoder_config(MODERNBERT) == EncoderConfig(
        50368,
        8192,
        22,
        768,
        12,
        1152,
        token_types=0,
        dropout=0.0,
        norm_eps=1e-5,
        family="modernbert",
        prenorm=True,
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        norm_bias=False,
        rope_thetas=tuple(160_000.0 if whole else 10_000.0 for whole in layers),
        windows=tuple(0 if whole else 65 for whole in layers),
    )


@pytest.mark.parametrize("name", HUB)
def test_written_and_read_again_they_are_the_same(name):
    raw = copy.deepcopy(HUB[name])
    config = encoder_config(raw)
    assert raw == HUB[name], "the caller's dict is left alone"
    written = json.loads(json.dumps(encoder_hf_config(config)))
    assert encoder_config(written) == config
    known = {key: value for key, value in HUB[name].items() if key in written and not key.endswith("_token_id")}
    for key, value in known.items():
        if key not in ("architectures", "transformers_version"):
            assert written[key] == value, key
    assert (written["pad_token_id"] == 1) == ("roberta" in raw["model_type"])


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_keys_have_the_defaults_of_the_class(family):
    config = encoder_config({"model_type": family})
    assert (config.width, config.family) == (768, family)


@pytest.mark.parametrize("name", HUB)
@settings(max_examples=20)
@given(key=st.from_regex(r"\A[a-z_]{3,20}\Z"), value=st.one_of(st.integers(1, 9), st.just("x"), st.just(True)))
def test_a_key_that_nobody_knows_is_refused_by_name(name, key, value):
    with pytest.raises(UserError, match=f"^config: key zz_{key} .*is not supported$"):
        encoder_config({**HUB[name], f"zz_{key}": value})


REFUSED = [
    (BERT, {"model_type": "albert"}, "model_type 'albert' is no encoder that is supported; these are bert, roberta"),
    (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    (BERT, {"is_decoder": True}, "is_decoder is True"),
    (BERT, {"hidden_act": "mish"}, "hidden_act is 'mish'; supported are gelu"),
    (BERT, {"pruned_heads": {"1": [0]}}, "pruned_heads"),
    (BERT, {"embedding_size": 128}, "embedding_size"),
    (BERT, {"num_attention_heads": 7}, "num_attention_heads 7 does not divide hidden_size 768"),
    (BERT, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    (BERT, {"hidden_size": "wide"}, "not a valid bert config"),
    (BERT, {"local_attention": 128}, "local_attention"),
    (ROBERTA, {"pad_token_id": None}, "pad_token_id is None; positions begin after it"),
    (ROBERTA, {"max_position_embeddings": 2}, "max_position_embeddings is 2; it must be more than 2"),
    (DISTILBERT, {"activation": "tanh"}, "activation is 'tanh'"),
    (DISTILBERT, {"n_heads": 5}, "n_heads 5 does not divide dim 768"),
    (MODERNBERT, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
    (MODERNBERT, {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters must hold an object for each"),
    (MODERNBERT, {"rope_parameters": {"other": {"rope_theta": 1e4}}}, "rope_parameters.other"),
    (
        MODERNBERT,
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        r"global_rope_theta \(160000.0\) and rope_parameters.full_attention.rope_theta \(10000.0\) disagree",
    ),
    (
        MODERNBERT,
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope_parameters.full_attention.rope_type is 'linear'",
    ),
    (MODERNBERT, {"local_rope_theta": 0.5}, "local_rope_theta is 0.5"),
    (MODERNBERT, {"layer_types": ["full_attention"] * 3}, "layer_types"),
    (MODERNBERT, {"layer_types": ["chunked_attention"] * 22}, "layer_types names 'chunked_attention'"),
    (MODERNBERT, {"num_attention_heads": 256}, "is odd; rotary positions need an even number"),
    (MODERNBERT, {"local_attention": -2}, "local_attention is -2"),
]


@pytest.mark.parametrize(("base", "change", "message"), REFUSED)
def test_what_is_not_implemented_is_refused_by_name(base, change, message):
    with pytest.raises(UserError, match=message) as error:
        encoder_config({**base, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "change", "field"),
    [
        (BERT, {"gated": True}, "gated"),
        (BERT, {"position_offset": 2}, "position_offset"),
        (BERT, {"norm_bias": False}, "norm_bias"),
        (BERT, {"rope_thetas": (1e4,) * 12}, "rope_thetas"),
        (ROBERTA, {"position_offset": 0}, "position_offset"),
        (DISTILBERT, {"norm_eps": 1e-5}, "norm_eps"),
        (DISTILBERT, {"token_types": 2}, "token_types"),
        (MODERNBERT, {"windows": (0, 65, 33) * 7 + (0,)}, "windows"),
        (MODERNBERT, {"rope_thetas": tuple(map(float, range(2, 24)))}, "rope_thetas"),
    ],
)
def test_what_a_family_has_no_words_for_is_not_written(base, change, field):
    config = dataclasses.replace(encoder_config(base), **change)
    with pytest.raises(ValueError, match=f"{config.family} encoders have no {field}="):
        encoder_hf_config(config)


def test_overrides_and_folders(tmp_path):
    assert encoder_config(BERT, dropout=0.3).dropout == 0.3
    with pytest.raises(UserError, match=r"no config\.json"):
        encoder_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        encoder_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    assert encoder_config(tmp_path) == encoder_config(BERT)

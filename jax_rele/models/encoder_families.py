"""The open encoders that `Encoder` computes: their `config.json`, read and written.

Every key of a config is read, known to change nothing, or refused by name. Missing keys have the default of the
family's class in `transformers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jax_rele.errors import UserError
from jax_rele.models import families
from jax_rele.models.encoder import Activation, EncoderConfig
from jax_rele.models.families import TOKENS, HfConfig, family_of, fill, read_theta
from jax_rele.models.files import JsonObject, check_keys, read_config, words

ACTIVATIONS: Mapping[Activation, tuple[str, ...]] = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
}
"""Activation -> its names in Hugging Face configs."""

HARMLESS = families.HARMLESS | words(
    # Training alone: weights of attention are not dropped here.
    "attention_probs_dropout_prob attention_dropout embedding_dropout gradient_checkpointing",
    # Heads and their settings.
    "classifier_dropout tie_word_embeddings tie_weights_ summary_type summary_use_proj summary_activation",
    "summary_first_dropout summary_last_dropout summary_proj_to_labels",
    # BERT's pooler as the first releases described it.
    "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type directionality",
    # How it is run.
    "output_past reference_compile",
)
"""Keys that do not change what is computed."""

FIXED: Mapping[str, tuple[object, ...]] = {**families.NO_CROSS_ATTENTION, "position_embedding_type": ("absolute",)}
"""Keys that would change what is computed, and their values that do not. Null never does."""


@dataclass(frozen=True)
class EncoderFamily:
    """The encoders of one `model_type`.

    Attributes:
      architecture: the class in `transformers`.
      keys: fields of `EncoderConfig` -> their keys.
      constants: fields that are the same for the whole family.
      counts: positions count the valid tokens, after `pad_token_id`.
      read: keys that are read beside `keys`.
      harmless: keys that the class ignores.
    """

    architecture: str
    keys: Mapping[str, str]
    constants: Mapping[str, object] = dataclasses.field(default_factory=dict)
    counts: bool = False
    read: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()


SIZES = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}
BERT = {**SIZES, "token_types": "type_vocab_size", "dropout": "hidden_dropout_prob", "norm_eps": "layer_norm_eps"}
BERT |= {"activation": "hidden_act"}
MODERNBERT = {**SIZES, "dropout": "mlp_dropout", "norm_eps": "norm_eps", "activation": "hidden_activation"}
MODERNBERT |= {name: name for name in ("attention_bias", "mlp_bias", "norm_bias")}
DISTILBERT = dict(zip(SIZES, ("vocab_size", "n_layers", "dim", "n_heads", "hidden_dim"), strict=True))
DISTILBERT |= {"dropout": "dropout", "activation": "activation"}

LAYER_KINDS = ("full_attention", "sliding_attention")
OLD_THETAS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
"""Keys of the rotary bases in configs without `rope_parameters`."""

FAMILIES = {
    "bert": EncoderFamily("BertModel", BERT),
    "roberta": EncoderFamily("RobertaModel", BERT, counts=True),
    "xlm-roberta": EncoderFamily("XLMRobertaModel", BERT, counts=True),
    "distilbert": EncoderFamily(
        "DistilBertModel",
        DISTILBERT,
        constants={"token_types": 0, "norm_eps": 1e-12},
        # Sinusoidal positions are saved in the position table.
        harmless=words("sinusoidal_pos_embds qa_dropout seq_classif_dropout"),
    ),
    "modernbert": EncoderFamily(
        "ModernBertModel",
        MODERNBERT,
        constants={"token_types": 0, "prenorm": True, "gated": True},
        read=words(
            "layer_types global_attn_every_n_layers local_attention rope_parameters global_rope_theta local_rope_theta"
        ),
        harmless=words(
            "layer_norm_eps initializer_cutoff_factor decoder_bias classifier_pooling classifier_bias",
            "classifier_activation deterministic_flash_attn sparse_prediction sparse_pred_ignore_index",
            "repad_logits_with_grad",
        ),
    ),
}


def encoder_config(source: Mapping[str, object] | str | Path, **overrides: Any) -> EncoderConfig:
    """The encoder that a Hugging Face config describes.

    Args:
      source: the config as a dict, or its folder, or `hf:ORG/NAME` or `bundled:NAME`.
      overrides: fields of `EncoderConfig` that the config does not decide, e.g. `dtype`, `dropout`.

    Raises:
      UserError: the config is missing, contradicts itself, or has a key whose meaning is not implemented; the key is
        named.
    """
    where, raw = read_config(source)
    kind, family = family_of(where, raw, FAMILIES, "no encoder that is supported; these are")
    read = {"model_type", "max_position_embeddings", *family.keys.values(), *family.read}
    check_keys(where, raw, read | HARMLESS | family.harmless, FIXED)
    if "layer_types" in family.read:
        _check_layers(where, raw)
    filled = fill(where, raw)
    fields: dict[str, Any] = {name: getattr(filled, key) for name, key in family.keys.items()}
    for name in SIZES:
        if type(fields[name]) is not int or not 1 <= fields[name] < 2**31:
            raise UserError(f"{where}: {family.keys[name]} is {fields[name]!r:.60}; it must be at least 1, below 2^31")
    width, heads = (f"{family.keys[name]} {fields[name]}" for name in ("width", "heads"))
    if fields["width"] % fields["heads"]:
        raise UserError(f"{where}: {heads} does not divide {width}")
    fields["activation"] = _activation(where, family.keys["activation"], fields["activation"])
    offset = 0
    if family.counts:
        if not isinstance(filled.pad_token_id, int) or filled.pad_token_id < 0:
            raise UserError(
                f"{where}: pad_token_id is {filled.pad_token_id}; positions begin after it, so it is needed"
            )
        offset = filled.pad_token_id + 1
    length = filled.max_position_embeddings
    if length <= offset:
        raise UserError(f"{where}: max_position_embeddings is {length}; it must be more than {offset}")
    fields |= {**family.constants, "max_length": length - offset, "position_offset": offset}
    if "layer_types" in family.read:
        fields |= _layer_fields(where, filled)
    return dataclasses.replace(EncoderConfig(family=kind, **fields), **overrides)


def _activation(where: str, key: str, name: str) -> Activation:
    for activation, names in ACTIVATIONS.items():
        if name in names:
            return activation
    known = ", ".join(name for names in ACTIVATIONS.values() for name in names)
    raise UserError(f"{where}: key {key} is {name!r:.60}; supported are {known}")


def _check_layers(where: str, raw: JsonObject) -> None:
    """Raises UserError where a layer's kind is unknown, or the kinds' rotary bases are not plain or disagree."""
    for kind in raw.get("layer_types") or ():
        if kind not in LAYER_KINDS:
            raise UserError(f"{where}: layer_types names {kind!r:.60}; supported are {' and '.join(LAYER_KINDS)}")
    ropes = raw.get("rope_parameters") or {}
    if not isinstance(ropes, Mapping) or not all(isinstance(rope, Mapping) for rope in ropes.values()):
        raise UserError(f"{where}: key rope_parameters must hold an object for each of {' and '.join(LAYER_KINDS)}")
    check_keys(where, dict.fromkeys(ropes, 0), LAYER_KINDS, {}, "rope_parameters.")
    for kind, old in OLD_THETAS.items():
        rope, name = ropes.get(kind, {}), f"rope_parameters.{kind}"
        fixed = {"rope_type": ("default",), "partial_rotary_factor": (1.0,)}
        check_keys(where, rope, ("rope_theta",), fixed, f"{name}.")
        theta = read_theta(where, raw, old, name, rope)
        if theta is not None and not (isinstance(theta, int | float) and theta > 1):
            raise UserError(f"{where}: key {old} is {theta!r:.60}; it must be a number greater than 1")


def _layer_fields(where: str, filled: HfConfig) -> dict[str, object]:
    """The fields of a ModernBERT that differ between layers."""
    kinds = filled.layer_types
    if filled.hidden_size // filled.num_attention_heads % 2:
        raise UserError(f"{where}: hidden_size / num_attention_heads is odd; rotary positions need an even number")
    if filled.local_attention < 0:
        raise UserError(f"{where}: local_attention is {filled.local_attention}; it must not be negative")
    # Half of it to either side, the ends included.
    window = filled.local_attention // 2 + 1
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return {
        "rope_thetas": tuple(float(filled.rope_parameters[kind]["rope_theta"]) for kind in kinds),
        "windows": windows if any(windows) else (),
    }


def encoder_hf_config(config: EncoderConfig) -> dict[str, object]:
    """The `config.json` of an encoder; `encoder_config` of it returns the encoder.

    Token ids are null, except RoBERTa's padding, after which its positions begin: the caller sets the others.

    Raises:
      ValueError: the family's config cannot express a field of `config`; the field is named.
    """
    family = FAMILIES[config.family]
    raw: dict[str, object] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "torch_dtype": jnp.dtype(config.param_dtype).name,
        "max_position_embeddings": config.max_length + config.position_offset,
        "initializer_range": 0.02,
        **dict.fromkeys(TOKENS),
        **{key: getattr(config, name) for name, key in family.keys.items()},
        family.keys["activation"]: ACTIVATIONS[config.activation][0],
    }
    if family.counts:
        raw["pad_token_id"] = config.position_offset - 1
    if "layer_types" in family.read:
        raw |= {"cls_token_id": None, "sep_token_id": None, **_layer_keys(config)}
    if bool(config.position_offset) != family.counts:
        raise ValueError(f"{config.family} encoders have no position_offset={config.position_offset}")
    read = encoder_config(raw, dtype=config.dtype, param_dtype=config.param_dtype)
    for field in dataclasses.fields(EncoderConfig):
        value = getattr(config, field.name)
        # Windows that are all 0 and no windows are the same.
        if getattr(read, field.name) != value and not (field.name == "windows" and not any(value)):
            raise ValueError(f"{config.family} encoders have no {field.name}={value!r}")
    return raw


def _layer_keys(config: EncoderConfig) -> dict[str, object]:
    windows = config.windows or (0,) * config.layers
    kinds = [LAYER_KINDS[bool(window)] for window in windows]
    thetas = dict(zip(kinds, config.rope_thetas))
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}
    keys: dict[str, object] = {"layer_types": kinds, "rope_parameters": rope}
    # Versions of `transformers` without `rope_parameters` and `layer_types` read these.
    keys |= {OLD_THETAS[kind]: theta for kind, theta in thetas.items()}
    if window := max(windows, default=0):
        keys["local_attention"] = 2 * (window - 1)
    full = [layer for layer, window in enumerate(windows) if not window]
    step = full[1] - full[0] if len(full) > 1 else config.layers
    if full == list(range(0, config.layers, step)):
        keys["global_attn_every_n_layers"] = step
    return keys

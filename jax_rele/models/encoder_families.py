"""Which open encoders `Encoder` computes: their `config.json`, read and written.

Every key that a config holds is read, known to change nothing, or refused by name. Keys that are missing have the
values that the family's class in `transformers` gives them.
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
from jax_rele.models.encoder import EncoderConfig
from jax_rele.models.families import TOKENS, fill, words
from jax_rele.models.files import check_keys, read_config

ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
}
"""Our activation, and its names there."""

HARMLESS = families.HARMLESS | words(
    # Training alone: weights of attention are not dropped here.
    "attention_probs_dropout_prob attention_dropout embedding_dropout gradient_checkpointing",
    # Heads, and what they are made of.
    "classifier_dropout tie_word_embeddings tie_weights_ summary_type summary_use_proj summary_activation",
    "summary_first_dropout summary_last_dropout summary_proj_to_labels",
    # BERT's pooler as the first releases described it.
    "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type directionality",
    # How it is run.
    "output_past reference_compile",
)
"""Keys that do not change what is computed."""

FIXED: Mapping[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
}
"""Keys that would change what is computed, and their values that do not. Null never does."""


@dataclass(frozen=True)
class EncoderFamily:
    """What a `model_type` means.

    Attributes:
      architecture: its class in `transformers`.
      keys: fields of `EncoderConfig` and the keys that say them.
      constants: fields that the family decides.
      counts: positions count the valid tokens, after `pad_token_id`.
      read: keys that are read beside `keys`.
      harmless: keys that its class does not look at.
      fixed: keys with the values that its class computes.
    """

    architecture: str
    keys: Mapping[str, str]
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    counts: bool = False
    read: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


SIZES = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}
BERT = {
    **SIZES,
    "token_types": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}
LAYER_KINDS = ("full_attention", "sliding_attention")

FAMILIES = {
    "bert": EncoderFamily("BertModel", BERT),
    "roberta": EncoderFamily("RobertaModel", BERT, counts=True),
    "xlm-roberta": EncoderFamily("XLMRobertaModel", BERT, counts=True),
    "distilbert": EncoderFamily(
        "DistilBertModel",
        {
            "vocab_size": "vocab_size",
            "layers": "n_layers",
            "width": "dim",
            "heads": "n_heads",
            "mlp_width": "hidden_dim",
            "dropout": "dropout",
            "activation": "activation",
        },
        constants={"token_types": 0, "norm_eps": 1e-12},
        # Sinusoids are in the table that is saved.
        harmless=frozenset({"sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout"}),
    ),
    "modernbert": EncoderFamily(
        "ModernBertModel",
        {
            **SIZES,
            "dropout": "mlp_dropout",
            "norm_eps": "norm_eps",
            "activation": "hidden_activation",
            "attention_bias": "attention_bias",
            "mlp_bias": "mlp_bias",
            "norm_bias": "norm_bias",
        },
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


def encoder_config(source: Mapping[str, Any] | str | Path, **overrides: Any) -> EncoderConfig:
    """The encoder that a Hugging Face config describes.

    Args:
      source: the config as a dict, or its folder, or `hf:ORG/NAME` or `bundled:NAME`.
      overrides: fields of `EncoderConfig` that the config does not decide, e.g. `dtype`, `dropout`.

    Raises:
      UserError: the config is missing, contradicts itself, or holds a key whose meaning is not implemented; the key is
        named.
    """
    where, raw = read_config(source)
    kind = raw.get("model_type")
    if kind not in tuple(FAMILIES):
        raise UserError(
            f"{where}: model_type {kind!r} is no encoder that is supported; these are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    read = {"model_type", "max_position_embeddings", *family.keys.values(), *family.read}
    check_keys(where, raw, read | HARMLESS | family.harmless, {**FIXED, **family.fixed})
    if "layer_types" in family.read:
        _check_layers(where, raw)
    filled = fill(where, raw)
    fields = {name: getattr(filled, key) for name, key in family.keys.items()}
    for name in SIZES:
        if fields[name] < 1:
            raise UserError(f"{where}: {family.keys[name]} is {fields[name]}; it must be at least 1")
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
    if filled.max_position_embeddings <= offset:
        raise UserError(
            f"{where}: max_position_embeddings is {filled.max_position_embeddings}; it must be more than {offset}"
        )
    config = EncoderConfig(
        family=kind,
        max_length=filled.max_position_embeddings - offset,
        position_offset=offset,
        **fields,
        **family.constants,
        **(_layers(where, filled) if "layer_types" in family.read else {}),
    )
    return dataclasses.replace(config, **overrides)


def _activation(where: str, key: str, name: str) -> str:
    for ours, theirs in ACTIVATIONS.items():
        if name in theirs:
            return ours
    known = ", ".join(name for theirs in ACTIVATIONS.values() for name in theirs)
    raise UserError(f"{where}: key {key} is {name!r:.60}; supported are {known}")


def _check_layers(where: str, raw: Mapping[str, Any]) -> None:
    """Raises UserError where a layer's kind is unknown, or the kinds' rotary bases are not plain or disagree."""
    for kind in raw.get("layer_types") or ():
        if kind not in LAYER_KINDS:
            raise UserError(f"{where}: layer_types names {kind!r:.60}; supported are {' and '.join(LAYER_KINDS)}")
    rope_parameters = raw.get("rope_parameters") or {}
    if not isinstance(rope_parameters, Mapping) or not all(
        isinstance(value, Mapping) for value in rope_parameters.values()
    ):
        raise UserError(f"{where}: key rope_parameters must hold an object for each of {' and '.join(LAYER_KINDS)}")
    check_keys(
        where,
        {f"rope_parameters.{kind}": 0 for kind in rope_parameters},
        {f"rope_parameters.{k}" for k in LAYER_KINDS},
        {},
    )
    for kind, old in zip(LAYER_KINDS, ("global_rope_theta", "local_rope_theta")):
        values = rope_parameters.get(kind, {})
        name = f"rope_parameters.{kind}"
        check_keys(
            where,
            {f"{name}.{key}": value for key, value in values.items()},
            {f"{name}.rope_theta"},
            {f"{name}.rope_type": ("default",), f"{name}.partial_rotary_factor": (1.0,)},
        )
        theta = values.get("rope_theta", raw.get(old))
        if None not in (theta, raw.get(old)) and theta != raw[old]:
            raise UserError(f"{where}: keys {old} ({raw[old]}) and {name}.rope_theta ({theta}) disagree")
        if theta is not None and not (isinstance(theta, int | float) and theta > 1):
            raise UserError(f"{where}: key {old} is {theta!r:.60}; it must be a number greater than 1")


def _layers(where: str, filled: Any) -> dict[str, Any]:
    """What differs between the layers of a ModernBERT."""
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


def encoder_hf_config(config: EncoderConfig) -> dict[str, Any]:
    """The `config.json` of an encoder; `encoder_config` of it gives the encoder back.

    Token ids are null, but for RoBERTa's padding, after which its positions begin: the caller knows the others.

    Raises:
      ValueError: the family has no words for something in `config`; the field is named.
    """
    family = FAMILIES[config.family]
    raw = {
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
        raw |= {"cls_token_id": None, "sep_token_id": None, **_layers_written(config)}
    if bool(config.position_offset) != family.counts:
        raise ValueError(f"{config.family} encoders have no position_offset={config.position_offset}")
    read = encoder_config(raw, dtype=config.dtype, param_dtype=config.param_dtype)
    for field in dataclasses.fields(EncoderConfig):
        ours = getattr(config, field.name)
        # Windows that are all 0 and no windows are the same.
        if getattr(read, field.name) != ours and not (field.name == "windows" and not any(ours)):
            raise ValueError(f"{config.family} encoders have no {field.name}={ours!r}")
    return raw


def _layers_written(config: EncoderConfig) -> dict[str, Any]:
    windows = config.windows or (0,) * config.layers
    kinds = [LAYER_KINDS[bool(window)] for window in windows]
    thetas = dict(zip(kinds, config.rope_thetas))
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}
    written = {"layer_types": kinds, "rope_parameters": rope}
    # Versions that do not know `rope_parameters` and `layer_types` read these.
    old = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
    written |= {old[kind]: theta for kind, theta in thetas.items()}
    if window := max(windows, default=0):
        written["local_attention"] = 2 * (window - 1)
    globals_ = [layer for layer, window in enumerate(windows) if not window]
    step = globals_[1] - globals_[0] if len(globals_) > 1 else config.layers
    if globals_ == list(range(0, config.layers, step)):
        written["global_attn_every_n_layers"] = step
    return written

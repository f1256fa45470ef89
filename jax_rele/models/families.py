"""The open models that `Decoder` computes: their `config.json`, read and written.

Every key of a config is read, known to change nothing, or refused by name. Missing keys have the default of the
family's class in `transformers`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax.numpy as jnp
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, GenerationConfig

from jax_rele.errors import UserError
from jax_rele.models.decoder import DecoderConfig
from jax_rele.models.files import JsonObject, check_keys, one_line, read_config, words
from jax_rele.models.rope import Rope

HfConfig: TypeAlias = Any
"""A config of `transformers`, whose attributes depend on the family."""

F = TypeVar("F")

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that do not change what is computed, but that generation needs."""


SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
"""Sizes in `DecoderConfig` -> their keys."""

BIASES = ("qkv_bias", "output_bias", "mlp_bias")

READ = words(
    "model_type max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta rope_scaling rope_parameters"
) | frozenset(SIZES.values())
"""Keys that every family reads."""

HARMLESS = words(
    # Where the model comes from and how it was made or stored.
    "_name_or_path name_or_path _commit_hash architectures transformers_version transformers.js_config torch_dtype",
    "dtype initializer_range is_llama_config unsloth_fixed unsloth_version",
    # How `transformers` runs it; pretraining_tp and chunk_size_feed_forward only cut products into parts.
    "use_cache pretraining_tp chunk_size_feed_forward torchscript use_bfloat16 _attn_implementation_autoset",
    "attn_implementation _attn_implementation output_attentions output_hidden_states return_dict tf_legacy_loss",
    "tie_last_hidden_states",
    # Tokens and the tokenizer.
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id decoder_start_token_id",
    "tokenizer_class prefix model_max_length max_sequence_length",
    # Other heads than the language model's.
    "id2label label2id num_labels problem_type task_specific_params finetuning_task",
    # Generation, where the current list does not have them.
    "num_beam_groups diversity_penalty typical_p encoder_no_repeat_ngram_size forced_bos_token_id",
) | frozenset(GenerationConfig().to_dict())
"""Keys that do not change what is computed."""

NO_CROSS_ATTENTION = dict.fromkeys(
    ("is_decoder", "is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"), (False,)
)

FIXED: Mapping[str, tuple[object, ...]] = {
    **NO_CROSS_ATTENTION,
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0.0,),
    "partial_rotary_factor": (1.0,),
    "is_causal": (True,),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "logit_scale": (1.0,),
}
"""Keys that would change what is computed, and their values that do not. Null never does."""

ROPE_READ = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}
"""Keys of `rope_parameters` (or `rope_scaling`) that each kind of rope reads, beside its kind and `rope_theta`."""

ROPE_NEEDED = ("factor", "low_freq_factor", "high_freq_factor")
"""Those of them that have no default."""

UNSTATED_LENGTH = 32_768
"""`max_position_embeddings` of a config that states no `max_length`; it changes nothing that is computed."""


@dataclass(frozen=True)
class DecoderFamily:
    """The decoders of one `model_type`.

    Attributes:
      architecture: the class in `transformers`.
      qkv_bias, output_bias, mlp_bias: whether projections have biases, or the key that says so.
      qk_norm: RMSNorm over each head of queries and keys.
      windows: the layers with a window: `none`, `all` (where `sliding_window` is not null) or those of `layer_types`.
      harmless: keys that the class ignores.
      fixed: other keys, with the values that the class computes.
    """

    architecture: str
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    windows: str = "none"
    harmless: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)

    @property
    def read(self) -> frozenset[str]:
        """Keys that are read."""
        biases = {key for key in (getattr(self, name) for name in BIASES) if isinstance(key, str)}
        windows = {
            "none": "",
            "all": "sliding_window",
            "layer_types": "use_sliding_window sliding_window max_window_layers layer_types",
        }
        return READ | biases | words(windows[self.windows])


FAMILIES = {
    "qwen2": DecoderFamily(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        windows="layer_types",
        # The class has biases of queries, keys and values whatever this key says; their tensors are checked.
        harmless=frozenset({"attention_bias"}),
        fixed={"mlp_bias": (False,)},
    ),
    "qwen3": DecoderFamily(
        "Qwen3ForCausalLM",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        windows="layer_types",
        fixed={"mlp_bias": (False,)},
    ),
    "llama": DecoderFamily(
        "LlamaForCausalLM",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        fixed={"use_sliding_window": (False,)},
    ),
    "mistral": DecoderFamily(
        "MistralForCausalLM",
        windows="all",
        fixed={"attention_bias": (False,), "mlp_bias": (False,), "use_sliding_window": (True,)},
    ),
}


def family_of(
    where: str, raw: Mapping[str, object], families: Mapping[str, F], refusal: str = "not supported; supported are"
) -> tuple[str, F]:
    """The `model_type` of a config and its family. Raises UserError where it is none of `families`."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        raise UserError(f"{where}: model_type {kind!r} is {refusal} {', '.join(families)}")
    return kind, families[kind]


def decoder_config(source: Mapping[str, object] | str | Path, **overrides: Any) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Args:
      source: the config as a dict, or its folder, or `hf:ORG/NAME` or `bundled:NAME`.
      overrides: fields of `DecoderConfig` that the config does not decide, e.g. `dtype`, `attention`, `lora`.

    Raises:
      UserError: the config is missing, contradicts itself, or has a key whose meaning is not implemented; the key is
        named.
    """
    where, raw = read_config(source)
    kind, family = family_of(where, raw, FAMILIES)
    check_keys(where, raw, family.read | HARMLESS | family.harmless, {**FIXED, **family.fixed})
    _check_rope(where, raw)
    filled = fill(where, raw)
    sizes: dict[str, Any] = {name: getattr(filled, key, None) for name, key in SIZES.items()}
    heads = sizes["heads"]
    sizes["head_dim"] = sizes["head_dim"] or sizes["width"] // max(heads, 1)
    config = DecoderConfig(
        **sizes,
        family=kind,
        rope=_rope(where, filled.rope_parameters),
        norm_eps=filled.rms_norm_eps,
        max_length=filled.max_position_embeddings,
        tied=filled.tie_word_embeddings,
        qkv_bias=_bias(family.qkv_bias, filled),
        output_bias=_bias(family.output_bias, filled),
        mlp_bias=_bias(family.mlp_bias, filled),
        qk_norm=family.qk_norm,
        windows=_windows(where, family, filled),
    )
    for name, key in SIZES.items():
        if type(sizes[name]) is not int or not 1 <= sizes[name] < 2**31:
            raise UserError(f"{where}: {key} is {sizes[name]!r:.60}; it must be at least 1, below 2^31")
    if heads % config.kv_heads:
        raise UserError(f"{where}: num_key_value_heads {config.kv_heads} does not divide num_attention_heads {heads}")
    if config.head_dim % 2:
        raise UserError(f"{where}: head_dim is {config.head_dim}; rotary positions need an even number")
    return dataclasses.replace(config, **overrides)


def fill(where: str, raw: JsonObject) -> HfConfig:
    """The config as an object of `transformers`, with its defaults. Raises UserError where it refuses a value."""
    kind = raw["model_type"]
    try:
        return CONFIG_MAPPING[kind](**copy.deepcopy(dict(raw)))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: not a valid {kind} config ({one_line(error)})") from None


def _bias(rule: bool | str, filled: HfConfig) -> bool:
    return getattr(filled, rule) if isinstance(rule, str) else rule


def _windows(where: str, family: DecoderFamily, filled: HfConfig) -> tuple[int, ...]:
    window, layers = getattr(filled, "sliding_window", None), filled.num_hidden_layers
    if family.windows == "none":
        return ()
    if family.windows == "all":
        return () if window is None else (window,) * layers
    kinds = filled.layer_types
    if len(kinds) != layers:
        raise UserError(f"{where}: layer_types has {len(kinds)} entries for num_hidden_layers {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"{where}: layer_types names {kind!r}; supported are full and sliding attention")
    if "sliding_attention" not in kinds:
        return ()
    if window is None:
        raise UserError(
            f"{where}: layer_types names sliding_attention, but use_sliding_window or sliding_window is not set"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def read_theta(
    where: str, raw: Mapping[str, object], key: str, name: str, parameters: Mapping[str, object]
) -> object | None:
    """The base of a rope from its parameters or an older key of the config. Raises UserError where both differ."""
    old, theta = raw.get(key), parameters.get("rope_theta", raw.get(key))
    if old is not None and theta is not None and theta != old:
        raise UserError(f"{where}: keys {key} ({old}) and {name}.rope_theta ({theta}) disagree")
    return theta


def _check_rope(where: str, raw: Mapping[str, object]) -> None:
    """Raises UserError where the kind of rope or a key of it is not implemented, or keys disagree."""
    ropes: dict[str, Mapping[str, object]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = raw.get(key)
        if not value:
            continue
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: key {key} is {value!r:.60}; it must be an object")
        ropes[key] = value
        read_theta(where, raw, "rope_theta", key, value)
        kind = value.get("rope_type", value.get("type", "default"))
        if not isinstance(kind, str) or kind not in ROPE_READ:
            raise UserError(f"{where}: key {key}.rope_type is {kind!r:.60}; supported are {', '.join(ROPE_READ)}")
        read = ROPE_READ[kind]
        known = ("rope_type", "type", "rope_theta", *read)
        check_keys(where, value, known, {"partial_rotary_factor": (1.0,)}, f"{key}.")
        for name in ("rope_theta", *read):
            entry, needed = value.get(name), name in ROPE_NEEDED and name in read
            is_positive = isinstance(entry, int | float) and entry > 0
            if needed if entry is None else not is_positive and name != "truncate":
                raise UserError(f"{where}: key {key}.{name} is {entry!r:.60}; rope_type {kind} needs a positive number")
    if len(ropes) == 2:
        scaling, parameters = ropes.values()
        for name in scaling.keys() & parameters.keys():
            if scaling[name] != parameters[name]:
                raise UserError(f"{where}: keys rope_scaling.{name} and rope_parameters.{name} disagree")


def _rope(where: str, parameters: JsonObject) -> Rope:
    """The rope of checked keys and the class's defaults."""
    kind = parameters["rope_type"]
    values = {name: parameters[name] for name in ROPE_READ[kind] if parameters.get(name) is not None}
    mscale, mscale_all_dim = values.pop("mscale", None), values.pop("mscale_all_dim", None)
    if mscale and mscale_all_dim and "attention_factor" not in values:
        stretch = math.log(max(values["factor"], 1.0))
        values["attention_factor"] = (0.1 * mscale * stretch + 1) / (0.1 * mscale_all_dim * stretch + 1)
    if "original_max_position_embeddings" in values:
        values["original_length"] = values.pop("original_max_position_embeddings")
    rope = Rope(theta=parameters["rope_theta"], kind=kind, **values)
    if not (isinstance(rope.theta, int | float) and rope.theta > 1):
        raise UserError(f"{where}: key rope_theta is {rope.theta!r:.60}; it must be a number greater than 1")
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise UserError(f"{where}: key high_freq_factor must be greater than low_freq_factor")
    if rope.beta_fast < rope.beta_slow:
        raise UserError(f"{where}: key beta_fast must not be less than beta_slow")
    return rope


def hf_config(config: DecoderConfig) -> dict[str, object]:
    """The `config.json` of a decoder; `decoder_config` of it returns the decoder.

    Both forms of the rope keys are written, so that versions 4 and 5 of `transformers` read the same. Token ids are
    null: the caller sets them.

    Raises:
      ValueError: the family's config cannot express a field of `config`; the field is named.
    """
    family = FAMILIES[config.family]
    rope = {**dataclasses.asdict(config.rope), "original_max_position_embeddings": config.rope.original_length}
    scaling = {"rope_type": config.rope.kind}
    scaling |= {name: rope[name] for name in ROPE_READ[config.rope.kind] if rope.get(name) is not None}
    raw: dict[str, object] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "torch_dtype": jnp.dtype(config.param_dtype).name,
        **{key: getattr(config, name) for name, key in SIZES.items()},
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length or UNSTATED_LENGTH,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "rope_theta": config.rope.theta,
        "rope_scaling": None if config.rope.kind == "default" else scaling,
        "rope_parameters": {"rope_theta": config.rope.theta, **scaling},
        **dict.fromkeys(TOKENS),
    }
    raw |= {getattr(family, name): getattr(config, name) for name in BIASES if isinstance(getattr(family, name), str)}
    window = max(config.windows, default=0)
    if family.windows != "none":
        raw["sliding_window"] = window or None
    if family.windows == "layer_types":
        sliding = [bool(size) for size in config.windows] or [False] * config.layers
        raw["use_sliding_window"] = bool(window)
        raw["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in sliding]
        # Versions of `transformers` without `layer_types` give a window to the layers from this one on.
        raw["max_window_layers"] = sliding.index(True) if window else config.layers
    read = decoder_config(raw)
    for field in ("rope", *BIASES, "qk_norm"):
        if getattr(read, field) != getattr(config, field):
            raise ValueError(f"{config.family} models have no {field}={getattr(config, field)!r}")
    if any(config.windows) and read.windows != config.windows:
        raise ValueError(f"{config.family} models have no windows={config.windows!r}")
    return raw

"""Which open models the decoder computes: their `config.json`, read and written.

Every key that a config holds is read, known to change nothing, or refused by name. Keys that are missing have the
values that the family's class in `transformers` gives them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, GenerationConfig

from jax_rele.errors import UserError
from jax_rele.models.decoder import DecoderConfig
from jax_rele.models.files import check_keys, one_line, read_config
from jax_rele.models.rope import Rope

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that say nothing of the computation but that whoever generates needs."""


def words(*groups: str) -> frozenset[str]:
    """The words of some texts."""
    return frozenset(key for group in groups for key in group.split())


READ = words(
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads",
    "head_dim max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta rope_scaling rope_parameters",
)
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

FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0.0,),
    "partial_rotary_factor": (1.0,),
    "is_causal": (True,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
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
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
"""Keys of `rope_parameters` (or `rope_scaling`) that each kind of rope reads, beside its kind and `rope_theta`."""

ROPE_NEEDED = ("factor", "low_freq_factor", "high_freq_factor")
"""Those of them that have no default."""

UNSTATED_LENGTH = 32_768
"""`max_position_embeddings` of a config that states no `max_length`; it changes nothing that is computed."""


@dataclass(frozen=True)
class DecoderFamily:
    """What a `model_type` means.

    Attributes:
      architecture: its class in `transformers`.
      qkv_bias, output_bias, mlp_bias: whether projections have biases, or the key that says so.
      qk_norm: RMSNorm over each head of queries and keys.
      windows: which layers slide: `none`, `all` (where `sliding_window` is not null) or what `layer_types` says.
      harmless: keys that its class does not look at.
      fixed: keys with the values that its class computes.
    """

    architecture: str
    qkv_bias: bool | str
    output_bias: bool | str
    mlp_bias: bool | str
    qk_norm: bool
    windows: str
    harmless: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def read(self) -> frozenset[str]:
        """Keys that are read."""
        biases = {key for key in (self.qkv_bias, self.output_bias, self.mlp_bias) if isinstance(key, str)}
        windows = {
            "none": set(),
            "all": {"sliding_window"},
            "layer_types": {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"},
        }
        return READ | biases | windows[self.windows]


FAMILIES = {
    "qwen2": DecoderFamily(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows="layer_types",
        # The class has biases on queries, keys and values whatever this says; the tensors tell whether they are there.
        harmless=frozenset({"attention_bias"}),
        fixed={"mlp_bias": (False,)},
    ),
    "qwen3": DecoderFamily(
        "Qwen3ForCausalLM",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias=False,
        qk_norm=True,
        windows="layer_types",
        fixed={"mlp_bias": (False,)},
    ),
    "llama": DecoderFamily(
        "LlamaForCausalLM",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        qk_norm=False,
        windows="none",
        fixed={"use_sliding_window": (False,)},
    ),
    "mistral": DecoderFamily(
        "MistralForCausalLM",
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows="all",
        fixed={"attention_bias": (False,), "mlp_bias": (False,), "use_sliding_window": (True,)},
    ),
}


def decoder_config(source: Mapping[str, Any] | str | Path, **overrides: Any) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Args:
      source: the config as a dict, or its folder, or `hf:ORG/NAME` or `bundled:NAME`.
      overrides: fields of `DecoderConfig` that the config does not decide, e.g. `dtype`, `attention`, `lora`.

    Raises:
      UserError: the config is missing, contradicts itself, or holds a key whose meaning is not implemented; the key is
        named.
    """
    where, raw = read_config(source)
    kind = raw.get("model_type")
    if kind not in tuple(FAMILIES):
        raise UserError(f"{where}: model_type {kind!r} is not supported; supported are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    check_keys(where, raw, family.read | HARMLESS | family.harmless, {**FIXED, **family.fixed})
    _check_rope(where, raw)
    filled = fill(where, raw)
    heads, width = filled.num_attention_heads, filled.hidden_size
    config = DecoderConfig(
        family=kind,
        vocab_size=filled.vocab_size,
        layers=filled.num_hidden_layers,
        width=width,
        heads=heads,
        kv_heads=filled.num_key_value_heads,
        head_dim=getattr(filled, "head_dim", None) or width // max(heads, 1),
        mlp_width=filled.intermediate_size,
        rope=_rope(where, filled.rope_parameters),
        norm_eps=filled.rms_norm_eps,
        max_length=filled.max_position_embeddings,
        tied=filled.tie_word_embeddings,
        qk_norm=family.qk_norm,
        windows=_windows(where, family, filled),
        **{name: _bias(family, filled, name) for name in ("qkv_bias", "output_bias", "mlp_bias")},
    )
    for key, size in (
        ("num_hidden_layers", config.layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", config.kv_heads),
        ("head_dim", config.head_dim),
        ("vocab_size", config.vocab_size),
        ("intermediate_size", config.mlp_width),
    ):
        if size < 1:
            raise UserError(f"{where}: {key} is {size}; it must be at least 1")
    if heads % config.kv_heads:
        raise UserError(f"{where}: num_key_value_heads {config.kv_heads} does not divide num_attention_heads {heads}")
    if config.head_dim % 2:
        raise UserError(f"{where}: head_dim is {config.head_dim}; rotary positions need an even number")
    return dataclasses.replace(config, **overrides)


def fill(where: str, raw: Mapping[str, Any]) -> Any:
    """The class of `transformers` for a config, its defaults filled in. Raises UserError where it refuses a value."""
    kind = raw["model_type"]
    try:
        return CONFIG_MAPPING[kind](**copy.deepcopy(dict(raw)))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: not a valid {kind} config ({one_line(error)})") from None


def _bias(family: DecoderFamily, filled: Any, name: str) -> bool:
    rule = getattr(family, name)
    return getattr(filled, rule) if isinstance(rule, str) else rule


def _windows(where: str, family: DecoderFamily, filled: Any) -> tuple[int, ...]:
    window, layers = getattr(filled, "sliding_window", None), filled.num_hidden_layers
    if family.windows == "none":
        return ()
    if family.windows == "all":
        return () if window is None else (window,) * layers
    kinds = filled.layer_types
    if len(kinds) != layers:
        raise UserError(f"{where}: layer_types has {len(kinds)} entries for num_hidden_layers {layers}")
    for layer_type in kinds:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise UserError(f"{where}: layer_types names {layer_type!r}; supported are full and sliding attention")
    if "sliding_attention" not in kinds:
        return ()
    if window is None:
        raise UserError(
            f"{where}: layer_types names sliding_attention, but use_sliding_window or sliding_window is not set"
        )
    return tuple(window if layer_type == "sliding_attention" else 0 for layer_type in kinds)


def _check_rope(where: str, raw: Mapping[str, Any]) -> None:
    """Raises UserError where the rope is of a kind, or has keys, that are not implemented, or where keys disagree."""
    rope_objects = {key: raw[key] for key in ("rope_scaling", "rope_parameters") if raw.get(key)}
    for key, value in rope_objects.items():
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: key {key} is {value!r:.60}; it must be an object")
        theta = value.get("rope_theta", raw.get("rope_theta"))
        if None not in (theta, raw.get("rope_theta")) and theta != raw["rope_theta"]:
            raise UserError(f"{where}: keys rope_theta ({raw['rope_theta']}) and {key}.rope_theta ({theta}) disagree")
        kind = value.get("rope_type", value.get("type", "default"))
        if kind not in tuple(ROPE_READ):
            raise UserError(f"{where}: key {key}.rope_type is {kind!r:.60}; supported are {', '.join(ROPE_READ)}")
        read = ROPE_READ[kind]
        check_keys(
            where,
            {f"{key}.{name}": entry for name, entry in value.items()},
            {f"{key}.{name}" for name in ("rope_type", "type", "rope_theta", *read)},
            {f"{key}.partial_rotary_factor": (1.0,)},
        )
        for name in ("rope_theta", *read):
            entry, needed = value.get(name), name in ROPE_NEEDED and name in read
            number = isinstance(entry, int | float) and entry > 0
            if needed if entry is None else not number and name != "truncate":
                raise UserError(f"{where}: key {key}.{name} is {entry!r:.60}; rope_type {kind} needs a positive number")
    if len(rope_objects) == 2:
        scaling, parameters = rope_objects.values()
        for name in scaling.keys() & parameters.keys():
            if scaling[name] != parameters[name]:
                raise UserError(f"{where}: keys rope_scaling.{name} and rope_parameters.{name} disagree")


def _rope(where: str, parameters: Mapping[str, Any]) -> Rope:
    """The rope from checked keys and the class's defaults."""
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


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a decoder; `decoder_config` of it gives the decoder back.

    Both forms of the rope keys are written, so that versions 4 and 5 of `transformers` read it alike. Token ids are
    null: the caller knows them.

    Raises:
      ValueError: the family has no words for something in `config`; the field is named.
    """
    family = FAMILIES[config.family]
    scaling = _rope_parameters(config.rope)
    raw = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "torch_dtype": jnp.dtype(config.param_dtype).name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
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
    for name in ("qkv_bias", "output_bias", "mlp_bias"):
        if isinstance(getattr(family, name), str):
            raw[getattr(family, name)] = getattr(config, name)
    window = max(config.windows, default=0)
    if family.windows != "none":
        raw["sliding_window"] = window or None
    if family.windows == "layer_types":
        sliding = [bool(size) for size in config.windows] or [False] * config.layers
        raw["use_sliding_window"] = bool(window)
        raw["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in sliding]
        # Versions that do not know `layer_types` let the layers from this one on slide.
        raw["max_window_layers"] = sliding.index(True) if window else config.layers
    read = decoder_config(raw)
    for field in ("rope", "qkv_bias", "output_bias", "mlp_bias", "qk_norm"):
        if getattr(read, field) != getattr(config, field):
            raise ValueError(f"{config.family} models have no {field}={getattr(config, field)!r}")
    if any(config.windows) and read.windows != config.windows:
        raise ValueError(f"{config.family} models have no windows={config.windows!r}")
    return raw


def _rope_parameters(rope: Rope) -> dict[str, Any]:
    values = {**dataclasses.asdict(rope), "original_max_position_embeddings": rope.original_length}
    read = {name: values.get(name) for name in ROPE_READ[rope.kind]}
    return {"rope_type": rope.kind, **{name: value for name, value in read.items() if value is not None}}

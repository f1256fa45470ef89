"""Pure-functional Flax Linen models: the decoder teacher, and the encoder."""

from jax_rele.models.attention import Mask, attention
from jax_rele.models.build import build_teacher
from jax_rele.models.decoder import Decoder, DecoderConfig
from jax_rele.models.encoder import Encoder, EncoderConfig
from jax_rele.models.encoder_families import encoder_config
from jax_rele.models.families import decoder_config, hf_config
from jax_rele.models.lora import LoraSpec, merge, split
from jax_rele.models.peft import load_peft, save_peft
from jax_rele.models.rope import Rope, rotary
from jax_rele.models.weights import check_weights, from_hf, load_params, to_hf

__all__ = [
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "LoraSpec",
    "Mask",
    "Rope",
    "attention",
    "build_teacher",
    "check_weights",
    "decoder_config",
    "encoder_config",
    "from_hf",
    "hf_config",
    "load_params",
    "load_peft",
    "merge",
    "rotary",
    "save_peft",
    "split",
    "to_hf",
]

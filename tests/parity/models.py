"""Small random models of every family in torch, made so that a mistake anywhere shows in the logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from jax_rele.models import Decoder, Rope

LENGTHS = (500, 371)
VOCABULARY = 97
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (len(LENGTHS), max(LENGTHS)))
VALID = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def stretched(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **values}


LLAMA3 = stretched("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = stretched("yarn", factor=4.0, original_max_position_embeddings=128)
PLAIN = Rope()

CASES: dict[str, tuple[PreTrainedConfig, dict[str, Any]]] = {
    "qwen2 tied": (Qwen2Config(**SHAPE, tie_word_embeddings=True), {"rope": Rope(theta=5e5)}),
    "qwen2 mixed windows": (
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=37, max_window_layers=1),
        {"windows": (0, 37, 0)},
    ),
    "qwen2 yarn": (Qwen2Config(**SHAPE, rope_parameters={**YARN, "attention_factor": 1.3}), {"rope": PLAIN}),
    "qwen3 tied": (Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True), {"rope": Rope(theta=5e5)}),
    "qwen3 untied, head_dim 24": (
        Qwen3Config(**SHAPE, head_dim=24, rope_parameters=stretched("default") | {"rope_theta": 1e6}),
        {"rope": PLAIN},
    ),
    "qwen3 attention_bias, windows by layer_types": (
        Qwen3Config(
            **SHAPE,
            head_dim=16,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=50,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        {"windows": (50, 50, 50)},
    ),
    "qwen3 yarn with mscale": (
        Qwen3Config(
            **SHAPE,
            head_dim=16,
            rope_parameters={**YARN, "mscale": 1.7, "mscale_all_dim": 0.6, "beta_fast": 8.0, "truncate": False},
        ),
        {"rope": PLAIN},
    ),
    "llama llama3": (LlamaConfig(**SHAPE, rope_parameters=LLAMA3), {"rope": PLAIN}),
    "llama linear": (LlamaConfig(**SHAPE, rope_parameters=stretched("linear", factor=4.0)), {"rope": PLAIN}),
    "llama yarn": (LlamaConfig(**SHAPE, rope_parameters=YARN, tie_word_embeddings=True), {"rope": PLAIN}),
    "llama attention_bias, mlp_bias": (
        LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-2),
        {"norm_eps": 1e-6},
    ),
    "mistral sliding": (MistralConfig(**SHAPE, sliding_window=50), {"windows": ()}),
    "mistral full, tied, head_dim 40": (
        MistralConfig(**SHAPE, sliding_window=None, head_dim=40, tie_word_embeddings=True),
        {"windows": (50, 50, 50)},
    ),
}
"""For each: the config, and a change of ours that must show in the logits."""


def torch_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32):
    """Random values everywhere: biases and norms away from where they begin, attention far from uniform."""
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name:
                value.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                value.copy_(0.3 * noise)
            else:
                value.copy_((1.5 if "q_proj" in name or "k_proj" in name else 1.2) * noise / value.shape[-1] ** 0.5)
    return model.to(dtype)


def torch_logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS), attention_mask=torch.tensor(VALID, dtype=torch.long)).logits.numpy()


def our_logits(model: Decoder, variables: dict, **changes: Any) -> np.ndarray:
    model = Decoder(dataclasses.replace(model.config, **changes))
    out = jax.jit(model.apply)(variables, jnp.where(VALID, TOKENS, 0))
    return np.asarray(out.hidden @ out.output_embedding.T)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest over the tokens that are not padding."""
    return float(np.abs(a - b)[VALID].max())

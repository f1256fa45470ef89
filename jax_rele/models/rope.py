"""Rotary position embedding and how open models stretch it to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Rope:
    """Frequencies of a rotary embedding. The names are those of the Hugging Face config's `rope_parameters`.

    Attributes:
      theta: base of the frequencies.
      kind: `default`; `linear`: positions divided by `factor` (Chen et al., arXiv 2306.15595); `llama3`: long
        wavelengths divided by `factor` (Llama 3.1's release); `yarn` (Peng et al., arXiv 2309.00071).
      factor: how many times longer the context is than the one trained on.
      original_length: positions of the context trained on (`original_max_position_embeddings`); llama3 and yarn.
      low_freq_factor, high_freq_factor: llama3; turns over the original context between which the stretch fades out.
      beta_fast, beta_slow: yarn; turns over the original context between which the stretch fades in.
      attention_factor: yarn; queries and keys are scaled by it. None: 0.1 ln(factor) + 1.
      truncate: yarn; round the ends of the fading to whole frequencies.
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def frequencies(self, head_dim: int) -> np.ndarray:
        """[head_dim / 2] float32, radians per position."""
        half = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        # Rounded where torch rounds, because positions amplify a difference in the last bit.
        plain = np.float32(1) / (self.theta ** half.astype(np.float64)).astype(np.float32)
        if self.kind == "default":
            return plain
        if self.kind == "linear":
            return plain / self.factor
        unstretched: np.ndarray  # 0: divided by the factor, 1: unchanged.
        if self.kind == "llama3":
            turns = self.original_length / (2 * math.pi / plain)
            unstretched = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        else:
            low, high = (
                head_dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))
                for turns in (self.beta_fast, self.beta_slow)
            )
            if self.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, head_dim - 1)
            indices = np.arange(head_dim // 2, dtype=np.float32)
            unstretched = 1 - (indices - low) / max(high - low, 1e-3)
        unstretched = np.clip(unstretched, 0, 1)
        return (1 - unstretched) * plain / self.factor + unstretched * plain

    @property
    def scale(self) -> float:
        """Factor of cosines and sines."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def rotary(x: jax.Array, positions: jax.Array, rope: Rope) -> jax.Array:
    """Rotary position embedding (Su et al., arXiv 2104.09864), halves rotated as in Llama and Qwen; in float32.

    Args:
      x: [B, L, H, head_dim], head_dim even.
      positions: [B, L] int.
      rope: the frequencies.
    """
    return rotate(x, positions, rope.frequencies(x.shape[-1]), rope.scale)


def rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array | np.ndarray, scale: float = 1.0) -> jax.Array:
    """`rotary` by frequencies [head_dim / 2] that may be traced, e.g. where layers differ."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles) * scale, jnp.sin(angles) * scale
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)

"""Rotary frequencies against those of torch, to the last bits of float32."""

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jax_rele.models import decoder_config

STRETCHES = {
    "default": {},
    "linear": {"factor": 3.0},
    "llama3": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32_768},
}


@pytest.mark.parametrize("kind", STRETCHES)
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_frequencies_and_scale_equal(kind, theta, head_dim):
    config = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_type": kind, "rope_theta": theta, **STRETCHES[kind]})
    expected = LlamaRotaryEmbedding(config)
    rope = decoder_config(config.to_dict()).rope
    np.testing.assert_allclose(rope.frequencies(head_dim), expected.inv_freq.numpy(), rtol=5e-7)
    assert rope.scale == pytest.approx(expected.attention_scaling, rel=1e-12)

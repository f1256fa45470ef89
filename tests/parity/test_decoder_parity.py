"""Every family against its class in torch: logits, and folders that go from one to the other and back."""

import jax.numpy as jnp
import pytest
import torch
from transformers import AutoModelForCausalLM

from jax_rele.models import from_hf, to_hf

from .models import CASES, difference, our_logits, torch_logits, torch_model


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_and_folders_go_both_ways(case, tmp_path):
    config, change = CASES[case]
    theirs = torch_model(config)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    expected = torch_logits(theirs)
    assert expected.std() > 0.5

    model, variables = from_hf(tmp_path / "theirs", dtype=jnp.float32)
    error = difference(our_logits(model, variables), expected)
    assert error < 1e-4
    assert difference(our_logits(model, variables, **change), expected) > 0.05, "the case cannot tell a mistake"

    to_hf(model, variables, tmp_path / "ours", source=tmp_path / "theirs", max_shard_size=150_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto", attn_implementation="eager")
    assert again.dtype == torch.float32
    ours, states = again.state_dict(), theirs.state_dict()
    assert ours.keys() == states.keys()
    assert all(torch.equal(ours[name], states[name]) for name in states)
    back = difference(torch_logits(again), expected)
    assert back < 1e-6
    assert again.generation_config.eos_token_id == theirs.generation_config.eos_token_id
    print(
        f"{case}: logits of std {expected.std():.2f}, |ours - torch| {error:.1e}, written and loaded again {back:.1e}"
    )


def test_bfloat16_weights_go_through_unchanged(tmp_path):
    config, _ = CASES["llama attention_bias, mlp_bias"]
    theirs = torch_model(config, torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    model, variables = from_hf(tmp_path / "theirs", dtype=jnp.bfloat16)
    to_hf(model, variables, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name

"""Adapters against the `peft` package: loaded from it, written for it, and merged."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from jax_rele.models import LoraSpec, from_hf, load_peft, save_peft, to_hf

from .models import CASES, difference, our_logits, torch_logits, torch_model

# What `peft` asks of `transformers` is not ours to change.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ADAPTERS = {
    "qwen2 mixed windows": {"target_modules": "all-linear", "r": 6, "lora_alpha": 5, "use_rslora": True},
    "qwen3 tied": {"target_modules": ["q_proj", "v_proj", "self_attn.o_proj"], "r": 4, "lora_alpha": 8},
    "mistral sliding": {"target_modules": r".*\.mlp\.(gate|down)_proj", "r": 4, "lora_alpha": 8},
    "llama attention_bias, mlp_bias": {
        "target_modules": ["q_proj", "up_proj"],
        "layers_to_transform": [0, 2],
        "r": 4,
        "lora_alpha": 8,
    },
    "llama llama3": {"target_modules": "all-linear", "exclude_modules": ["layers.1.mlp.up_proj"], "r": 4},
}
"""For a base of each family, adapters of another kind."""


@pytest.fixture
def base(case, tmp_path):
    torch_model(CASES[case][0]).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def torch_base(base):
    return AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_of_peft_load_and_go_back(case, base, tmp_path):
    theirs = peft.get_peft_model(
        torch_base(base), peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **ADAPTERS[case])
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                value.copy_(0.12 * torch.randn(value.shape, generator=generator))
    theirs.save_pretrained(tmp_path / "theirs")
    expected, plain = torch_logits(theirs), torch_logits(torch_base(base))
    assert difference(expected, plain) > 0.2

    model, variables = from_hf(base, dtype=jnp.float32)
    model, adapters = load_peft(tmp_path / "theirs", model)
    assert model.config.lora.dropout == 0.1
    error = difference(our_logits(model, {**variables, **adapters}), expected)
    assert error < 1e-4

    save_peft(model, adapters, tmp_path / "ours", base=str(base))
    again = peft.PeftModel.from_pretrained(torch_base(base), tmp_path / "ours").eval()
    back = difference(torch_logits(again), expected)
    assert back < 1e-4

    to_hf(model, {**variables, **adapters}, tmp_path / "merged")
    merged = difference(torch_logits(torch_base(tmp_path / "merged")), expected)
    assert merged < 1e-4
    print(f"{case}: |ours - peft| {error:.1e}, written and loaded in peft {back:.1e}, merged in torch {merged:.1e}")


TIED, UNTIED = "qwen3 tied", "qwen3 untied, head_dim 24"
PATTERNS = {
    "target_modules": "all-linear",
    "r": 4,
    "lora_alpha": 8,
    "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.up_proj": 2},
    "alpha_pattern": {"down_proj": 3, "model.layers.0.self_attn.q_proj": 1.5},
}
CHANGES = [
    (TIED, PATTERNS),
    (TIED, {**PATTERNS, "use_rslora": True}),
    (UNTIED, {"target_modules": ["q_proj"], "r": 4, "modules_to_save": ["lm_head"]}),
    (UNTIED, {"target_modules": ["q_proj"], "r": 4, "modules_to_save": ["embed_tokens", "lm_head"]}),
    (UNTIED, {"target_modules": ["q_proj"], "r": 4, "modules_to_save": ["input_layernorm", "up_proj", "norm"]}),
    (TIED, {"target_modules": ["q_proj"], "r": 4, "modules_to_save": ["lm_head"]}),
    (TIED, {"target_modules": ["q_proj"], "r": 4, "modules_to_save": ["embed_tokens"]}),
    (TIED, {"target_modules": ["q_proj"], "r": 4, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    (UNTIED, {"target_modules": ["q_proj", "embed_tokens"], "r": 4, "lora_alpha": 6}),
    (UNTIED, {"target_modules": ["embed_tokens", "lm_head"], "r": 4, "alpha_pattern": {"lm_head": 1.5}}),
    (TIED, {"target_modules": ["q_proj", "lm_head"], "r": 4, "rank_pattern": {"lm_head": 6}}),
    (TIED, {"target_modules": ["q_proj", "embed_tokens"], "r": 4}),
]


@pytest.mark.parametrize(("case", "keys"), CHANGES)
def test_patterns_and_changes_of_the_base_are_exact(keys, base, tmp_path):
    theirs = peft.get_peft_model(torch_base(base), peft.LoraConfig(task_type="CAUSAL_LM", **keys)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.add_(0.12 * torch.randn(value.shape, generator=generator))
    theirs.save_pretrained(tmp_path / "theirs")
    # What is loaded is what was saved.
    expected = torch_logits(peft.PeftModel.from_pretrained(torch_base(base), tmp_path / "theirs").eval())
    assert difference(expected, torch_logits(torch_base(base))) > 0.2
    model, variables = from_hf(base, dtype=jnp.float32)
    model, adapters = load_peft(tmp_path / "theirs", model, params=variables["params"])
    variables |= adapters
    error = difference(our_logits(model, variables), expected)
    print(f"{keys}: |ours - peft| {error:.1e}")
    assert error < 1e-4
    to_hf(model, variables, tmp_path / "merged")
    assert difference(torch_logits(torch_base(tmp_path / "merged")), expected) < 1e-4


@pytest.mark.parametrize("case", ["qwen3 untied, head_dim 24"])
def test_adapters_made_here_load_in_peft(base, tmp_path):
    spec = LoraSpec(rank=3, alpha=4.5, targets="[qk]_proj|down_proj", rank_stabilized=True)
    model, variables = from_hf(base, dtype=jnp.float32, lora=spec)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["lora"]
    rng = np.random.default_rng(2)
    adapters = {"lora": jax.tree.map(lambda leaf: 0.12 * rng.standard_normal(leaf.shape, np.float32), shapes)}
    save_peft(model, adapters, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(torch_base(base), tmp_path / "ours").eval()
    expected = our_logits(model, {**variables, **adapters})
    assert difference(expected, our_logits(model, variables)) > 0.2
    assert difference(torch_logits(theirs), expected) < 1e-4

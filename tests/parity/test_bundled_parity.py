"""The package's own weights in torch, read from their folders, and ours: hidden states and logits of shop texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.models import from_hf
from jax_rele.models.files import resolve

TEXTS = (
    "usb c cable 2m",
    "Anker USB-C to USB-C Cable, 2 m, braided, 60W fast charging",
    "women's running shoes " * 6,
    "Café Crème Señor 電池 ✅ waterproof men's boots (size 10)",
    "x",
)


def rows(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the texts, and which of them are no padding; torch's tokenizer has the same."""
    folder = resolve(f"bundled:{kind}", ())
    tokenizer = load_tokenizer(folder, ("pad",))
    ids = tokenizer(list(TEXTS))["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(folder)(list(TEXTS))["input_ids"]
    tokens = pad(ids, max(map(len, ids)), tokenizer.pad_token_id)
    return tokens, np.arange(tokens.shape[1]) < np.array([len(row) for row in ids])[:, None]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_decoder_is_that_of_torch(attention):
    tokens, valid = rows("decoder")
    model, variables = from_hf("bundled:decoder", dtype=jnp.float32)
    out = jax.jit(model.apply)(variables, tokens)
    theirs = AutoModelForCausalLM.from_pretrained(
        resolve("bundled:decoder", ()), dtype=torch.float32, attn_implementation=attention
    ).eval()
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            output_hidden_states=True,
        )
    logits = np.asarray(out.hidden @ out.output_embedding.T)
    close("hidden states", np.asarray(out.hidden), expected.hidden_states[-1].numpy(), valid)
    close("logits", logits, expected.logits.numpy(), valid)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_encoder_is_that_of_torch(attention):
    tokens, valid = rows("encoder")
    types = np.where(np.arange(tokens.shape[1]) > 3, valid, 0).astype(np.int32)
    model, variables = from_hf("bundled:encoder", dtype=jnp.float32)
    hidden = jax.jit(model.apply)(variables, tokens, types, valid)
    theirs = AutoModel.from_pretrained(
        resolve("bundled:encoder", ()), dtype=torch.float32, attn_implementation=attention
    ).eval()
    with torch.no_grad():
        expected = theirs(*(torch.tensor(x, dtype=torch.long) for x in (tokens, valid, types)))
    close("hidden states", np.asarray(hidden), expected.last_hidden_state.numpy(), valid)
    if "pooler" in variables["params"]:
        pooled = np.asarray(model.apply(variables, hidden, method="pool"))
        close("pooled", pooled, expected.pooler_output.numpy(), np.ones(len(pooled), bool))


def close(what: str, ours: np.ndarray, expected: np.ndarray, valid: np.ndarray) -> None:
    """Equal wherever no padding stands, and not by being constant."""
    error, spread = np.abs(ours - expected)[valid].max(), expected[valid].std()
    print(f"{what}: std {spread:.2f}, |ours - torch| {error:.1e}")
    assert spread > 0.05
    assert error < 1e-4

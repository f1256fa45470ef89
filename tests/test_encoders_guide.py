"""The examples of docs/encoders.md run as they stand, on a tiny model in the folder that they name."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.models import Encoder, EncoderConfig, from_hf, to_hf

pytestmark = pytest.mark.slow

GUIDE = (Path(__file__).parent.parent / "docs" / "encoders.md").read_text("utf-8")


@partial(jax.jit, static_argnums=0)
def apply(model, variables, *inputs):
    return model.apply(variables, *inputs)


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """The names after every example has run, in order."""
    root = tmp_path_factory.mktemp("guide")
    tokenizer = train_tokenizer(["usb-c cable", "red shoes"] * 20, 300, encoder=True)
    model = Encoder(EncoderConfig(len(tokenizer), max_length=96, layers=2, width=16, heads=2, mlp_width=24))
    tokens = jnp.zeros((1, 2), jnp.int32)
    pooled = partial(model.init, method=lambda model, *inputs: model.pool(model(*inputs)))
    params = jax.jit(lambda rng: nn.unbox(pooled(rng, tokens, tokens, tokens > 0)))(jax.random.key(0))
    to_hf(model, params, root / "models" / "encoder")
    tokenizer.save_pretrained(root / "models" / "encoder")
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)):
            exec(compile(code, f"docs/encoders.md, example {number}", "exec"), names)
    return root, names


def test_the_examples_run(after):
    _, names = after
    assert names["cosines"].shape == (2,)
    assert (np.abs(names["cosines"]) <= 1.00001).all()
    assert names["pooled"].shape == (2, 16)
    np.testing.assert_allclose(names["attention"].sum(-1), 1, atol=1e-5)
    assert float(names["value"]) > 0


def test_the_written_folder_is_the_trained_model(after):
    root, names = after
    inputs = names["tokens"], names["types"], names["valid"]
    model, written = from_hf(root / "models" / "mine", dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, written, names["variables"])
    before = apply(*from_hf(root / "models" / "encoder", dtype=jnp.float32), *inputs)
    assert np.abs(apply(model, written, *inputs) - before).max() > 1e-4
    assert (root / "models" / "mine" / "tokenizer.json").is_file()

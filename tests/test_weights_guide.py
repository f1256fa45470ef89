"""The examples of docs/weights.md run as they stand, on a tiny model in the folder that they name."""

import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jax_rele.models import Decoder, DecoderConfig, from_hf, to_hf

pytestmark = pytest.mark.slow

GUIDE = (Path(__file__).parent.parent / "docs" / "weights.md").read_text("utf-8")
# Sizes that eight devices divide.
TINY = DecoderConfig(vocab_size=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, mlp_width=24, max_length=64)


@partial(jax.jit, static_argnums=0)
def hidden(model, variables, tokens):
    return model.apply(variables, tokens).hidden


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """(folder, names) after every python example has run in it, in order."""
    root = tmp_path_factory.mktemp("guide")
    params = jax.jit(lambda rng: nn.unbox(Decoder(TINY).init(rng, jnp.zeros((1, 2), jnp.int32))))(jax.random.key(0))
    to_hf(Decoder(TINY), params, root / "models" / "base")
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)):
            exec(compile(code, f"docs/weights.md, example {number}", "exec"), names)
    return root, names


def test_the_python_examples_run(after):
    _, names = after
    assert names["last"].shape == (1, 32)
    expected = hidden(names["model"], names["variables"], names["tokens"])
    np.testing.assert_allclose(names["out"].hidden, expected, atol=1e-5)
    assert float(names["value"]) > 0


def test_the_merged_folder_is_the_adapted_model(after):
    root, names = after
    model, merged = from_hf(root / "models" / "merged", dtype=jnp.float32)
    expected = hidden(names["model"], names["variables"], names["tokens"])
    np.testing.assert_allclose(hidden(model, merged, names["tokens"]), expected, atol=1e-5)
    assert np.abs(expected - hidden(names["plain"], names["base"], names["tokens"])).max() > 1e-3


def test_the_line_for_a_shell_runs(after):
    root, names = after
    (line,) = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    python, *arguments = shlex.split(line)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True, cwd=root)
    model, merged = from_hf(root / "models" / "from_shell", dtype=jnp.float32)
    expected = hidden(names["model"], names["variables"], names["tokens"])
    np.testing.assert_allclose(hidden(model, merged, names["tokens"]), expected, atol=0.1)

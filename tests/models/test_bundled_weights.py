"""The weights in `jax_rele/bundled` themselves: whole, small, of the forms that their names promise, and described."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.models import bundled, from_hf
from jax_rele.models.files import resolve

FORMS = {
    "decoder": ("qwen3", 1_000_000, 8_000_000, ("eos",)),
    "encoder": ("bert", 2_000_000, 5_000_000, ("pad", "cls", "sep")),
}
"""model_type, fewest and most parameters, special tokens."""


def test_every_folder_is_there_whole_and_none_beside_them():
    for kind in bundled.NAMES:
        bundled.verify(bundled.ROOT / kind)
    assert {path.name for path in bundled.ROOT.iterdir()} == set(bundled.NAMES)


def test_they_are_small_together():
    assert 0 < sum(path.stat().st_size for path in bundled.ROOT.rglob("*") if path.is_file()) <= 25_000_000


@pytest.mark.parametrize("kind", bundled.NAMES)
def test_form_and_size(kind):
    form, fewest, most, special = FORMS[kind]
    folder = resolve(f"bundled:{kind}", ())
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == form
    model, variables = from_hf(f"bundled:{kind}", dtype=jnp.float32)
    assert model.config.family == form
    leaves = jax.tree.leaves(variables["params"])
    assert fewest <= sum(leaf.size for leaf in leaves) <= most
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    tokenizer = load_tokenizer(folder, special)
    assert len(tokenizer) <= model.config.vocab_size
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size


@pytest.mark.parametrize("kind", bundled.NAMES)
def test_the_model_card_names_licence_data_and_limits(kind):
    folder = bundled.ROOT / kind
    headings = " ".join(re.findall(r"^#+ (.*)$", (folder / "README.md").read_text("utf-8"), re.MULTILINE)).lower()
    for word in ("licen", "data", "limit"):
        assert word in headings
    assert any("license" in path.read_text("utf-8").lower() for path in folder.glob("LICENSE*"))

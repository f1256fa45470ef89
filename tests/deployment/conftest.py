"""A tiny bundle of each student, with random weights: no run, no training."""

import jax
import numpy as np
import onnx
import pytest
from flax import linen as nn

from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.deployment.bundle import Labels, Manifest, write_manifest
from jax_rele.deployment.student_graph import compare_model, cross_encoder_model, tower_model
from jax_rele.io import write_json
from jax_rele.models.encoder import EncoderConfig
from jax_rele.models.encoder_families import encoder_hf_config
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower

DIMENSIONS = ("category", "brand", "color")
LABELS = Labels(names=("Exact", "Substitute", "Irrelevant"), gains=(1.0, 0.1, 0.0), positive=("Exact",))
TEXTS = (
    "red running shoes for men",
    "blue cotton shirt with pockets",
    "iphone charger cable 2 m",
    "garden hose 20 m green",
    "Acme wireless headphones black noise cancelling",
)
WIDTH, VIEWS = 32, 8


def _params(model, seed):
    """Random parameters that are large enough for every text to count; nothing is compiled."""
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), **model.dummy_inputs())))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return (float("scale" in str(path[-1])) + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_bundle(folder, kind, *, head="cosine", **changes):
    """Writes a bundle of `cross_encoder` or `two_tower` into a new folder; `changes` are of its manifest."""
    folder.mkdir()
    tokenizer = train_tokenizer(TEXTS, 320, encoder=True)
    encoder = EncoderConfig(
        vocab_size=len(tokenizer), max_length=48, layers=2, width=WIDTH, heads=4, mlp_width=48, dropout=0.0
    )
    values = {
        "model": kind,
        "recipe": "mkd",
        "labels": LABELS,
        "dimensions": DIMENSIONS,
        "has_verdicts": True,
        "has_evidence": kind == "cross_encoder",
        "fields": ("brand", "color", "title"),
        "query_length": 12,
        "item_length": 32,
        "temperature": 1.3,
        "source": {"run": "tiny"},
    }
    if kind == "two_tower":
        values |= {"head": head, "embedding_width": WIDTH + VIEWS * len(DIMENSIONS), "unit_length": head == "cosine"}
    manifest = Manifest(**(values | changes))
    schema = manifest.schema_
    outputs = {"logits", "label_logits", "verdict_logits"}
    if kind == "cross_encoder":
        model = CrossEncoder(encoder, len(schema), len(DIMENSIONS))
        outputs |= {"evidence_logits"}
        graphs = {
            "model.onnx": cross_encoder_model(
                model, _params(model, 0), schema, manifest.temperature, frozenset(outputs)
            )
        }
    else:
        model = TwoTower(encoder, len(schema), len(DIMENSIONS), embedding_width=0, view_width=VIEWS, head=head)
        params = _params(model, 2)
        graphs = {f"{side}.onnx": tower_model(model, params, n) for n, side in enumerate(("query", "item"))}
        graphs["compare.onnx"] = compare_model(model, params, schema, manifest.temperature, frozenset(outputs))
    for name, graph in graphs.items():
        onnx.save(graph, str(folder / name))
    tokenizer.save_pretrained(folder)
    write_json(folder / "config.json", encoder_hf_config(encoder))
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def cross_bundle(tmp_path_factory):
    """Folder of a cross-encoder's bundle."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "cross", "cross_encoder")


@pytest.fixture(scope="session")
def tower_bundle(tmp_path_factory):
    """Folder of a two-tower's bundle."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tower", "two_tower")

"""Bundles of tiny students with random parameters, and items that have words in common."""

from pathlib import Path

import jax
import numpy as np
import onnx
from flax import linen as nn

from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.deployment.bundle import Labels, Manifest, write_manifest
from jax_rele.deployment.student_graph import compare_model, cross_encoder_model, tower_model
from jax_rele.io import write_json
from jax_rele.models.encoder import EncoderConfig
from jax_rele.models.encoder_families import encoder_hf_config
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower
from jax_rele.types import Item, LabelSchema

NAMES, GAINS, POSITIVE = ("Exact", "Substitute", "Irrelevant"), (1.0, 0.1, 0.0), ("Exact",)
SCHEMA = LabelSchema(NAMES, GAINS, POSITIVE)
DIMENSIONS = ("brand", "color")
OUTPUTS = frozenset({"logits", "label_logits", "verdict_logits"})
BRANDS = ("Acme", "Umbra", "STRASSE", "straße", "")
COLORS = ("red", "blue", "Blue ", "")
NOUNS = ("shoe", "lamp", "kettle", "sofa", "phone case", "garden hose", "usb cable")


def tiny_items(count: int, seed: int = 0) -> list[Item]:
    rng = np.random.default_rng(seed)

    def one(number: int) -> Item:
        noun = NOUNS[rng.integers(len(NOUNS))]
        return Item(
            id=f"i{number:04d}",
            title=f"{noun} {' '.join(rng.choice(list('abcdefghij'), 3))} {number}",
            brand=BRANDS[rng.integers(len(BRANDS))],
            color=COLORS[rng.integers(len(COLORS))],
            category=noun,
            attributes=(("Size", str(number % 3)),) if number % 2 else (),
        )

    return [one(number) for number in range(count)]


def write_tower(folder: Path, head: str = "cosine", seed: int = 0) -> Path:
    """A two-tower whose score rises with the inner product if its head is the cosine."""
    model = TwoTower(_encoder(), 3, len(DIMENSIONS), embedding_width=16, view_width=4, head=head)
    params = _params(model, seed)
    if head != "mlp":
        params["label_slope"] = np.array([6.0, 0.0, -6.0], np.float32)
    graphs = {f"{side}.onnx": tower_model(model, params, number) for number, side in enumerate(("query", "item"))}
    graphs["compare.onnx"] = compare_model(model, params, SCHEMA, 1.3, OUTPUTS)
    width = 16 if head == "maxsim" else 16 + 4 * len(DIMENSIONS)
    options = {"head": head, "embedding_width": width, "score_rises": head == "cosine"}
    return _write(folder, graphs, model="two_tower", **options)


def write_cross(folder: Path, seed: int = 0) -> Path:
    model = CrossEncoder(_encoder(), 3, len(DIMENSIONS))
    params = _params(model, seed)
    graphs = {"model.onnx": cross_encoder_model(model, params, SCHEMA, 1.3, OUTPUTS)}
    return _write(folder, graphs, model="cross_encoder")


def _encoder() -> EncoderConfig:
    return EncoderConfig(vocab_size=400, max_length=64, layers=1, width=32, heads=4, mlp_width=32, dropout=0.0)


def _params(model: nn.Module, seed: int) -> dict:
    params = nn.unbox(model.init(jax.random.key(seed), **model.dummy_inputs()))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [np.asarray(leaf + 0.2 * jax.random.normal(key, leaf.shape)) for leaf, key in zip(leaves, keys)]
    return jax.tree.unflatten(structure, noisy)


def _write(folder: Path, graphs: dict[str, onnx.ModelProto], **options: object) -> Path:
    folder.mkdir(parents=True)
    for name, graph in graphs.items():
        onnx.save_model(graph, folder / name)
    texts = [" ".join((item.title, item.brand, item.color)) for item in tiny_items(200)]
    train_tokenizer(texts, 400, encoder=True).save_pretrained(folder)
    write_json(folder / "config.json", encoder_hf_config(_encoder()))
    manifest = Manifest(
        recipe="mkd",
        labels=Labels(names=NAMES, gains=GAINS, positive=POSITIVE),
        dimensions=DIMENSIONS,
        has_verdicts=True,
        has_evidence=False,
        fields=("brand", "color", "title"),
        query_length=16,
        item_length=32,
        temperature=1.3,
        source={"run": "tiny", "parameters": "0"},
        **options,
    )
    write_manifest(folder, manifest)
    return folder

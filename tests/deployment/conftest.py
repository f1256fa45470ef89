"""A tiny bundle of each student, with random weights: no run, no training."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import onnx
import pytest
import tokenizers
from flax import linen as nn
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.deployment.bundle import Labels, Manifest, write_manifest
from jax_rele.deployment.student_data import StudentData
from jax_rele.deployment.student_graph import compare_model, cross_encoder_model, tower_model
from jax_rele.io import write_json
from jax_rele.models.encoder import EncoderConfig
from jax_rele.models.encoder_families import encoder_hf_config
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.prediction import Student
from jax_rele.students.two_tower import TwoTower
from jax_rele.types import LabelSchema

DIMENSIONS = ("category", "brand", "color")
LABELS = Labels(names=("Exact", "Substitute", "Irrelevant"), gains=(1.0, 0.1, 0.0), positive=("Exact",))
LABELS_SCHEMA = LabelSchema(LABELS.names, LABELS.gains, LABELS.positive)
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


def write_bundle(folder, kind, *, head="cosine", tokenizer=None, **changes):
    """Writes a bundle of `cross_encoder` or `two_tower` into a new folder; `changes` are of its manifest."""
    folder.mkdir()
    tokenizer = tokenizer or train_tokenizer(TEXTS, 320, encoder=True)
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


def _bert():
    """Google's ids: padding 0, `[CLS]` 101, `[SEP]` 102."""
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=200, show_progress=False)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {"[PAD]": 0, **{f"[unused{n}]": n for n in range(1, 100)}}
    vocabulary |= {name: 100 + n for n, name in enumerate(special[1:])}
    pieces = [piece for piece in sorted(trained.get_vocab(), key=trained.get_vocab().get) if piece not in special]
    return BertTokenizer(vocab=vocabulary | {piece: 104 + n for n, piece in enumerate(pieces)})


def _roberta():
    """Two markers between the texts; padding is 1."""
    trained = tokenizers.ByteLevelBPETokenizer()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TEXTS, vocab_size=400, special_tokens=pieces, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    return RobertaTokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])


def _modernbert():
    """BERT's markers around byte-level pieces; padding is 3."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=pieces, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, tokenizer.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")],
    )
    names = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, pieces)))


@pytest.fixture(scope="session")
def word_bundles(tmp_path_factory):
    """A bundle of each student, by kind, whose tokenizer does not know every text."""
    folder = tmp_path_factory.mktemp("words")
    return {kind: write_bundle(folder / kind, kind, tokenizer=_bert()) for kind in ("cross_encoder", "two_tower")}


FAMILIES = {
    "bundled": (lambda: train_tokenizer(TEXTS, 320, encoder=True), {}),
    "bert": (_bert, {}),
    "roberta": (_roberta, {"family": "roberta", "token_types": 1, "position_offset": 2, "norm_eps": 1e-5}),
    "modernbert": (
        _modernbert,
        {
            "family": "modernbert",
            "token_types": 0,
            "prenorm": True,
            "gated": True,
            "attention_bias": False,
            "mlp_bias": False,
            "norm_bias": False,
            "rope_thetas": (160000.0, 10000.0),
            "windows": (0, 4),
            "norm_eps": 1e-5,
        },
    ),
}
"""Family -> (makes its tokenizer, fields of its encoder); `bundled` is a tokenizer of `train_tokenizer`."""


@pytest.fixture(scope="session")
def student_data():
    """Makes what an export reads of a student with random weights, as of a run that was trained."""

    def make(kind, family):
        make_tokenizer, fields = FAMILIES[family]
        tokenizer = make_tokenizer()
        encoder = EncoderConfig(
            vocab_size=len(tokenizer),
            max_length=48,
            layers=2,
            width=WIDTH,
            heads=4,
            mlp_width=48,
            dropout=0.0,
            **fields,
        )
        schema = LABELS_SCHEMA
        if kind == "cross_encoder":
            model = CrossEncoder(encoder, len(schema), len(DIMENSIONS))
        else:
            model = TwoTower(encoder, len(schema), len(DIMENSIONS), embedding_width=0, view_width=VIEWS)
        params = _params(model, 4)
        student = Student(
            model,
            {"params": params},
            tokenizer,
            ("brand", "title"),
            12,
            32,
            schema=schema,
            dimensions=DIMENSIONS,
            has_verdicts=True,
            has_evidence=kind == "cross_encoder",
        )
        config = SimpleNamespace(name="random", labels=SimpleNamespace(aliases={}))
        return StudentData(None, config, kind, "mkd", student, params, 1.3, True, {})

    return make

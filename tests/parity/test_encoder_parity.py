"""Every family of encoders against its class in torch: outputs, folders both ways, and heads that stay behind."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.student_inputs import cross_rows, tower_rows
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.models import Encoder, from_hf, to_hf
from jax_rele.types import Item, Pair

from .encoders import CASES, VALID, difference, minilm, our_outputs, shake, torch_encoder, torch_outputs


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_and_folders_go_both_ways(case, tmp_path):
    config, change = CASES[case]
    theirs = torch_encoder(config)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    expected = torch_outputs(theirs)
    assert expected[0].std() > 0.5

    model, variables = from_hf(tmp_path / "theirs", dtype=jnp.float32)
    error = difference(our_outputs(model, variables), expected)
    assert error < 1e-4
    other = Encoder(dataclasses.replace(model.config, **change))
    assert difference(our_outputs(other, variables), expected) > 0.02, "the case cannot tell a mistake"

    to_hf(model, variables, tmp_path / "ours", source=tmp_path / "theirs", max_shard_size=70_000)
    again = AutoModel.from_pretrained(tmp_path / "ours", dtype="auto", attn_implementation="eager").eval()
    assert again.dtype == torch.float32
    ours, states = again.state_dict(), theirs.state_dict()
    assert ours.keys() == states.keys()
    assert all(torch.equal(ours[name], states[name]) for name in states)
    assert again.config.pad_token_id == config.pad_token_id
    back = difference(torch_outputs(again), expected)
    assert back < 1e-5
    reloaded = from_hf(tmp_path / "ours", dtype=jnp.float32)
    assert reloaded[0] == model
    jax.tree.map(np.testing.assert_array_equal, reloaded[1], variables)
    print(f"{case}: std {expected[0].std():.2f}, |ours - torch| {error:.1e}, written and loaded again {back:.1e}")


def test_roberta_counts_the_valid_tokens_wherever_padding_stands(tmp_path):
    theirs = torch_encoder(CASES["roberta"][0])
    theirs.save_pretrained(tmp_path / "theirs")
    model, variables = from_hf(tmp_path / "theirs", dtype=jnp.float32)
    valid = VALID[:, ::-1].copy()
    valid[0, 50:60] = False
    # The first token of these rows is padding: what it attends to is nobody's business.
    ours, expected = our_outputs(model, variables, valid), torch_outputs(theirs, valid)
    assert np.abs(ours[0] - expected[0])[valid].max() < 1e-4


HEADS = [
    ("bert", name)
    for name in ("PreTraining", "MaskedLM", "NextSentencePrediction", "SequenceClassification", "QuestionAnswering")
] + [
    (case, name)
    for case in ("roberta", "xlm-roberta", "distilbert", "modernbert")
    for name in ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
]


@pytest.mark.parametrize(("case", "head"), HEADS)
def test_an_encoder_loads_from_under_any_head(case, head, tmp_path):
    config = CASES[case][0]
    prefix = type(config).__name__.removesuffix("Config")
    theirs = shake(getattr(transformers, f"{prefix}For{head}")(config))
    theirs.save_pretrained(tmp_path / "theirs")
    model, variables = from_hf(tmp_path / "theirs", dtype=jnp.float32)
    base = theirs.base_model
    base.set_attn_implementation("eager")
    assert difference(our_outputs(model, variables), torch_outputs(base)) < 1e-4
    to_hf(model, variables, tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(names) == set(base.state_dict())


# ---- real weights

PAIRS = [
    ("usb c cable 2m", "Anker USB-C to USB-C Cable, 2 m, braided, 60W fast charging"),
    ("women's running shoes", "Café Crème Señor 電池 ✅ waterproof men's boots (size 10)"),
    ("red dress", "dress " * 90),
    ("", "x"),
]


@pytest.fixture(scope="module")
def real():
    model, variables = from_hf(minilm(), dtype=jnp.float32)
    return model, variables, load_tokenizer(minilm(), ("pad", "cls", "sep"))


def mean_embedding(model, variables, ids: list[list[int]], pad_id: int) -> np.ndarray:
    tokens = pad(ids, max(map(len, ids)), pad_id)
    valid = np.arange(tokens.shape[1]) < np.array([len(row) for row in ids])[:, None]
    hidden = jax.jit(model.apply)(variables, tokens, np.zeros_like(tokens), valid)
    mean = (np.asarray(hidden) * valid[..., None]).sum(1) / valid.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def test_minilm_gives_its_published_embeddings(real):
    model, variables, tokenizer = real
    pairs = [Pair(str(number), query, Item(str(number), title)) for number, (query, title) in enumerate(PAIRS)]
    # 256 tokens, as its sentence_bert_config.json says.
    queries, items = tower_rows(tokenizer, pairs, ("title",), 256, 255)
    reference = SentenceTransformer(str(minilm()), device="cpu")
    for ids, texts in ((queries, [query for query, _ in PAIRS]), (items, [title for _, title in PAIRS])):
        assert ids == [tokenizer(text, truncation=True, max_length=256)["input_ids"] for text in texts]
        expected = reference.encode(texts, normalize_embeddings=True)
        ours = mean_embedding(model, variables, ids, tokenizer.pad_token_id)
        cosine = (ours * expected).sum(-1)
        print(f"MiniLM: lowest cosine {cosine.min():.7f}, largest difference {np.abs(ours - expected).max():.1e}")
        assert cosine.min() >= 0.9999
        assert np.abs(ours - expected).max() < 1e-4


def test_minilm_reads_pairs_as_torch_does(real):
    model, variables, tokenizer = real
    pairs = [Pair(str(number), query, Item(str(number), title)) for number, (query, title) in enumerate(PAIRS)]
    ids, types = cross_rows(tokenizer, pairs, ("title",), 64, 192)
    expected = [tokenizer(query, title) for query, title in PAIRS]
    assert ids == [row["input_ids"] for row in expected]
    assert types == [row["token_type_ids"] for row in expected]
    length = max(map(len, ids))
    tokens, types = pad(ids, length, 0), pad(types, length, 0)
    valid = np.arange(length) < np.array([len(row) for row in ids])[:, None]
    hidden = jax.jit(model.apply)(variables, tokens, types, valid)
    reference = AutoModel.from_pretrained(minilm()).eval()
    with torch.no_grad():
        out = reference(*(torch.tensor(x, dtype=torch.long) for x in (tokens, valid, types)))
    assert np.abs(np.asarray(hidden) - out.last_hidden_state.numpy())[valid].max() < 1e-4
    pooled = model.apply(variables, hidden, method="pool")
    assert np.abs(np.asarray(pooled) - out.pooler_output.numpy()).max() < 1e-4


def test_minilm_goes_back_with_its_tokenizer(real, tmp_path):
    model, variables, tokenizer = real
    to_hf(model, variables, tmp_path / "ours", source=minilm())
    ours, theirs = load_file(tmp_path / "ours" / "model.safetensors"), load_file(minilm() / "model.safetensors")
    assert theirs.keys() - ours.keys() == {"embeddings.position_ids"}
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])
    text = PAIRS[1][1]
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_first_names_of_layer_norms_are_read(real, tmp_path):
    """The hub's bert-base-uncased: a `BertForPreTraining` with `LayerNorm.gamma` and `LayerNorm.beta`."""
    _, variables, _ = real
    shutil.copy(minilm() / "config.json", tmp_path)
    values = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(minilm() / "model.safetensors").items()
    }
    for name in ("predictions.bias", "predictions.transform.LayerNorm.gamma", "seq_relationship.weight"):
        values[f"cls.{name}"] = np.zeros(3, np.float32)
    save_file(values, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, from_hf(tmp_path, dtype=jnp.float32)[1], variables)

"""The bundled encoder's build: the command at the tiniest size, going on after a kill, what it never reads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from jax_rele.data.tokens.tokenizers import load_tokenizer, train_tokenizer
from jax_rele.models import Encoder, EncoderConfig, from_hf, to_hf
from jax_rele.rationale.words import key
from jax_rele.types import Item, Pair

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "scripts" / "build_bundled"
SIZES = {
    "vocab-size": 600,
    "crossed": 2,
    "recombined": 60,
    "held-out": 40,
    "layers": 1,
    "width": 32,
    "heads": 2,
    "mlp-width": 32,
    "batch-size": 8,
    "steps": 12,
    "checkpoint-every": 4,
    "evaluate-every": 6,
}


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(SCRIPTS))
    import corpus
    import encoder_teacher
    import encoder_texts

    sys.path.remove(str(SCRIPTS))
    return corpus, encoder_texts, encoder_teacher


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of the data, and a tiny random BERT in MiniLM's place."""
    sys.path.insert(0, str(Path(__file__).parent))
    from build_bundled_data import write_data

    sys.path.remove(str(Path(__file__).parent))
    folder = write_data(tmp_path_factory.mktemp("data"))
    tokenizer = train_tokenizer(["red shoes for women", "usb c cable 6 ft"] * 9, 400, encoder=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    model = Encoder(EncoderConfig(len(tokenizer), 64, layers=1, width=48, heads=2, mlp_width=32))
    ids = jnp.zeros((1, 4), jnp.int32)
    variables = jax.jit(lambda rng: model.init(rng, ids, ids, ids == 0))(jax.random.key(0))
    to_hf(model, variables, folder / "minilm", source=folder / "tokenizer")
    return folder


def command(data, output, **changed):
    sizes = SIZES | changed
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(SCRIPTS / "encoder.py"), str(data), "--output", str(output), *options]


def build(data, output, **changed):
    done = subprocess.run(
        [*command(data, output, **changed), "--minilm", str(data / "minilm")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "encoder"
    build(data, output)
    return output


def tensors(folder):
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_the_folder_is_that_of_a_bert_in_float16(built):
    assert {path.name for path in built.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert {tensor.dtype for tensor in tensors(built).values()} == {np.dtype(np.float16)}
    model, variables = from_hf(built, dtype=jnp.float32)
    assert "pooler" in variables["params"]
    tokenizer = load_tokenizer(built, ("pad", "cls", "sep"))
    assert len(tokenizer) == model.config.vocab_size

    read = tokenizer("Red shoes [SEP] 6 ft", "USB-C Cable")
    tokens = tokenizer.convert_ids_to_tokens(read["input_ids"])
    assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert read["token_type_ids"] == [0] * (tokens.index("[SEP]") + 1) + [1] * (len(tokens) - tokens.index("[SEP]") - 1)
    assert tokenizer.tokenize("RED Shoes") == tokenizer.tokenize("red shoes")

    assert AutoTokenizer.from_pretrained(built)("red shoes", "cable")["input_ids"][0] == tokenizer.cls_token_id


def test_figures_are_logged_over_time_and_with_intervals(built):
    work = built.with_name("encoder.work")
    lines = [json.loads(line) for line in (work / "progress.log").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [6, 12]
    log = json.loads((work / "log.json").read_text("utf-8"))
    assert log["corpus"]["held_out_queries_learnt"] == log["corpus"]["held_out_products_learnt"] == 0
    for name in ("auc", "auc_minilm", "auc_overlap", "correlation", "verdict", "verdict_majority", "occurs"):
        low, high = log["figures"][name]["ci95"]
        assert low <= log["figures"][name]["value"] <= high


@pytest.mark.long
def test_a_build_that_was_killed_ends_as_one_that_was_not(data, built, tmp_path):
    output = tmp_path / "encoder"
    checkpoint = tmp_path / "encoder.work" / "checkpoints" / "4"
    started = subprocess.Popen(
        [*command(data, output), "--minilm", str(data / "minilm")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not checkpoint.exists():
        assert started.poll() is None
        time.sleep(0.01)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert not output.exists()
    build(data, output)
    expected, actual = tensors(built), tensors(output)
    assert expected.keys() == actual.keys()
    assert all(np.array_equal(expected[name], actual[name]) for name in expected)


def test_nothing_that_is_set_apart_is_learnt_from(data, modules):
    corpus_module, texts, _ = modules
    corpus = corpus_module.load(data)
    gathered = texts.gather(corpus, crossed=2, recombined=500, held_out=40, seed=0)
    assert corpus.apart
    assert corpus.apart.isdisjoint(key(text) for text in gathered.texts)
    assert corpus.apart.isdisjoint(key(pair.query) for pair in gathered.pairs)
    apart = {pair.item.id for pair in (*corpus.demo, *corpus.held_out)}
    assert apart.isdisjoint(pair.item.id for pair in gathered.pairs)
    titles = {texts.item_text(pair.item) for pair in (*corpus.demo, *corpus.held_out)}
    assert titles.isdisjoint(gathered.texts)


def test_a_word_occurs_where_the_other_side_has_it_in_any_form(built, modules):
    tokenizer = load_tokenizer(built, ("pad", "cls", "sep"))
    query, item = "red shoes, usb", Item("a", "Shoe in red", brand="Blue")
    (occurs,), (owners,) = modules[1].occurrences(tokenizer, [Pair("1", query, item)])
    # By words as BERT cuts them; None for marks, which are no words.
    expected = []
    for text, of_words in ((query, (1, 1, None, 0)), (modules[1].item_text(item), (0, 1, 0, 1))):
        tokens = tokenizer(text, add_special_tokens=False)
        expected += [None, *[of_words[word] for word in tokens.word_ids()]]
    actual = [occurrence if owner else None for occurrence, owner in zip(occurs, owners)]
    assert actual == [*expected, None]


def test_principal_axes_keep_inner_products(modules):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8))
    axes = modules[2].principal(vectors, 3)
    np.testing.assert_allclose((vectors @ axes) @ (vectors @ axes).T, vectors @ vectors.T, atol=1e-4)
    assert modules[2].principal(vectors, 12).shape == (8, 12)


@pytest.mark.parametrize("wrong", ["folder", "minilm", "output", "heads", "changed"])
def test_bad_input_is_one_line(data, built, tmp_path, wrong):
    folder, output, minilm, changed = data, tmp_path / "encoder", data / "minilm", {}
    if wrong == "folder":
        folder = tmp_path / "none"
    elif wrong == "minilm":
        minilm = tmp_path / "none"
    elif wrong == "output":
        output.mkdir()
        (output / "kept.txt").write_text("kept")
    elif wrong == "heads":
        changed = {"heads": 3}
    else:
        changed = {"steps": 24}
    options = [*command(folder, output, **changed), "--minilm", str(minilm)]
    if wrong == "changed":
        options += ["--work", str(built.with_name("encoder.work"))]
    done = subprocess.run(options, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not output.exists() or [path.name for path in output.iterdir()] == ["kept.txt"]

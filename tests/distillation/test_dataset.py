"""What students read is made once, for just this content of pairs, signals and tokenizer."""

import dataclasses

import numpy as np
import pytest

from jax_rele.config import Config
from jax_rele.data import write_pairs, write_signals
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.distillation import dataset as training_data
from jax_rele.distillation import targets
from jax_rele.distillation.dataset import open_data, pairs_of, queries
from jax_rele.runs import artefacts, students
from jax_rele.types import Item, Pair, Signals

STUDENT = {
    "random": {"vocab_size": 320, "layers": 1, "width": 16, "heads": 2, "mlp_width": 16},
    "query_length": 8,
    "item_length": 16,
}
LABELS = ("Exact", None, "Substitute", None, "Irrelevant")
PAIRS = [
    Pair(f"p{n}", f"Query {n // 2}", Item(f"i{n}", f"title {n} " * (1 + n % 4)), LABELS[n % 5], split="train")
    for n in range(30)
]
OTHERS = [
    Pair("v", "other", Item("v", "t"), "Exact", split="validation"),
    Pair("n", "none", Item("n", "t"), None, split="train"),
]


def config_of(folder, **student):
    return Config.model_validate({"student": {**STUDENT, **student}, "cache_dir": str(folder / "cache")})


def write(folder, pairs=PAIRS, seed=0, words="query title"):
    config, rng = config_of(folder), np.random.default_rng(seed)
    judged, free = ([pair for pair in pairs if (pair.label is None) == is_free] for is_free in (False, True))
    write_pairs(folder / artefacts.PAIRS, judged + OTHERS)
    write_pairs(folder / artefacts.UNLABELLED, free)
    count = len(pairs)
    shuffled = [pairs[n].pair_id for n in rng.permutation(count)]
    signals = Signals(
        tuple(shuffled),
        rng.dirichlet(np.ones(4), count).astype(np.float32),
        rng.dirichlet(np.ones(3), (count, 7)).astype(np.float32),
        ((),) * count,
        tuple(f"label: {name}" for name in shuffled),
    )
    write_signals(folder / artefacts.SIGNALS, signals, config.labels.names, config.rationale.dimensions)
    train_tokenizer([words] * 9, 320, encoder=True).save_pretrained(folder / artefacts.STUDENT_TOKENIZER)
    return signals


def columns(folder, monkeypatch, **student):
    """The columns of a cross-encoder, and how often its inputs were tokenized for them."""
    calls, encode = [], targets.padded_inputs

    def counted(*args):
        calls.append(len(args[2]))
        return encode(*args)

    config = config_of(folder, **student)
    model, tokenizer = students.student_model(config, folder, "cross_encoder")
    monkeypatch.setattr(targets, "padded_inputs", counted)
    built = targets.columns(config, "cross_encoder", "score_kd", model, tokenizer, {}, open_data(config, folder))
    monkeypatch.setattr(targets, "padded_inputs", encode)
    return built, len(calls)


def test_every_pair_comes_with_its_own_signals(tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "CHUNK", 7)
    signals = write(tmp_path)
    data = open_data(config_of(tmp_path), tmp_path)
    expected = [pair for pair in PAIRS if pair.label is not None] + [pair for pair in PAIRS if pair.label is None]
    assert list(pairs_of(data)) == expected
    assert (len(data), data.labelled) == (30, 18)
    built, _ = columns(tmp_path, monkeypatch)
    index = {pair_id: row for row, pair_id in enumerate(signals.pair_ids)}
    schema = config_of(tmp_path).labels.schema_
    for row, pair in enumerate(expected):
        np.testing.assert_array_equal(built["label_probs"][row], signals.label_probs[index[pair.pair_id]])
        assert built["labels_mask"][row] == (pair.label is not None)
        assert pair.label is None or built["labels"][row] == schema.index(pair.label)
    known = queries(data)
    same = [[a.query == b.query for a in expected] for b in expected]
    np.testing.assert_array_equal(known["query"][:, None] == known["query"], same)
    np.testing.assert_array_equal(known["labelled"], built["labels_mask"])


def test_pairs_without_signals_are_left_out(tmp_path):
    signals = write(tmp_path)
    config = config_of(tmp_path)
    selected = [row for row, pair_id in enumerate(signals.pair_ids) if pair_id not in ("p0", "p1")]
    fewer = dataclasses.replace(
        signals,
        pair_ids=tuple(signals.pair_ids[row] for row in selected),
        label_probs=signals.label_probs[selected],
        verdict_probs=signals.verdict_probs[selected],
        evidence=((),) * 28,
        rationales=("",) * 28,
        confidence=signals.confidence[selected],
    )
    write_signals(tmp_path / artefacts.SIGNALS, fewer, config.labels.names, config.rationale.dimensions)
    data = open_data(config, tmp_path)
    assert {pair.pair_id for pair in pairs_of(data)} == {pair.pair_id for pair in PAIRS} - {"p0", "p1"}
    signals = data.signals.take(data.row_indices)
    assert signals.pair_ids == tuple(pair.pair_id for pair in pairs_of(data))


def test_texts_are_tokenized_once(tmp_path, monkeypatch):
    write(tmp_path)
    first, built = columns(tmp_path, monkeypatch)
    again, made_again = columns(tmp_path, monkeypatch)
    assert (built, made_again) == (1, 0)
    numbers = np.arange(30)
    for one, two in zip(*(result["inputs"].values() for result in (first, again))):
        np.testing.assert_array_equal(one.padded(numbers), two.padded(numbers))


@pytest.mark.parametrize("change", ["text", "tokenizer", "length", "signals", "label"])
def test_what_changes_is_never_read_from_the_cache(tmp_path, monkeypatch, change):
    write(tmp_path)
    before, _ = columns(tmp_path, monkeypatch)
    student, pairs = {}, PAIRS
    if change == "text":
        pairs = [dataclasses.replace(PAIRS[0], item=Item("i0", "quite another title")), *PAIRS[1:]]
    elif change == "label":
        pairs = [dataclasses.replace(PAIRS[0], label="Complement"), *PAIRS[1:]]
    elif change == "length":
        student = {"item_length": 8}
    write(
        tmp_path,
        pairs,
        seed=1 if change == "signals" else 0,
        words="tit quer" if change == "tokenizer" else "query title",
    )
    after, built = columns(tmp_path, monkeypatch, **student)
    assert built == 1
    numbers = np.arange(30)
    tokens = [result["inputs"]["tokens"].padded(numbers) for result in (before, after)]
    if change in ("text", "tokenizer", "length"):
        assert tokens[0].shape != tokens[1].shape or (tokens[0] != tokens[1]).any()
    if change == "signals":
        assert (before["label_probs"] != after["label_probs"]).any()
    if change == "label":
        assert (np.asarray(before["labels"]) != after["labels"]).sum() == 1

"""What students read is made once, for just this content of pairs, signals and tokenizer."""

import dataclasses

import numpy as np
import pytest

from jax_rele.config import Config
from jax_rele.data import take_signals, write_pairs, write_signals
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.distillation import dataset as training_data
from jax_rele.distillation.dataset import Tables, examples
from jax_rele.errors import UserError
from jax_rele.runs import layout
from jax_rele.stages import distill
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
    options = {"students": ["cross_encoder"], "recipes": ["score_kd"]}
    return Config.model_validate(
        {"student": {**STUDENT, **student}, "distill": options, "cache_dir": str(folder / "cache")}
    )


def write(folder, pairs=PAIRS, seed=0, words="query title"):
    config, rng = config_of(folder), np.random.default_rng(seed)
    judged, free = ([pair for pair in pairs if (pair.label is None) == is_free] for is_free in (False, True))
    write_pairs(folder / layout.PAIRS, judged + OTHERS)
    write_pairs(folder / layout.UNLABELLED, free)
    count = len(pairs)
    ordered = [pair.pair_id for pair in judged + free]
    signals = Signals(
        tuple(ordered),
        rng.dirichlet(np.ones(4), count).astype(np.float32),
        rng.dirichlet(np.ones(3), (count, 7)).astype(np.float32),
        ((),) * count,
        tuple(f"label: {name}" for name in ordered),
    )
    write_signals(folder / layout.SIGNALS, signals, config.labels.names, config.rationale.dimensions)
    train_tokenizer([words] * 9, 320, encoder=True).save_pretrained(folder / layout.STUDENT_TOKENIZER)
    return signals


def columns(folder, monkeypatch, **student):
    """The columns of a cross-encoder, and how often its inputs were tokenized for them."""
    calls, encode = [], training_data.input_rows

    def counted(*args):
        calls.append(len(args[2]))
        return encode(*args)

    monkeypatch.setattr(training_data, "input_rows", counted)
    dataset = distill.prepare(config_of(folder, **student), folder).datasets["cross_encoder"]
    monkeypatch.setattr(training_data, "input_rows", encode)
    return dataset.columns, len(calls)


def tables_of(folder):
    config = config_of(folder)
    return Tables(
        folder / layout.PAIRS,
        folder / layout.UNLABELLED,
        folder / layout.SIGNALS,
        folder / layout.STUDENT_TOKENIZER,
        config.labels.schema_,
        config.rationale.dimensions,
        config.cache,
    )


def test_every_pair_comes_with_its_own_signals(tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "CHUNK", 7)
    signals = write(tmp_path)
    expected = [pair for pair in PAIRS if pair.label is not None] + [pair for pair in PAIRS if pair.label is None]
    parts = list(examples(tables_of(tmp_path)))
    assert [pair for pairs, _ in parts for pair in pairs] == expected
    assert all(part.pair_ids == tuple(pair.pair_id for pair in pairs) for pairs, part in parts)
    assert max(len(pairs) for pairs, _ in parts) == 7
    built, _ = columns(tmp_path, monkeypatch)
    index = {pair_id: row for row, pair_id in enumerate(signals.pair_ids)}
    schema = config_of(tmp_path).labels.schema_
    for row, pair in enumerate(expected):
        np.testing.assert_array_equal(built["label_probs"][row], signals.label_probs[index[pair.pair_id]])
        assert built["labels_mask"][row] == (pair.label is not None)
        assert pair.label is None or built["labels"][row] == schema.index(pair.label)
    same = [[a.query == b.query for a in expected] for b in expected]
    np.testing.assert_array_equal(built["query"][:, None] == built["query"], same)


def test_pairs_without_signals_are_left_out(tmp_path):
    signals = write(tmp_path)
    config = config_of(tmp_path)
    fewer = take_signals(signals, [row for row, name in enumerate(signals.pair_ids) if name not in ("p0", "p1")])
    write_signals(tmp_path / layout.SIGNALS, fewer, config.labels.names, config.rationale.dimensions)
    ((pairs, read),) = examples(tables_of(tmp_path))
    assert {pair.pair_id for pair in pairs} == {pair.pair_id for pair in PAIRS} - {"p0", "p1"}
    assert read.pair_ids == tuple(pair.pair_id for pair in pairs)


def test_signals_in_another_order_are_refused(tmp_path):
    signals, config = write(tmp_path), config_of(tmp_path)
    backwards = take_signals(signals, range(len(signals.pair_ids) - 1, -1, -1))
    write_signals(tmp_path / layout.SIGNALS, backwards, config.labels.names, config.rationale.dimensions)
    with pytest.raises(UserError, match=r"do not follow the order of .*; delete the folder"):
        list(examples(tables_of(tmp_path)))


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

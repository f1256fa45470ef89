"""Writes the folder that both sides of the students' benchmark read, and counts its padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from students_work import Batch, Work, write_batches, write_pairs

from jax_rele.data import SAMPLE, read_pairs
from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.student_inputs import cross_rows, tower_rows
from jax_rele.data.tokens.tokenizers import load_tokenizer, train_tokenizer
from jax_rele.models import Encoder, EncoderConfig, to_hf
from jax_rele.students.prediction import padded_length
from jax_rele.text import clean_text
from jax_rele.types import Pair

NAMES = ("Exact", "Substitute", "Complement", "Irrelevant")


def make(folder: Path, work: Work, weights: str) -> tuple[str, dict[str, str]]:
    """Writes texts and batches.

    Args:
      folder: where to.
      work: the sizes.
      weights: the encoder's folder; "" for a random one, which is written too.

    Returns:
      The encoder's folder, and for each student a description of its tokens and padding.
    """
    labelled = sample_pairs(max(work.pairs, work.train_batch * work.train_steps))
    texts = [(pair.query, pair.item.title) for pair in labelled]
    if not weights:
        weights = random_encoder(Path(folder, "encoder"), [text for pair in texts for text in pair], *work.random)
    tokenizer = load_tokenizer(weights, ("pad", "cls", "sep"))
    write_pairs(folder, texts[: work.pairs])
    rows = {
        "cross_encoder": _cross(tokenizer, labelled, work),
        "two_tower": _towers(tokenizer, labelled, work),
    }
    descriptions = {}
    for name, (sides, longest) in rows.items():
        descriptions[name] = _inference(folder, name, tokenizer, work, sides, longest)
    labels = np.array([NAMES.index(pair.label) for pair in labelled], np.int32)
    _training(folder, tokenizer, work, rows, labels)
    return weights, descriptions


def sample_pairs(count: int) -> list[Pair]:
    """`count` different pairs of a query and a title of the ESCI sample: its own pairs, then each query with the title
    of the next pair, of the one after that and so on. Their texts are as our models read them (`clean_text`), so that
    both sides get the same tokens."""
    pairs, _ = read_pairs(SAMPLE, label_names=NAMES)
    pairs = [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))]
    selected = []
    for number in range(count):
        turn, index = divmod(number, len(pairs))
        pair, other = pairs[index], pairs[(index + turn) % len(pairs)]
        item = replace(other.item, title=clean_text(other.item.title))
        selected.append(Pair(str(number), clean_text(pair.query), item, pair.label))
    return selected


def random_encoder(
    folder: Path, texts: Sequence[str], vocab_size: int, layers: int, width: int, heads: int, mlp_width: int
) -> str:
    """Writes an encoder, and a tokenizer of the texts with at most so many tokens, in the Hugging Face form."""
    tokenizer = train_tokenizer(texts, vocab_size, encoder=True)
    source = folder.with_name("tokenizer")
    tokenizer.save_pretrained(source)
    # A BERT also reads the index of the text that a token is of.
    path = source / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    model = Encoder(EncoderConfig(vocab_size, 512, layers=layers, width=width, heads=heads, mlp_width=mlp_width))
    ids = jnp.zeros((1, 4), jnp.int32)

    def outputs(model, ids):
        return model.pool(model(ids, ids, ids == 0))

    variables = jax.jit(lambda rng: model.init(rng, ids, method=outputs))(jax.random.key(0))
    to_hf(model, variables, folder, source=source)
    return str(folder)


# ---- rows: {field: ragged values}, and the length of padded batches


def _cross(tokenizer, pairs, work):
    ids, types = cross_rows(tokenizer, pairs, ("title",), work.query_length, work.item_length)
    return [{"tokens": ids, "token_types": types}], [work.query_length + work.item_length]


def _towers(tokenizer, pairs, work):
    sides = tower_rows(tokenizer, pairs, ("title",), work.query_length, work.item_length)
    return [{"tokens": ids} for ids in sides], [work.query_length, work.item_length + 1]


def _padded(rows, indices, length: int, pad_id: int) -> Batch:
    batch = {
        name: pad([values[index] for index in indices], length, pad_id if name == "tokens" else 0)
        for name, values in rows.items()
    }
    lengths = np.array([len(rows["tokens"][index]) for index in indices])
    return {**batch, "valid": np.arange(length) < lengths[:, None]}


def _by_length(rows, indices) -> np.ndarray:
    """The indices, longest rows first."""
    return indices[np.argsort([-len(rows["tokens"][index]) for index in indices], kind="stable")]


def _inference(folder, name, tokenizer, work, sides, longest) -> str:
    bucketed, padded, best = [], [], 0
    for side, (rows, length) in enumerate(zip(sides, longest)):
        everything = np.arange(work.pairs)
        order = _by_length(rows, everything)
        for start in range(0, work.pairs, work.batch):
            tops = order[start : start + work.batch]
            top = len(rows["tokens"][tops[0]])
            best += top * len(tops)
            for batches, indices, to in (
                (bucketed, tops, padded_length(top)),
                (padded, everything[start:][: work.batch], length),
            ):
                batches.append(
                    {**_padded(rows, indices, to, tokenizer.pad_token_id), "indices": indices, "side": np.array(side)}
                )
    write_batches(folder, f"{name}.bucketed", bucketed)
    write_batches(folder, f"{name}.padded", padded)
    tokens = sum(int(batch["valid"].sum()) for batch in bucketed)
    padding = [1 - tokens / sum(batch["valid"].size for batch in batches) for batches in (padded, bucketed)]
    return (
        f"{tokens / work.pairs / len(sides):.0f} tokens a row on average; of the computed tokens {padding[0]:.0%} is "
        f"padding where all are padded to {' and '.join(map(str, longest))}, {padding[1]:.0%} in our length buckets, "
        f"{1 - tokens / best:.0%} where each batch is padded to its longest row, as sentence-transformers does"
    )


def _training(folder, tokenizer, work, rows, labels) -> None:
    everything = np.arange(work.train_batch * work.train_steps)
    pad_id = tokenizer.pad_token_id

    lengths = {
        "padded": lambda tokens, full: full,
        "bucketed": lambda tokens, full: padded_length(max(tokens)),
        "longest": lambda tokens, full: max(tokens),
    }

    def step(name, indices, padding):
        """A batch of both sides of a pair, each padded to the full length, to a bucket or to the longest row."""
        sides, longest = rows[name]
        batch = {"labels": labels[indices]}
        for number, (side, full) in enumerate(zip(sides, longest)):
            top = lengths[padding]([len(side["tokens"][index]) for index in indices], full)
            batch |= {f"{key}{number}": x for key, x in _padded(side, indices, top, pad_id).items()}
        return batch

    for name, (sides, _) in rows.items():
        write_batches(folder, f"{name}.step", [step(name, everything[: work.train_batch], "bucketed")])
        by_length = _by_length(sides[-1], everything)
        for padding, order in (("bucketed", by_length), ("padded", everything), ("longest", everything)):
            batches = [step(name, each, padding) for each in np.split(order, work.train_steps)]
            write_batches(folder, f"{name}.steps_{padding}", batches)

"""Distils a teacher's scores into a cross-encoder, without a config file: pairs and scores in, figures out.

python scripts/examples/distill.py [STEPS]

The pairs are the bundled ESCI sample. The teacher's scores are made here from the human labels, so that the example
needs no teacher; put your own in `teacher_probs`.
"""

from __future__ import annotations

import sys

import jax
import numpy as np
import optax
from sklearn.metrics import roc_auc_score

from jax_rele import data, losses, models, students, training
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.types import LabelSchema, Pair

SCHEMA = LabelSchema(("Exact", "Substitute", "Complement", "Irrelevant"), (1.0, 0.1, 0.01, 0.0), ("Exact",))
SPEC = students.InputSpec(("brand", "title"), query_length=16, item_length=48)
ALIASES = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}


def read_sample() -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs of the bundled sample, apart by query."""
    pairs, _ = data.read_pairs(data.SAMPLE, label_names=SCHEMA.names, label_map=ALIASES)
    queries = sorted({pair.query for pair in pairs})
    held_out = set(queries[::4])
    return [p for p in pairs if p.query not in held_out], [p for p in pairs if p.query in held_out]


def teacher_probs(pairs: list[Pair]) -> np.ndarray:
    """[N, C] a teacher's label distributions: here 0.7 for the human label and the rest spread evenly."""
    labels = np.array([SCHEMA.index(pair.label) for pair in pairs])
    return (0.1 + 0.6 * np.eye(len(SCHEMA))[labels]).astype(np.float32)


def main(steps: int = 200) -> dict[str, float]:
    """Trains and returns the ROC-AUC of Exact on training and held-out pairs."""
    train, held_out = read_sample()
    texts = [" ".join([pair.query, *(text for _, text in pair.item.texts(SPEC.fields))]) for pair in train]
    tokenizer = train_tokenizer(texts, 1024, encoder=True)
    encoder = models.EncoderConfig(len(tokenizer), 64, layers=2, width=64, heads=4, mlp_width=128)
    model = students.CrossEncoder(encoder, labels=len(SCHEMA), dimensions=1)
    inputs, probs = students.padded_inputs(model, tokenizer, train, SPEC), teacher_probs(train)

    loss = losses.combine(score=losses.term(losses.score_kl, temperature=2.0))
    tx = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 10, steps))
    params = jax.jit(model.init)(jax.random.key(0), **model.dummy_inputs())
    state = training.create_state(params, {}, tx)
    step = jax.jit(training.make_train_step(model.apply, loss, tx))
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(train), 32)
        batch = {"inputs": {name: array[rows] for name, array in inputs.items()}, "label_probs": probs[rows]}
        state, _ = step(state, batch)

    variables = jax.device_get(state.trainable)
    lengths = SPEC.query_length, SPEC.item_length
    student = students.Student(model, variables, tokenizer, SPEC.fields, *lengths, schema=SCHEMA)
    figures = {}
    for name, pairs in (("train", train), ("held out", held_out)):
        is_exact = [pair.label == "Exact" for pair in pairs]
        figures[name] = float(roc_auc_score(is_exact, student.predict(pairs).scores))
        print(f"{name}: ROC-AUC of Exact {figures[name]:.3f} on {len(pairs)} pairs")
    return figures


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

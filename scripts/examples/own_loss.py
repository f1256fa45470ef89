"""Train a cross-encoder on a teacher's scores with a loss of your own: pairs in, figures out; no config file.

python scripts/examples/own_loss.py [STEPS]
"""

import sys

import jax
import numpy as np
import optax

from jax_rele import losses, models, students, training
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.types import Item, LabelSchema, Pair

COLORS, KINDS = ("red", "blue", "green"), ("shoes", "shirt", "lamp")
SCHEMA = LabelSchema(("Exact", "Irrelevant"), gains=(1.0, 0.0), positive=("Exact",))
SPEC = students.InputSpec(("title",), query_length=8, item_length=8)


def brier(logits, label_probs):
    """[B] squared distance of two label distributions; arguments are named after the fields that they read."""
    return ((jax.nn.softmax(logits) - label_probs) ** 2).sum(axis=-1)


def make_pairs(count: int, seed: int) -> tuple[list[Pair], np.ndarray]:
    """Pairs, and a teacher's label distributions [count, 2]: relevant where color and kind agree."""
    words = np.random.default_rng(seed).integers(0, 3, (count, 2, 2))
    texts = [[f"{COLORS[color]} {KINDS[kind]}" for color, kind in sides] for sides in words]
    pairs = [Pair(f"p{n}", query, Item(f"i{n}", title)) for n, (query, title) in enumerate(texts)]
    score = 0.05 + 0.9 * (words[:, 0] == words[:, 1]).mean(axis=1)
    return pairs, np.stack([score, 1 - score], axis=1).astype(np.float32)


def main(steps: int = 300) -> float:
    """Returns the mean absolute error of the scores of held-out pairs."""
    pairs, probs = make_pairs(512, seed=0)
    tokenizer = train_tokenizer([f"{pair.query} {pair.item.title}" for pair in pairs], 320)
    encoder = models.EncoderConfig(len(tokenizer), 16, layers=2, width=32, heads=2, mlp_width=64)
    model = students.CrossEncoder(encoder, labels=len(SCHEMA), dimensions=1)
    inputs = students.padded_inputs(model, tokenizer, pairs, SPEC)

    loss = losses.combine(score=losses.term(losses.score_kl), brier=losses.term(brier, weight=0.5))
    tx = optax.adamw(3e-3)
    variables = jax.jit(model.init)(jax.random.key(0), **model.dummy_inputs())
    state = training.create_state(variables, {}, tx)
    step = jax.jit(training.make_train_step(model.apply, loss, tx))
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(pairs), 64)
        batch = {"inputs": {name: array[rows] for name, array in inputs.items()}, "label_probs": probs[rows]}
        state, _ = step(state, batch)

    student = students.Student(
        model,
        jax.device_get(state.trainable),
        tokenizer,
        SPEC.fields,
        SPEC.query_length,
        SPEC.item_length,
        schema=SCHEMA,
    )
    held_out, expected = make_pairs(128, seed=1)
    error = float(np.abs(student.predict(held_out).scores - SCHEMA.expected_gain(expected)).mean())
    print(f"mean absolute error of the scores after {steps} steps: {error:.3f}")
    return error


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

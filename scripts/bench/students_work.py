"""The inputs of both sides of the students' benchmark: sizes, weights of the heads, and a folder of texts and batches.

It needs numpy alone, so that neither side loads the other's libraries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STUDENTS = {"cross_encoder": "cross-encoder", "two_tower": "two-tower"}
LABELS = 4
LEARNING_RATE = 2e-5
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """Sizes of a run.

    Attributes:
      dtype: of activations, and of the weights in inference; trained weights are float32.
      pairs, batch: of a timed run of inference, and rows of a forward pass.
      train_batch: pairs of a training step.
      train_steps: steps of the comparison of padded and bucketed batches.
      query_length, item_length: maximum tokens of the texts, the length of padded batches.
      repeats: times that each case is timed.
      random: (vocabulary, layers, width, heads, width of the MLP) of a random BERT; () for weights from a folder.
    """

    dtype: str
    pairs: int
    batch: int
    train_batch: int
    train_steps: int
    query_length: int
    item_length: int
    repeats: int
    random: tuple[int, ...] = ()


WORKS = {
    "tiny": Work("float32", 8, 4, 8, 2, 32, 160, 1, random=(2048, 2, 32, 2, 64)),
    "cpu": Work("float32", 256, 32, 32, 4, 24, 72, 5),
    "gpu": Work("bfloat16", 16384, 256, 128, 16, 24, 72, 7),
    "bert_base": Work("bfloat16", 8192, 256, 128, 16, 24, 72, 5, random=(30522, 12, 768, 12, 3072)),
}


def heads(width: int) -> Batch:
    """Weights of the heads of both sides: a linear map of the cross-encoder's, slope and bias of the cosine."""
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.normal(0, width**-0.5, (width, LABELS)).astype(np.float32),
        "bias": rng.normal(0, 0.1, LABELS).astype(np.float32),
        "slope": np.array([4.0, 1.0, -1.0, -4.0], np.float32),
        "slope_bias": np.array([0.1, 0.0, -0.1, 0.0], np.float32),
    }


def write_pairs(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    Path(folder, "pairs.json").write_text(json.dumps(pairs))


def read_pairs(folder: str) -> list[tuple[str, str]]:
    """The (query, title) of each pair of inference."""
    return [tuple(pair) for pair in json.loads(Path(folder, "pairs.json").read_text())]


def write_batches(folder: Path, name: str, batches: Sequence[Batch]) -> None:
    arrays = {f"{number}/{key}": array for number, batch in enumerate(batches) for key, array in batch.items()}
    np.savez(Path(folder, f"{name}.npz"), **arrays)


def read_batches(folder: str, name: str) -> list[Batch]:
    batches: dict[int, Batch] = {}
    with np.load(Path(folder, f"{name}.npz")) as arrays:
        for key in arrays.files:
            number, field = key.split("/")
            batches.setdefault(int(number), {})[field] = arrays[key]
    return list(batches.values())

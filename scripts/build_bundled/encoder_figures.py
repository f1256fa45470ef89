"""Held-out metrics of the bundled encoder during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import encoder_texts as material
import jax
import numpy as np
from flax import linen as nn

from jax_rele.evaluation.metrics import auc
from jax_rele.types import VERDICTS

TEXT_LENGTHS = (16, 24, 40, material.TEXT_LENGTH)
PAIR_LENGTHS = (24, 40, 64, material.QUERY_LENGTH + material.ITEM_LENGTH)
"""Tokens of texts and of pairs that batches are padded to: the first length that fits all rows of a batch."""

BATCH = 64
"""Rows that are measured at a time."""


def make_measure(
    learner: nn.Module, arrays: Mapping[str, np.ndarray]
) -> Callable[[Mapping[str, Any]], dict[str, np.ndarray]]:
    """A function from parameters to the learner's outputs for the held-out texts, see `figures`."""
    embed = jax.jit(partial(learner.apply, method="embed"))
    judge = jax.jit(partial(learner.apply, method="judge"))

    def run(compute, params, tokens, types, lengths, longest):
        """The outputs for all rows, in batches of rows of similar length."""
        order, batches = np.argsort(lengths, kind="stable"), []
        for start in range(0, len(order), BATCH):
            chosen = np.resize(order[start : start + BATCH], BATCH)
            length = next(size for size in longest if size >= lengths[chosen].max())
            valid = np.arange(length) < lengths[chosen, None]
            out = compute({"params": params}, tokens[chosen, :length], types[chosen, :length], valid)
            batches.append(jax.tree.map(partial(_widened, length=length, full=longest[-1]), out))
        back = np.argsort(order)
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(order)][back], *batches)

    def measure(params):
        outputs = {}
        for name in ("crossed", "judged"):
            sides = []
            for side in ("query", "item"):
                tokens, lengths, sort = (arrays[f"{name}_{side}_{key}"] for key in ("tokens", "lengths", "sides"))
                types = np.where(tokens != 0, sort[:, None], 0).astype(np.int32)
                sides.append(run(embed, params, tokens, types, lengths, TEXT_LENGTHS))
            outputs[f"{name}_cosines"] = (sides[0] * sides[1]).sum(axis=-1)
            tokens, types, lengths = (arrays[f"{name}_{key}"] for key in ("tokens", "types", "lengths"))
            out = run(judge, params, tokens, types.astype(np.int32), lengths, PAIR_LENGTHS)
            outputs |= material.prefixed(name, {"read": out["cosine"], "verdicts": out["verdict_logits"].argmax(-1)})
            outputs |= material.prefixed(name, {"occurs": out["occurs_logits"].argmax(-1)})
        return outputs

    return measure


def _widened(array: jax.Array, length: int, full: int) -> np.ndarray:
    """Outputs by token, padded to the full length."""
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[1] == length:
        return np.pad(array, ((0, 0), (0, full - length), (0, 0)))
    return array


def figures(
    outputs: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], resamples: int = 0
) -> dict[str, np.ndarray]:
    """Held-out metrics, each [1 + resamples]: of all pairs, then of resampled queries.

    `auc` is the area under the ROC curve of Exact by the cosine of query and item (406 judged pairs in the whole data),
    `auc_minilm` by MiniLM's, `auc_overlap` by the fraction of the query's words in the item, `auc_read` by the cosine
    that the pair head predicts. On crossed pairs: the correlation of both cosines with MiniLM's; the accuracy of
    verdicts on dimensions that the query asks for, and of whether a query's word occurs in the item.
    """
    exact, queries = arrays["judged_exact"], arrays["judged_queries"]
    drawn = np.ones((1 + resamples, queries.max() + 1))
    rng = np.random.default_rng(0)
    drawn[1:] = rng.multinomial(drawn.shape[1], np.full(drawn.shape[1], 1 / drawn.shape[1]), size=resamples)
    counts = drawn[:, queries]
    results = {
        "auc": auc(outputs["judged_cosines"], exact, counts),
        "auc_minilm": auc(arrays["judged_cosines"], exact, counts),
        "auc_overlap": auc(arrays["judged_overlap"], exact, counts),
        "auc_read": auc(outputs["judged_read"], exact, counts),
    }
    rows = len(arrays["crossed_cosines"])
    counts = np.ones((1 + resamples, rows))
    counts[1:] = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    expected, asked = arrays["crossed_verdicts"], arrays["crossed_asked"]
    right = (outputs["crossed_verdicts"] == expected) & asked
    often = np.bincount(expected[asked], minlength=len(VERDICTS)).argmax()
    of_query = arrays["crossed_owners"] == material.QUERY_WORD
    occurs = arrays["crossed_occurs"] > 0

    def fraction(hits, among):
        return (counts @ (hits & among).sum(axis=1)) / np.maximum(counts @ among.sum(axis=1), 1.0)

    return results | {
        "correlation": _correlation(outputs["crossed_cosines"], arrays["crossed_cosines"], counts),
        "correlation_read": _correlation(outputs["crossed_read"], arrays["crossed_cosines"], counts),
        "verdict": fraction(right, asked),
        "verdict_majority": fraction(expected == often, asked),
        "occurs": fraction((outputs["crossed_occurs"] > 0) == occurs, of_query),
        "occurs_majority": np.maximum(fraction(occurs, of_query), fraction(~occurs, of_query)),
    }


def _correlation(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> np.ndarray:
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean_a, mean_b = weights @ a, weights @ b
    both = weights @ (a * b) - mean_a * mean_b
    return both / np.sqrt((weights @ a**2 - mean_a**2) * (weights @ b**2 - mean_b**2))

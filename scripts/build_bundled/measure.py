"""Metrics of the bundled decoder before any fine-tuning, on held-out queries and products.

    python scripts/build_bundled/measure.py FOLDER [--base bundled:decoder]

Prints, each with a 95% interval from resamples of the pairs and beside the most frequent answer: accuracy of the word
task; accuracy of the verdicts in rationales that the base writes, against the rule annotator's, on all dimensions and
on those that the query asks for; and ROC-AUC of Exact on judged pairs, by the label before and after the rationale,
beside the fraction of the query's words that the item has.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from corpus import DEMO, load
from examples import FIELDS, Writer, fit_rules, occurs
from sklearn.metrics import roc_auc_score

from jax_rele import config
from jax_rele.data import candidates
from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.errors import UserError
from jax_rele.models import from_hf
from jax_rele.models.files import resolve
from jax_rele.rationale import ParseFailure
from jax_rele.teacher import Teacher, judge

CROSSED = 400
RESAMPLES = 1000


def interval(figure: Callable[[np.ndarray], float], count: int) -> str:
    """A metric of `count` samples and its 95% interval over resamples; `figure` takes the samples' indices."""
    rng = np.random.default_rng(0)
    drawn = [figure(rng.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return f"{figure(np.arange(count)):.3f} [{low:.3f}, {high:.3f}]"


def accuracy(rows: Sequence[Sequence[bool]]) -> str:
    """The fraction of true entries, resampled by row: one row for each pair."""
    right = np.array([sum(row) for row in rows], float)
    size = np.array([len(row) for row in rows], float)
    return interval(lambda n: right[n].sum() / size[n].sum(), len(rows))


def majority(truths: Sequence) -> float:
    return Counter(truths).most_common(1)[0][1] / len(truths)


def measure(folder: Path, base: str) -> None:
    demo, corpus = config.load(DEMO), load(folder)
    rules = fit_rules(corpus, demo.labels.names, demo.rationale.dimensions, demo.rationale.tag_map, 0)
    model, variables = from_hf(base, dtype=jnp.float32)
    tokenizer = load_tokenizer(resolve(base, ("tokenizer*",)), ("eos",))
    items = [pair.item for pair in corpus.held_out]
    crossed = candidates([*corpus.held_out_queries, *corpus.held_out], items, 1, 0, bm25=0.5)
    random.Random(0).shuffle(crossed)
    crossed = crossed[:CROSSED]

    def teacher(order: str) -> Teacher:
        lengths = demo.teacher.prompt_length, demo.teacher.value_length
        schema, dimensions = demo.labels.schema_, demo.rationale.dimensions
        return Teacher(model, variables, tokenizer, schema, dimensions, FIELDS, order, *lengths, batch_size=32)

    # ---- words
    writer = Writer(tokenizer, demo.teacher.prompt_length, demo.teacher.value_length)
    prompts, answers = writer.words(crossed)
    there, absent = (writer.ids(f" {word}", "verdict")[0] for word in ("match", "absent"))
    rows = [[*prompt, *answer.ids] for prompt, answer in zip(prompts, answers)]
    hits, truths = [], []
    for start in range(0, len(rows), 50):
        outputs = model.apply(variables, pad(rows[start : start + 50], max(map(len, rows)), tokenizer.pad_token_id))
        picked = outputs.output_embedding[jnp.array([there, absent])]
        logits = np.asarray(jnp.einsum("ble,ce->blc", outputs.hidden, picked))
        for row, (prompt, answer) in enumerate(zip(prompts[start : start + 50], answers[start : start + 50])):
            positions = [
                n for n, kind in enumerate(answer.kinds) if kind == "verdict" and answer.ids[n] in (there, absent)
            ]
            truth = [answer.ids[n] == there for n in positions]
            predicted = [logits[row, len(prompt) + n - 1].argmax() == 0 for n in positions]
            truths += truth
            hits.append([a == b for a, b in zip(truth, predicted)])
    print(f"words: {accuracy(hits)}, commonest answer {majority(truths):.3f}, {len(truths)} words")

    # ---- rationales as the base writes them
    for name, pairs in (("made-up pairs", crossed), ("judged pairs", corpus.held_out)):
        judged = judge(teacher("rationale_first"), pairs)
        expected = rules.annotator.annotate(pairs)
        parsed = [n for n, rationale in enumerate(judged.rationales) if not isinstance(rationale, ParseFailure)]
        print(f"{name}: {len(parsed)} of {len(pairs)} rationales parse")
        for part in ("all dimensions", "dimensions that the query asks for"):
            agreed, truths = [], []
            for n in parsed:
                asked = [c for c in expected[n].comparisons if c.query_values or part == "all dimensions"]
                agreed.append([judged.rationales[n].verdict(c.dimension) == c.verdict for c in asked])
                truths += [c.verdict for c in asked]
            print(f"{name}: verdicts on {part}: {accuracy(agreed)}, commonest verdict {majority(truths):.3f}")
        if name == "judged pairs":
            probs = {"rationale_first": judged.label_probs[:, 0]}

    # ---- labels
    probs["label_first"] = judge(teacher("label_first"), corpus.held_out, write=False).label_probs[:, 0]
    probs["rules"] = rules.probs(corpus.held_out, expected)[:, 0]
    exact = np.array([pair.label == demo.labels.names[0] for pair in corpus.held_out])
    overlap = np.array([np.mean(occurs(pair) or [False]) for pair in corpus.held_out])
    print(f"auc: word overlap {interval(lambda n: roc_auc_score(exact[n], overlap[n]), len(exact))}")
    for name, scores in probs.items():
        alone = interval(lambda n, x=scores: roc_auc_score(exact[n], x[n]), len(exact))
        less = interval(
            lambda n, x=scores: roc_auc_score(exact[n], x[n]) - roc_auc_score(exact[n], overlap[n]), len(exact)
        )
        print(f"auc: {name} {alone}, less word overlap {less}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="bundled:decoder", help="a folder, or bundled:decoder")
    arguments = parser.parse_args()
    try:
        measure(arguments.folder, arguments.base)
    except UserError as error:
        sys.exit(f"error: {error}")

"""How well an annotator reads queries, against human tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from jax_rele.rationale.annotators import Annotator
from jax_rele.rationale.words import content, key, words
from jax_rele.types import Pair


def query_quality(annotator: Annotator, pairs: Iterable[Pair], tag_map: Mapping[str, str]) -> dict:
    """Micro precision, recall and F1 of the query attributes that an annotator finds without seeing the tags.

    Tagged pairs are annotated as copies without tags; each (query, tags) counts once. Pass pairs whose tags the
    annotator was not fitted on. Two rules of agreement, both on normal forms (see `jax_rele.rationale.words`):

      values: a value counts when a tag of the same dimension has the same key.
      words: a word counts when a tag of the same dimension holds it, so that a value cut too long or short counts in
        part; leading articles and `for` are left out.

    Args:
      annotator: what is measured.
      pairs: held-out pairs; those without tags are ignored.
      tag_map: the dimension of each type of human tag.

    Returns:
      {"n_queries": int, "values": S, "words": S} with S = {"overall": C, DIMENSION: C, ...} and C = {"precision",
      "recall", "f1", "correct", "predicted", "gold"}; a ratio without a denominator is 0.
    """
    tagged = list({(pair.query, pair.tags): pair for pair in pairs if pair.tags is not None}.values())
    rationales = annotator.annotate([replace(pair, tags=None) for pair in tagged])
    dimensions = list(dict.fromkeys(tag_map.values()))
    result: dict = {"n_queries": len(tagged)}
    for rule, units in (("values", _keys), ("words", _words)):
        counts = {dimension: Counter() for dimension in dimensions}
        for pair, rationale in zip(tagged, rationales, strict=True):
            query_values = {comparison.dimension: comparison.query_values for comparison in rationale.comparisons}
            for dimension in dimensions:
                gold = units([tag.text for tag in pair.tags if tag_map.get(tag.type) == dimension])
                predicted = units(query_values.get(dimension, ()))
                counts[dimension]["correct"] += (gold & predicted).total()
                counts[dimension]["predicted"] += predicted.total()
                counts[dimension]["gold"] += gold.total()
        overall = sum(counts.values(), Counter())
        result[rule] = {name: _ratios(count) for name, count in {"overall": overall, **counts}.items()}
    return result


def _keys(values: Sequence[str]) -> Counter:
    return Counter(set(map(key, values)) - {""})


def _words(values: Sequence[str]) -> Counter:
    return Counter(word.norm for value in values for word in content(words(value)))


def _ratios(count: Counter) -> dict:
    correct, predicted, gold = count["correct"], count["predicted"], count["gold"]
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (predicted + gold) if predicted + gold else 0.0,
        "correct": correct,
        "predicted": predicted,
        "gold": gold,
    }

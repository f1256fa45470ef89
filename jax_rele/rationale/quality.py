"""Quality of an annotator's query attributes, measured against human tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from jax_rele.rationale.annotators import Annotator
from jax_rele.rationale.words import content, key, words
from jax_rele.types import Pair


def query_quality(annotator: Annotator, pairs: Iterable[Pair], tag_map: Mapping[str, str]) -> dict:
    """Micro precision, recall and F1 of the query attributes that an annotator finds without seeing the tags.

    Tagged pairs are annotated as copies without tags; each (query, tags) counts once. Two rules of agreement, both on
    normal forms (see `jax_rele.rationale.words`):

      values: a value counts when a tag of the same dimension has the same key.
      words: a word counts when a tag of the same dimension holds it, so that a value that is too long or too short
        counts in part; leading articles and `for` are left out.

    Args:
      annotator: what is measured.
      pairs: pairs that the annotator was not fitted on; those without tags are ignored.
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
        counts: dict[str, Counter[str]] = {dimension: Counter() for dimension in dimensions}
        for pair, rationale in zip(tagged, rationales, strict=True):
            query_values = {comparison.dimension: comparison.query_values for comparison in rationale.comparisons}
            for dimension in dimensions:
                gold = units([tag.text for tag in pair.tags or () if tag_map.get(tag.type) == dimension])
                predicted = units(query_values.get(dimension, ()))
                correct = (gold & predicted).total()
                counts[dimension].update(correct=correct, predicted=predicted.total(), gold=gold.total())
        overall = sum(counts.values(), Counter())
        result[rule] = {name: _ratios(count) for name, count in {"overall": overall, **counts}.items()}
    return result


def _keys(values: Sequence[str]) -> Counter[str]:
    return Counter(set(map(key, values)) - {""})


def _words(values: Sequence[str]) -> Counter[str]:
    return Counter(word.norm for value in values for word in content(words(value)))


def _ratios(count: Counter[str]) -> dict[str, float]:
    correct, predicted, gold = (count[name] for name in ("correct", "predicted", "gold"))
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (predicted + gold) if predicted + gold else 0.0,
        **{"correct": correct, "predicted": predicted, "gold": gold},
    }

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from jax_rele.rationale.annotators import RuleAnnotator
from jax_rele.rationale.quality import query_quality
from jax_rele.types import Comparison, Item, Pair, Rationale, Tag

TAG_MAP = {"product": "category", "maker": "brand", "name": "brand"}


@dataclass
class Scripted:
    """Answers by query, and remembers what it was shown."""

    answers: dict
    seen: list = field(default_factory=list)

    def annotate(self, pairs):
        self.seen += pairs
        return [
            Rationale(tuple(Comparison(name, tuple(values)) for name, values in self.answers[pair.query].items()))
            for pair in pairs
        ]


class WholeQuery:
    """The trivial baseline: the query is a category."""

    def annotate(self, pairs):
        return [Rationale((Comparison("category", (pair.query,)),)) for pair in pairs]


def tagged(query, *tags):
    return Pair(query, query, Item("1", "t"), tags=None if None in tags else tuple(Tag(*tag) for tag in tags))


PAIRS = [
    tagged("q1", ("rain boots", "product"), ("acme", "maker"), ("for women", "wear")),
    tagged("q2", ("the lamps", "product"), ("zoomer", "name"), ("acme", "maker")),
    tagged("q3"),
    tagged("q4", None),
    tagged("q1", ("rain boots", "product"), ("acme", "maker"), ("for women", "wear")),
]
ANSWERS = {
    "q1": {"category": ["boots"], "brand": ["Acme", "women"], "audience": ["women"]},
    "q2": {"category": ["lamp"], "brand": ["acme"]},
    "q3": {"category": ["thing"]},
}


def test_counts_and_ratios():
    result = query_quality(Scripted(ANSWERS), PAIRS, TAG_MAP)
    assert result["n_queries"] == 3
    assert list(result["values"]) == list(result["words"]) == ["overall", "category", "brand"]

    def counts(rule, name):
        return tuple(result[rule][name][part] for part in ("correct", "predicted", "gold"))

    assert counts("values", "category") == (1, 3, 2)
    assert counts("values", "brand") == (2, 3, 3)
    assert counts("values", "overall") == (3, 6, 5)
    assert counts("words", "category") == (2, 3, 3)
    assert counts("words", "overall") == (4, 6, 6)


def test_ratios_agree_with_scikit_learn():
    result = query_quality(Scripted(ANSWERS), PAIRS, TAG_MAP)["values"]["overall"]
    # Rows are queries, columns the (dimension, value)s that exist.
    columns = ["c rain boot", "c boot", "c lamp", "c thing", "b acme", "b woman", "b zoomer"]
    gold = [{"c rain boot", "b acme"}, {"c lamp", "b zoomer", "b acme"}, set()]
    predicted = [{"c boot", "b acme", "b woman"}, {"c lamp", "b acme"}, {"c thing"}]
    as_array = [np.array([[column in row for column in columns] for row in rows]) for rows in (gold, predicted)]
    expected = precision_recall_fscore_support(*as_array, average="micro")[:3]
    np.testing.assert_allclose([result["precision"], result["recall"], result["f1"]], expected)


def test_no_denominator_is_zero():
    result = query_quality(Scripted({"q3": {}}), [PAIRS[2]], TAG_MAP)
    assert result["values"]["overall"] == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "correct": 0, "predicted": 0, "gold": 0,
    }  # fmt: skip
    assert query_quality(Scripted({}), [PAIRS[3]], TAG_MAP)["n_queries"] == 0


def test_the_annotator_does_not_see_the_tags():
    scripted = Scripted(ANSWERS)
    query_quality(scripted, PAIRS, TAG_MAP)
    assert [pair.query for pair in scripted.seen] == ["q1", "q2", "q3"]
    assert all(pair.tags is None for pair in scripted.seen)


@pytest.fixture(scope="module")
def split(sample):
    def held_out(pair):
        return int(hashlib.sha1(pair.query.encode()).hexdigest(), 16) % 100 >= 70

    return [p for p in sample if not held_out(p)], [p for p in sample if held_out(p)]


def test_rules_read_held_out_queries_well(split, dimensions, tag_map):
    train, held_out = split
    rules = query_quality(RuleAnnotator.fit(train, dimensions, tag_map), held_out, tag_map)
    trivial = query_quality(WholeQuery(), held_out, tag_map)
    assert rules["n_queries"] == trivial["n_queries"] > 40
    assert rules["values"]["overall"]["f1"] > 0.6
    assert rules["words"]["overall"]["f1"] > 0.7
    for rule in ("values", "words"):
        assert rules[rule]["overall"]["f1"] > trivial[rule]["overall"]["f1"] + 0.2
        assert rules[rule]["category"]["f1"] > trivial[rule]["category"]["f1"]


def test_training_tags_help(split, dimensions, tag_map):
    train, held_out = split
    learned = query_quality(RuleAnnotator.fit(train, dimensions, tag_map), held_out, tag_map)
    built_in = query_quality(RuleAnnotator.fit([], dimensions, tag_map), held_out, tag_map)
    assert learned["values"]["overall"]["f1"] > built_in["values"]["overall"]["f1"]

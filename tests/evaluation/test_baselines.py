"""The trivial rankers against bm25s, hand counts, and what they must not depend on."""

from dataclasses import replace

import bm25s
import numpy as np
import pytest

from jax_rele.errors import UserError
from jax_rele.evaluation import BASELINES, bm25, embedding_cosine, gradient_boosting, majority, token_overlap
from jax_rele.evaluation.baselines import FIELDS, bm25_scores
from jax_rele.text import lexical_words
from jax_rele.types import Item, Pair

LEXICAL = [token_overlap, bm25]


def pair(query, title, label=None, **fields):
    return Pair(f"{query} {title}", query, Item(title, title, **fields), label)


@pytest.mark.parametrize("name", BASELINES)
def test_rows_are_distributions_that_ignore_labels_and_neighbours(name, splits, schema):
    train, validation, test = splits
    probs = BASELINES[name](train, validation, test, schema)
    assert probs.shape == (len(test), 4)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    unlabelled = [replace(pair, label=None) for pair in test]
    np.testing.assert_array_equal(BASELINES[name](train, validation, unlabelled, schema), probs)
    np.testing.assert_allclose(BASELINES[name](train, validation, test[10:13], schema), probs[10:13], atol=1e-12)
    assert BASELINES[name](train, validation, [], schema).shape == (0, 4)


def test_majority_is_the_train_distribution(splits, schema):
    train, validation, test = splits
    probs = majority(train, validation, test, schema)
    fractions = [sum(pair.label == name for pair in train) / len(train) for name in schema.names]
    np.testing.assert_allclose(probs, np.tile(fractions, (len(test), 1)))


@pytest.mark.parametrize("baseline", LEXICAL)
def test_more_of_the_query_in_the_item_is_more_relevant(baseline, splits, schema):
    train, validation, _ = splits
    asked = [pair("red cotton shirt", title) for title in ("green mug", "red mug", "red shirt", "red cotton shirt")]
    exact = baseline(train, validation, asked, schema)[:, 0]
    assert (np.diff(exact) > 0.0).all()


@pytest.mark.parametrize("baseline", [*LEXICAL, gradient_boosting])
def test_it_beats_chance_on_real_pairs(baseline, splits, schema):
    train, validation, test = splits
    exact = baseline(train, validation, test, schema)[:, 0]
    relevant = np.array([pair.label == "Exact" for pair in test])
    wins = (exact[relevant][:, None] > exact[~relevant]).mean()
    assert wins > 0.55


def test_overlap_is_the_share_of_the_querys_distinct_words(schema):
    train = [pair("a b", "a b", "Exact"), pair("a b", "c", "Irrelevant")] * 20
    same = [
        pair("blue blue SHOE size", "Blue shoe"),
        pair("blue shoe size", "x", color="BLUE", brand="shoe"),
        pair("blue shoe size", "shoe, blue.", bullets="size"),
        pair("ｂｌｕｅ shoe size", "blue shoe"),
        pair("靴青大", "青い靴"),
    ]
    probs = token_overlap(train, [], same, schema)
    np.testing.assert_allclose(probs, np.tile(probs[0], (5, 1)))
    apart = token_overlap(train, [], [pair("blue shoe size", "blueshoe"), pair("!!", "a")], schema)
    np.testing.assert_allclose(apart[0], apart[1])
    assert apart[0, 0] < probs[0, 0]


def test_bm25_scores_are_those_of_bm25s_for_items_of_the_catalogue(splits):
    train = splits[0]
    catalogue = list({pair.item.id: pair.item for pair in train}.values())
    words = [_plain(item) for item in catalogue]
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(words, show_progress=False)
    vocabulary = set().union(*words)
    for pair in train[:40]:
        query = _plain(Item("q", pair.query))
        known = [word for word in query if word in vocabulary]
        expected = index.get_scores(known) if known else np.zeros(len(catalogue))
        ours, _ = bm25_scores([" ".join(query)] * len(catalogue), catalogue, catalogue)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def _plain(item):

    return lexical_words(" ".join(text for _, text in item.texts(FIELDS)))


def test_bm25_weighs_rare_words_more_and_never_passes_its_ceiling(schema):
    catalogue = [Item(str(index), f"shirt {index}") for index in range(50)]
    items = [Item("a", "shirt"), Item("b", "zebra"), Item("c", "zebra " * 1000)]
    scores, ceilings = bm25_scores(["zebra shirt"] * 3, items, catalogue)
    assert scores[0] < scores[1] < scores[2] < ceilings[0]
    empty, none = bm25_scores(["?"], [Item("a", "shirt")], catalogue)
    assert empty[0] == none[0] == 0.0


@pytest.mark.parametrize("baseline", [*LEXICAL, gradient_boosting])
def test_labels_that_training_lacks_get_nothing(baseline, schema):
    train = [pair("a b", "a b", "Exact"), pair("a b", "c", "Irrelevant"), pair("a b", "z")] * 5
    probs = baseline(train, [], [pair("a b", "a")], schema)
    assert (probs[0, 1:3] == 0.0).all()
    one = [pair("a b", "a b", "Complement")] * 3
    np.testing.assert_array_equal(baseline(one, [], [pair("a b", "a")], schema), [[0.0, 0.0, 1.0, 0.0]])


def test_pairs_of_a_higher_cosine_are_more_relevant(schema):
    def embed(queries, items):
        angles = np.array([float(item.title) for item in items])
        return np.tile([1.0, 0.0], (len(queries), 1)), np.stack([np.cos(angles), np.sin(angles)], axis=1)

    labelled = [pair("a", f"{0.1 * n}", "Exact" if n < 5 else "Irrelevant") for n in range(10)]
    asked = [pair("a", title) for title in ("0.0", "0.4", "0.8", "1.5", "3.0")]
    probs = embedding_cosine(labelled, labelled, asked, schema, embed=embed)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    assert (np.diff(probs[:, 0]) < 0.0).all()


@pytest.mark.parametrize("name", BASELINES)
def test_without_labelled_train_pairs_the_user_is_told(name, schema):
    with pytest.raises(UserError, match="train split holds no labelled pair"):
        BASELINES[name]([pair("a", "b")], [], [pair("a", "b")], schema)

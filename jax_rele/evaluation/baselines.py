"""Trivial rankers, to print beside every model.

Each maps (train pairs, validation pairs, pairs, schema) to [N, C] label distributions of `pairs`. Labels of `pairs`
are never read. Train pairs without a label are left out; validation labels only choose a regularisation strength.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from jax_rele.errors import UserError
from jax_rele.evaluation.calibration import log_probs
from jax_rele.text import lexical_words
from jax_rele.types import Item, LabelSchema, Pair

Pairs: TypeAlias = Sequence[Pair]

FIELDS = ("title", "brand", "color")
"""The fields of an item that the lexical baselines read by default."""

_STRENGTHS = (1.0, 0.1, 10.0, 100.0)
"""Inverse regularisation strengths of the logistic regression that validation chooses from; without it, the first."""

_TREES = (100, 30, 300)
"""Numbers of boosted trees that validation chooses from; without it, the first."""

_SMALL = 20_000
"""Below so many train pairs trees are fitted in one thread: several would wait for each other longer than they work,
and on busy cores a hundred times as long."""

_K1, _B = 1.5, 0.75
"""BM25's saturation of term frequency and its length normalisation, at the usual values."""


def majority(
    train: Pairs, validation: Pairs, pairs: Pairs, schema: LabelSchema, fields: Sequence[str] = FIELDS
) -> np.ndarray:
    """The label distribution of the train pairs, for every pair. [N, C]."""
    labels = _labels(_labelled(train), schema)
    return np.tile(np.bincount(labels, minlength=len(schema)) / len(labels), (len(pairs), 1))


def token_overlap(
    train: Pairs, validation: Pairs, pairs: Pairs, schema: LabelSchema, fields: Sequence[str] = FIELDS
) -> np.ndarray:
    """The share of the query's distinct words that occur in the item, as a label distribution. [N, C].

    Words are those of `jax_rele.text.lexical_words`. A multinomial logistic regression on the train pairs turns the
    share into a distribution.
    """

    return _distributions(lambda group: overlaps(group, fields), train, validation, pairs, schema)


def overlaps(pairs: Pairs, fields: Sequence[str] = FIELDS) -> np.ndarray:
    """[N] the share of each query's distinct words that occur in the item."""
    asked = [set(lexical_words(pair.query)) for pair in pairs]
    shared = [len(words & set(lexical_words(_text(pair.item, fields)))) for words, pair in zip(asked, pairs)]
    return np.array([count / max(1, len(words)) for count, words in zip(shared, asked)])


def bm25(
    train: Pairs, validation: Pairs, pairs: Pairs, schema: LabelSchema, fields: Sequence[str] = FIELDS
) -> np.ndarray:
    """BM25 of query and item, as a share of the most that an item could score, as a label distribution. [N, C].

    Document frequencies and the mean length are those of the train pairs' distinct items, so that a pair's score does
    not depend on the pairs beside it. A word counts idf x tf / (tf + k1 (1 - b + b length / mean length)), with
    idf = log(1 + (n - df + 0.5) / (df + 0.5)); k1 = 1.5, b = 0.75. The sum over the query's words, divided by the sum
    of their idf, lies in [0, 1). A multinomial logistic regression on the train pairs turns it into a distribution.

    Reference: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009; the idf is
    Lucene's, which is never negative.
    """
    catalogue = list({pair.item.id: pair.item for pair in train}.values())

    def feature(group):
        scores, ceilings = bm25_scores([pair.query for pair in group], [pair.item for pair in group], catalogue, fields)
        return scores / np.where(ceilings > 0, ceilings, 1.0)

    return _distributions(feature, train, validation, pairs, schema)


def gradient_boosting(
    train: Pairs, validation: Pairs, pairs: Pairs, schema: LabelSchema, fields: Sequence[str] = FIELDS
) -> np.ndarray:
    """Gradient-boosted trees on lexical features of a pair. [N, C].

    The features: the fractions of the query's distinct words, of its numbers and of its character trigrams that occur
    in the item, of the item's words that occur in the query, whether the query's first and last word and the query as
    a whole occur, BM25 as in `bm25`, and the words of both. The number of trees is chosen on validation.
    """
    catalogue = list({pair.item.id: pair.item for pair in train}.values())

    def features(group: Pairs) -> np.ndarray:
        scores, ceilings = bm25_scores([pair.query for pair in group], [pair.item for pair in group], catalogue, fields)
        relative = scores / np.where(ceilings > 0, ceilings, 1.0)
        return np.array(
            [[*_lexical_features(pair.query, _text(pair.item, fields)), score] for pair, score in zip(group, relative)]
        )

    train, validation = _labelled(train), [pair for pair in validation if pair.label is not None]
    labels = _labels(train, schema)
    if len(set(labels)) == 1:
        return majority(train, validation, pairs, schema)
    if not pairs:
        return np.zeros((0, len(schema)))
    read = features(train)

    def fit(trees: int) -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(
            max_iter=trees, learning_rate=0.05, max_depth=3, early_stopping=False, random_state=0
        ).fit(read, labels)

    with threadpool_limits(1 if len(train) < _SMALL else None, user_api="openmp"):
        models = [fit(trees) for trees in (_TREES if validation else _TREES[:1])]
        if validation:
            models = [_best(models, features(validation), _labels(validation, schema), schema)]
        return _spread(models[0], features(pairs), schema)


def embedding_cosine(
    train: Pairs,
    validation: Pairs,
    pairs: Pairs,
    schema: LabelSchema,
    *,
    embed: Callable[[Sequence[str], Sequence[Item]], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """The cosine of an encoder's embeddings of query and item, as a label distribution. [N, C].

    Args:
      train, validation, pairs, schema: as for the other baselines.
      embed: N queries and N items -> [N, E] and [N, E] vectors of unit length.
    """

    def feature(group: Pairs) -> np.ndarray:
        queries, items = embed([pair.query for pair in group], [pair.item for pair in group])
        return (queries * items).sum(axis=1)

    return _distributions(feature, train, validation, pairs, schema)


BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "majority": majority,
    "token_overlap": token_overlap,
    "bm25": bm25,
    "gradient_boosting": gradient_boosting,
}


def bm25_scores(
    queries: Sequence[str], items: Sequence[Item], catalogue: Sequence[Item], fields: Sequence[str] = FIELDS
) -> tuple[np.ndarray, np.ndarray]:
    """BM25 of N queries, each against one of N items, with document frequencies and mean length of a catalogue.

    Returns:
      [N] scores, and [N] sums of the query words' idf, which the scores approach as the item repeats the words.
    """
    vectorizer = CountVectorizer(analyzer=lambda words: words)
    query_words = [lexical_words(query) for query in queries]
    item_words = [lexical_words(_text(item, fields)) for item in items]
    catalogue_words = [lexical_words(_text(item, fields)) for item in catalogue]
    if not any(query_words):
        return np.zeros(len(queries)), np.zeros(len(queries))
    vectorizer.fit(query_words)
    asked = vectorizer.transform(query_words).astype(float).tocsr()
    counts = vectorizer.transform(item_words).astype(float).tocoo()

    frequency = np.asarray((vectorizer.transform(catalogue_words) > 0).sum(axis=0)).ravel() if catalogue else 0.0
    idf = np.log1p((len(catalogue) - frequency + 0.5) / (frequency + 0.5)) * np.ones(asked.shape[1])
    mean_length = max(1.0, np.mean([len(words) for words in catalogue_words or [[]]]))
    lengths = np.array([len(words) for words in item_words]) / mean_length
    counts.data = idf[counts.col] * counts.data / (counts.data + _K1 * (1.0 - _B + _B * lengths[counts.row]))
    return np.asarray(asked.multiply(counts.tocsr()).sum(axis=1)).ravel(), asked @ idf


def _distributions(feature, train, validation, pairs, schema):
    """One number per pair -> label distributions, by logistic regression on the train pairs' labels."""
    train, validation = _labelled(train), [pair for pair in validation if pair.label is not None]
    labels = _labels(train, schema)
    if len(set(labels)) == 1:
        return majority(train, validation, pairs, schema)
    features = feature(train)[:, None]
    models = [LogisticRegression(C=strength, max_iter=1000).fit(features, labels) for strength in _STRENGTHS]
    if validation:
        models = [_best(models, feature(validation)[:, None], _labels(validation, schema), schema)]
    return _spread(models[0], feature(pairs)[:, None], schema) if pairs else np.zeros((0, len(schema)))


def _best(models, features, labels, schema):
    """The model under which the labels are the most likely."""
    rows = np.arange(len(labels))
    fits = [log_probs(_spread(model, features, schema))[rows, labels].sum() for model in models]
    return models[int(np.argmax(fits))]


def _lexical_features(query: str, text: str) -> list[float]:
    asked, offered = lexical_words(query), lexical_words(text)
    words, item_words = set(asked), set(offered)
    numbers = {word for word in words if any(c.isdigit() for c in word)}
    grams, item_grams = (_trigrams(ws) for ws in (asked, offered))

    def fraction(part: set[str], whole: set[str]) -> float:
        return len(part & whole) / len(part) if part else 0.0

    return [
        fraction(words, item_words),
        fraction(item_words, words),
        fraction(numbers, item_words),
        float(len(numbers)),
        fraction(grams, item_grams),
        float(bool(asked) and asked[0] in item_words),
        float(bool(asked) and asked[-1] in item_words),
        float(f" {' '.join(asked)} " in f" {' '.join(offered)} "),
        float(len(asked)),
        float(len(offered)),
    ]


def _trigrams(words: Sequence[str]) -> set[str]:
    text = f" {' '.join(words)} "
    return {text[i : i + 3] for i in range(len(text) - 2)}


def _spread(model, features, schema):
    """The model's probabilities in the schema's columns; a label that training lacked gets 0."""
    probs = np.zeros((len(features), len(schema)))
    probs[:, model.classes_] = model.predict_proba(features)
    return probs


def _labelled(train):
    labelled = [pair for pair in train if pair.label is not None]
    if not labelled:
        raise UserError("the train split holds no labelled pair, which the baselines need: label some, or split anew")
    return labelled


def _labels(pairs, schema):
    return np.array([schema.index(pair.label) for pair in pairs], np.int64)


def _text(item, fields):
    return " ".join(text for _, text in item.texts(fields))

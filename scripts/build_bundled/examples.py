"""The training examples of the bundled decoder: rationales and labels by rules, and which query words an item has."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from corpus import Corpus
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedTokenizerBase

from jax_rele.data import candidates, recombine
from jax_rele.data.tokens.prompts import Answer, AnswerEncoder, encode_prompts
from jax_rele.rationale import RuleAnnotator, grammar
from jax_rele.rationale.words import words
from jax_rele.types import Item, Pair, Rationale

FIELDS = ("brand", "color", "title")
"""The item fields of prompts, those of the demo."""

ORDERS = {"rationale_first": 0.7, "label_first": 0.3}
"""Fractions of the rationales in each order."""

SENTENCE_WORDS = (3, 20)
"""Fewest and most words of a piece of a product's prose that is used as a title."""

MOST_WORDS = 12
"""Most words of a query in the word task."""

TYPE = "core_product_type"
"""The tag of the product type that a query looks for."""

JUDGE = "judge:\n"
WORDS = "words:\n"


@dataclass(frozen=True)
class Rules:
    """Annotator and classifier that label synthetic pairs.

    Attributes:
      annotator: writes the rationales.
      labels: names of the grades, best first.
      grades: a logistic regression from `features` to the grade, fitted on human labels.
    """

    annotator: RuleAnnotator
    labels: tuple[str, ...]
    grades: Pipeline

    def probs(self, pairs: Sequence[Pair], rationales: Sequence[Rationale]) -> np.ndarray:
        """[N, C] label distributions from the features of each pair."""
        probs = np.zeros((len(pairs), len(self.labels)))
        columns = [self.labels.index(name) for name in self.grades.classes_]
        probs[:, columns] = self.grades.predict_proba(features(pairs, rationales))
        return probs


def fit_rules(corpus: Corpus, labels: Sequence[str], dimensions: Sequence[str], tag_map, seed: int) -> Rules:
    """Rules fitted on the corpus; as many random pairs as there are judged ones get the last grade."""
    annotator = RuleAnnotator.fit([*corpus.judged, *corpus.queries], dimensions, tag_map)
    judged = [pair for pair in corpus.judged if pair.label is not None]
    items = [pair.item for pair in corpus.judged]
    negatives = candidates(judged, items, 1, seed, bm25=0.0)
    known = [*judged, *(replace(pair, label=labels[-1]) for pair in negatives)]
    grades = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    grades.fit(features(known, annotator.annotate(known)), [pair.label for pair in known])
    return Rules(annotator, tuple(labels), grades)


def features(pairs: Sequence[Pair], rationales: Sequence[Rationale]) -> np.ndarray:
    """[N, F]: fraction of the query's words in the item, whether all and the last one are; lengths; verdicts."""
    rows = []
    for pair, rationale in zip(pairs, rationales):
        hits = occurs(pair)
        title = len(words(pair.item.title))
        row = [np.mean(hits), all(hits), hits[-1], np.log1p(len(hits)), np.log1p(title)] if hits else [0, 0, 0, 0, 0]
        for comparison in rationale.comparisons:
            row += [comparison.verdict == "match", comparison.verdict == "mismatch"]
        rows.append(row)
    return np.array(rows, float)


def occurs(pair: Pair) -> list[bool]:
    """For each word of the query whether the item's texts have it."""
    has = {word.norm for _, text in pair.item.texts(FIELDS) for word in words(text)}
    return [word.norm in has for word in words(pair.query)]


def made_up(corpus: Corpus, count: int, seed: int) -> list[Pair]:
    """Pairs of training queries: real queries and products by BM25 and at random, and recombined pairs.

    Titles of recombined pairs are cut from titles and from the products' prose.
    """
    rng = random.Random(seed)
    asked = [*corpus.judged, *corpus.queries]
    items = [pair.item for pair in corpus.judged]
    real = max(1, count // 3)
    crossed = candidates(asked, items, -(-real // len(asked)), seed, bm25=0.6)
    rng.shuffle(crossed)
    prose = [replace(rng.choice(items), title=text) for item in items for text in sentences(item)]
    titled = items + prose
    sources = [replace(pair, pair_id=f"s-{n}", item=rng.choice(titled)) for n, pair in enumerate(asked * 3)]
    recombined = recombine(sources, count - min(real, len(crossed)), seed)
    return corpus.allowed([*crossed[:real], *recombined])


def dense(corpus: Corpus, count: int, seed: int) -> list[Pair]:
    """Short titles, each with a query of which about half the words occur in it: many answers in few tokens."""
    rng = random.Random(seed)
    phrases = [title for pair in corpus.judged for title in (pair.item.title, *sentences(pair.item))]
    phrases += [pair.query for pair in corpus.queries]
    known = [text.split() for text in phrases]
    pairs = []
    for number in range(count):
        title = [rng.choice(rng.choice(known)) for _ in range(rng.randint(2, 6))]
        start = rng.choice(known)
        position = rng.randint(0, len(start) - 1)
        title += start[position : position + 6]
        rng.shuffle(title)
        query = [rng.choice(title) if rng.random() < 0.5 else rng.choice(rng.choice(known)) for _ in range(MOST_WORDS)]
        pairs.append(Pair(f"d-{number}", " ".join(query).lower(), Item(f"d-{number}", " ".join(title))))
    return corpus.allowed(pairs)


def short(corpus: Corpus, count: int, seed: int) -> list[Pair]:
    """Short pairs of human-tagged phrases: many comparisons in few tokens.

    With equal probabilities, each phrase of a query is in the title, shares its last word with one that is, has a type
    that the title has, or is any phrase.
    """
    rng = random.Random(seed)
    phrases = sorted({(tag.type, tag.text) for pair in corpus.queries for tag in pair.tags or () if tag.text})
    by_type, by_end = defaultdict(list), defaultdict(list)
    for kind, text in phrases:
        by_type[kind].append((kind, text))
        by_end[text.split()[-1]].append((kind, text))
    pairs = []
    for number in range(count):
        # The type is drawn first, so that rare types are as frequent as common ones; a title always has a product type.
        title = [rng.choice(by_type[rng.choice([*by_type])]) for _ in range(rng.randint(1, 4))]
        title.insert(rng.randint(0, len(title)), rng.choice(by_type[TYPE]))
        query = []
        for _ in range(rng.randint(1, 3)):
            kind, text = rng.choice(title)
            choices = [[(kind, text)], by_end[text.split()[-1]], by_type[kind], by_type[rng.choice([*by_type])]]
            query.append(rng.choice(rng.choice(choices)))
        query.sort(key=lambda phrase: phrase[0] == TYPE)
        brand, color = (
            rng.choice(by_type[kind])[1] if by_type[kind] and rng.random() < fraction else ""
            for kind, fraction in (("creator", 0.4), ("color", 0.3))
        )
        item = Item(f"h-{number}", " ".join(text for _, text in title), brand=brand, color=color)
        pairs.append(Pair(f"h-{number}", " ".join(dict.fromkeys(text for _, text in query)), item))
    return corpus.allowed(pairs)


def only_asked(rationale: Rationale) -> Rationale:
    """The rationale without the dimensions that the query does not ask for, where it asks for any."""
    asked = tuple(comparison for comparison in rationale.comparisons if comparison.query_values)
    return replace(rationale, comparisons=asked or rationale.comparisons)


def sentences(item: Item) -> list[str]:
    """Pieces of an item's prose that have the length of titles."""
    pieces = re.split(r"[.!?;:\n【】•|]+", f"{item.bullets}\n{item.description}")
    least, most = SENTENCE_WORDS
    return [" ".join(piece.split()) for piece in pieces if least <= len(piece.split()) <= most]


def texts(corpus: Corpus) -> list[str]:
    """The texts that the tokenizer is trained on: queries, titles, brands, colors and prose in the form of prompts."""
    lines = [grammar.prompt(pair, FIELDS) for pair in (*corpus.judged, *corpus.queries)]
    return lines + [f" {text}" for pair in corpus.judged for text in sentences(pair.item)]


class Writer:
    """Encodes examples as prompts and answers of token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_length: int, value_length: int):
        self.tokenizer, self.prompt_length = tokenizer, prompt_length
        self.encoders = {order: AnswerEncoder(tokenizer, order, value_length) for order in ORDERS}
        self.ids = self.encoders["label_first"].segment_ids

    def judge(
        self, pairs: Sequence[Pair], rationales: Sequence[Rationale], orders: Sequence[str]
    ) -> tuple[list[list[int]], list[Answer]]:
        """The teacher's own task: a rationale with its label."""
        prompts = encode_prompts(self.tokenizer, pairs, FIELDS, self.prompt_length)
        return prompts, [self.encoders[order](rationale) for order, rationale in zip(orders, rationales)]

    def words(self, pairs: Sequence[Pair]) -> tuple[list[list[int]], list[Answer]]:
        """For each word of the query, the word and whether the item has it."""
        end, tail = self.ids(JUDGE, "fixed"), list(self.ids(WORDS, "fixed"))
        prompts = encode_prompts(self.tokenizer, pairs, FIELDS, self.prompt_length)
        prompts = [[*prompt[: -len(end)], *tail] for prompt in prompts]
        answers = []
        for pair in pairs:
            ids, kinds, seen = [], [], set()
            for word, there in zip(words(pair.query)[:MOST_WORDS], occurs(pair)):
                if word.norm in seen:
                    continue
                seen.add(word.norm)
                text = grammar.escape(pair.query[word.start : word.end])
                name = self.ids(f" {text}", "fixed")
                ids += name
                kinds += ["name"] * len(name)
                verdict = self.ids(" match" if there else " absent", "verdict")
                ids += verdict
                kinds += ["verdict"] * len(verdict)
            answers.append(Answer([*ids, self.tokenizer.eos_token_id], [*kinds, "fixed"]))
        return prompts, answers

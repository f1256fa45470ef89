"""The generated world keeps its rules, and its teacher errs as often, and only where, it is told to."""

import json
from functools import cache

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jax_rele.config import load
from jax_rele.data import long_tail, read_external_signals, read_pairs
from jax_rele.data.synthetic import attribute_world, catalogue
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.evaluation.baselines import token_overlap
from jax_rele.rationale import find_evidence, parse, render
from jax_rele.text import text_key
from jax_rele.types import QUERY, LabelSchema, Span

SCHEMA = LabelSchema(attribute_world.LABELS, (1.0, 0.1, 0.01, 0.0), ("Exact",))
COUNTS = {"labelled": 1000, "unlabelled": 2000, "validation": 600, "test": 1800}


@cache
def world(seed=0):
    return catalogue.make_world(seed)


@cache
def table(name, count=None, seed=0):
    return catalogue.make_table(world(seed), name, count or COUNTS[name])


@cache
def meanings(seed=0):
    """{word: (dimension, value)}."""
    the_world = world(seed)
    return {
        str(word): (dimension, value)
        for dimension, words in zip(catalogue.DIMENSIONS, the_world.words)
        for value, synonyms in enumerate(words)
        for word in synonyms
    }


def attributes(text):
    """What a text states, read word by word."""
    stated = [meanings()[word] for word in text.split() if word in meanings()]
    assert len(stated) == len(dict(stated))
    return dict(stated)


def verdicts_of(pair):
    asked, stated = attributes(pair.query), attributes(pair.item.title)
    return {
        dimension: "absent"
        if dimension not in asked
        else "match"
        if asked[dimension] == stated[dimension]
        else "mismatch"
        for dimension in catalogue.DIMENSIONS
    }


def label_of(pair):
    """The rule as a shopkeeper would say it, from the words of the texts alone."""
    asked, stated, verdicts = attributes(pair.query), attributes(pair.item.title), verdicts_of(pair)
    if verdicts["category"] == "mismatch":
        return "Complement" if world().complements[asked["category"]] == stated["category"] else "Irrelevant"
    wrong = sum(verdict == "mismatch" for verdict in verdicts.values())
    return "Exact" if wrong == 0 else "Substitute" if wrong == 1 else "Irrelevant"


@pytest.mark.parametrize("name", COUNTS)
def test_labels_and_verdicts_follow_from_the_words(name):
    pairs_table = table(name)
    for row, pair in enumerate(pairs_table.pairs):
        assert attribute_world.LABELS[pairs_table.labels[row]] == label_of(pair)
        assert [attribute_world.VERDICTS[v] for v in pairs_table.verdicts[row]] == list(verdicts_of(pair).values())
        assert pair.label == (None if name == "unlabelled" else label_of(pair))
        assert pair.split == {"labelled": "train", "unlabelled": "train"}.get(name, name)


def test_texts_state_what_they_should_and_are_short():
    for pair in table("test").pairs:
        assert 2 <= len(attributes(pair.query)) <= 4
        assert len(attributes(pair.item.title)) == len(catalogue.DIMENSIONS)
        assert len(pair.query.split()) <= 8
        assert len(pair.item.title.split()) <= 16


def test_the_words_are_distinct_and_no_complement_is_the_category_itself():
    the_world = world()
    words = [str(word) for part in (*the_world.words, the_world.fillers) for word in part.ravel()]
    assert len(set(words)) == len(words) == sum(catalogue.SIZES) * catalogue.SYNONYMS + catalogue.FILLERS
    assert sorted(the_world.complements) == list(range(catalogue.SIZES[0]))
    assert (the_world.complements != np.arange(catalogue.SIZES[0])).all()


def test_the_mixture_of_labels():
    fractions = np.bincount(table("labelled", 6000).labels, minlength=4) / 6000
    np.testing.assert_allclose(fractions, [0.40, 0.35, 0.10, 0.15], atol=0.02)


def test_negatives_are_hard():
    """Most items that are not what was asked for are of the category, and agree with the query somewhere."""
    pairs_table = table("test")
    wrong = pairs_table.labels != 0
    assert (pairs_table.verdicts[wrong, 0] == catalogue.MATCH).mean() > 0.5
    assert (pairs_table.verdicts[wrong] == catalogue.MATCH).any(axis=1).mean() > 0.9


# ---- splits, head and tail


def test_no_query_is_in_two_splits():
    split_of = {}
    for name in COUNTS:
        for pair in table(name).pairs:
            words = tuple(sorted(set(text_key(pair.query).split()) & meanings().keys()))
            assert split_of.setdefault(words, pair.split) == pair.split


def test_test_has_enough_queries_and_items_and_half_of_it_is_tail():
    pairs = table("test").pairs
    queries = {pair.query: pair.query_frequency for pair in pairs}
    assert len(pairs) >= 1500
    assert len(queries) >= 250
    assert all(sum(pair.query == query for pair in pairs) >= 6 for query in queries)
    assert np.mean([frequency == 1 for frequency in queries.values()]) == 0.5
    everyone = [pair for name in COUNTS for pair in table(name).pairs]
    tail = long_tail(everyone, 1)
    assert tail.tolist() == [pair.query_frequency == 1 for pair in everyone]


def test_few_labels_do_not_reach_the_tail_but_the_teacher_does():
    def known_words(pairs):
        return {word for pair in pairs for word in pair.query.split() if word in meanings()}

    tail = known_words(pair for pair in table("test").pairs if pair.query_frequency == 1)
    head = known_words(pair for pair in table("test").pairs if pair.query_frequency > 1)
    labelled, judged = known_words(table("labelled", 300).pairs), known_words(table("unlabelled", 8000).pairs)
    assert len(tail - labelled) / len(tail) > 1.05 * len(head - labelled) / len(head)
    assert len(tail - judged) / len(tail) < 0.02
    assert np.mean([pair.query_frequency == 1 for pair in table("labelled").pairs]) < 0.2
    assert 0.45 < np.mean([pair.query_frequency == 1 for pair in table("unlabelled", 8000).pairs]) < 0.55


def test_fewer_pairs_are_the_first_of_more():
    for name in ("labelled", "unlabelled"):
        few, many = table(name, 100), table(name, 1000)
        assert few.pairs == many.pairs[:100]
        for one, two in zip(attribute_world.judge(few, 0.3).rationales, attribute_world.judge(many, 0.3).rationales):
            assert one == two


def test_a_seed_decides_everything():
    again = catalogue.make_table(catalogue.make_world(0), "test", 100)
    assert again.pairs == table("test").pairs[:100]
    assert catalogue.make_table(catalogue.make_world(1), "test", 100).pairs != again.pairs


# ---- how hard it is


@pytest.mark.slow
def test_word_overlap_is_weak_and_the_rule_is_perfect():
    pairs_table = table("test")
    exact = pairs_table.labels == 0
    probs = token_overlap(table("labelled").pairs, [], pairs_table.pairs, SCHEMA, ("title",))
    assert 0.55 < roc_auc_score(exact, probs[:, 0]) < 0.8
    oracle = attribute_world.judge(pairs_table, noise=0.0).label_probs
    assert roc_auc_score(exact, oracle[:, 0]) == 1.0


def test_students_read_the_whole_texts():
    settings = load("configs/attribute_world.yaml").student
    pairs = table("labelled").pairs + table("unlabelled").pairs
    texts = [" " + pair.query for pair in pairs] + [" " + pair.item.title for pair in pairs]
    tokenizer = train_tokenizer(texts, settings.random.vocab_size)
    for texts, limit in (
        ([pair.query for pair in table("test").pairs], settings.query_length - 2),
        ([pair.item.title for pair in table("test").pairs], settings.item_length - 1),
    ):
        lengths = [len(tokenizer.encode(" " + text, add_special_tokens=False)) for text in texts]
        assert np.mean(np.array(lengths) > limit) < 0.01


# ---- the teacher


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
def test_verdicts_are_turned_as_often_as_told(noise):
    pairs_table = table("test")
    wrong = attribute_world.judge(pairs_table, noise).verdicts != pairs_table.verdicts
    error = 4 * np.sqrt(noise * (1 - noise) / wrong.size)
    assert abs(wrong.mean() - noise) <= error
    # Of each dimension and of each true verdict alike.
    for part in [*wrong.T, *(wrong[pairs_table.verdicts == verdict] for verdict in range(3))]:
        assert abs(part.mean() - noise) <= 5 * np.sqrt(noise * (1 - noise) / part.size)


def test_a_noisier_teacher_errs_wherever_a_less_noisy_one_does():
    pairs_table = table("test")
    little, much = (attribute_world.judge(pairs_table, noise).verdicts for noise in (0.1, 0.3))
    wrong = little != pairs_table.verdicts
    np.testing.assert_array_equal(little[wrong], much[wrong])


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_what_the_teacher_says_follows_from_its_verdicts(noise):
    pairs_table = table("test")
    opinions = attribute_world.judge(pairs_table, noise)
    labels = catalogue.rule(opinions.verdicts, pairs_table.complementary)
    np.testing.assert_array_equal(opinions.label_probs.argmax(axis=1), labels)
    np.testing.assert_allclose(opinions.label_probs.sum(axis=1), 1.0)
    for row, rationale in enumerate(opinions.rationales):
        assert [c.dimension for c in rationale.comparisons] == list(catalogue.DIMENSIONS)
        assert [c.verdict for c in rationale.comparisons] == [
            attribute_world.VERDICTS[v] for v in opinions.verdicts[row]
        ]
        assert rationale.label == attribute_world.LABELS[labels[row]]
        assert parse(render(rationale)) == rationale
    np.testing.assert_allclose(np.linalg.norm(opinions.embedding, axis=1), 1.0)


def test_the_soft_rule_is_the_mean_of_the_rule_over_wrong_verdicts():
    """By sampling: each match or mismatch is turned into the other with probability `softness`."""
    rng, softness, draws = np.random.default_rng(0), 0.2, 40_000
    verdicts = rng.integers(0, 3, (12, len(catalogue.DIMENSIONS)))
    complementary = rng.random(12) < 0.5
    soft = attribute_world.soft_rule(verdicts, complementary, softness)
    for row, goes_with, expected in zip(verdicts, complementary, soft):
        wrong = (rng.random((draws, len(row))) < softness) & (row != catalogue.ABSENT)
        labels = catalogue.rule(np.where(wrong, 1 - row, row), np.full(draws, goes_with))
        np.testing.assert_allclose(np.bincount(labels, minlength=4) / draws, expected, atol=0.015)


def test_evidence_is_where_the_words_stand():
    pairs_table = table("test", 200)
    for pair, rationale in zip(pairs_table.pairs, attribute_world.judge(pairs_table, 0.3).rationales):
        expected = set()
        for source, text in ((QUERY, pair.query), ("title", pair.item.title)):
            at = 0
            for word in text.split(" "):
                if word in meanings():
                    expected.add(Span(source, at, at + len(word), meanings()[word][0]))
                at += len(word) + 1
        assert set(find_evidence(pair, rationale, ("title",))) == expected


# ---- the files


def test_the_files_are_pairs_and_signals_in_the_documented_formats(tmp_path, capsys):
    arguments = [str(tmp_path / "a"), "--labels", "60", "--unlabelled", "80", "--noise", "0.2", "--seed", "3"]
    assert attribute_world.main(arguments) == 0
    assert "60 labelled, 80 unlabelled, 600 validation, 1800 test pairs" in capsys.readouterr().out
    pairs, bad = read_pairs(tmp_path / "a" / "pairs.jsonl", label_names=attribute_world.LABELS)
    tables = [
        catalogue.make_table(world(3), name, count)
        for name, count in {**COUNTS, "labelled": 60, "unlabelled": 80}.items()
    ]
    assert pairs == [pair for part in tables for pair in part.pairs]
    assert not bad
    result = read_external_signals(
        tmp_path / "a" / "signals.jsonl", pairs, schema=SCHEMA, dimensions=catalogue.DIMENSIONS, fields=("title",)
    )
    assert (result.others, result.unparsed, result.unread) == (0, 0, ())
    assert result.signals.pair_ids == tuple(pair.pair_id for pair in pairs)
    opinions = [attribute_world.judge(part, 0.2) for part in tables]
    verdicts = np.concatenate([part.verdicts for part in opinions])
    np.testing.assert_array_equal(result.signals.verdict_probs, np.eye(3)[verdicts])
    np.testing.assert_allclose(
        result.signals.label_probs, np.concatenate([part.label_probs for part in opinions]), atol=2e-6
    )
    assert result.signals.rationale_embedding.shape == (len(pairs), attribute_world.EMBEDDING)
    assert all(result.signals.evidence)
    about = json.loads((tmp_path / "a" / "world.json").read_text())
    assert (about["seed"], about["noise"]) == (3, 0.2)

    assert attribute_world.main([str(tmp_path / "b"), *arguments[1:]]) == 0
    for name in ("pairs.jsonl", "signals.jsonl", "world.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--noise", "1.5"], "--noise must lie in [0, 1], got 1.5"),
        (["--noise", "nan"], "--noise must lie in [0, 1], got nan"),
        (["--labels", "0"], "--labels must be at least 1, got 0"),
        (["--labels", "many"], "argument --labels: invalid int value: 'many'"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--labels", "1000000"], "labelled: this world has 21600 such pairs, not 1000000"),
        (["--labls", "3"], "unrecognized arguments: --labls 3"),
    ],
)
def test_mistakes_give_one_line_and_write_nothing(tmp_path, capsys, options, message):
    assert attribute_world.main([str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

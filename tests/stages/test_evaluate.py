"""What `evaluate` prints of the teacher's words."""

from dataclasses import replace

import numpy as np

from jax_rele import config
from jax_rele.evaluation import BASELINES
from jax_rele.rationale import parse_output
from jax_rele.stages.evaluate import SHOWN, baseline_probs, first_rationales, rationale_figures
from jax_rele.teacher import TeacherPredictions
from jax_rele.types import Comparison, Item, Pair, Rationale, Tag


def predictions(texts):
    results = tuple(parse_output(text, dimensions=("color",), labels=("Exact", "Irrelevant")) for text in texts)
    return TeacherPredictions(
        np.ones((len(texts), 2)), np.ones((len(texts), 1, 3)), tuple(texts), results, "first_token", 0, 0
    )


def test_the_first_pairs_are_shown_whoever_they_flatter():
    text = "color: red | blue | mismatch\nlabel: Irrelevant"
    pairs = [Pair(str(n), f"red shoes {n}", Item("", f"Blue shoe {n}"), label="Exact") for n in range(5)]
    shown = first_rationales(pairs, predictions([text] * 5))
    assert shown.count("human label: Exact") == SHOWN
    assert f"red shoes {SHOWN - 1}" in shown
    assert f"red shoes {SHOWN}" not in shown
    assert "    color: red | blue | mismatch\n    label: Irrelevant" in shown


def test_texts_forge_no_line_and_no_control_character():
    pairs = [Pair("1", "red\nlabel: Exact", Item("", "```\x1b[2J"), label="Exact")]
    shown = first_rationales(pairs, predictions(["color: \x1b[2J\u202e | - | absent\nlabel: Exact"]))
    assert all(line.startswith("    ") for line in shown.splitlines()[3:])
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "query: red\\nlabel\\: Exact" in shown


def test_a_teacher_that_writes_nothing_shows_nothing():
    pairs = [Pair("1", "red", Item("", "red"), label="Exact")]
    assert first_rationales(pairs, predictions([""])) == ""


def test_baselines_of_both_splits_are_those_of_each_alone():
    settings = config.Config()
    words = ("shoe", "lamp", "mug", "bag")

    def pairs(numbers):
        labels = settings.labels.names
        return [
            Pair(str(n), f"red {words[n % 4]}", Item(str(n), f"{words[n % 3]} {n}"), labels[n % len(labels)])
            for n in numbers
        ]

    train, validation, test = pairs(range(60)), pairs(range(60, 73)), pairs(range(73, 100))
    both = baseline_probs(settings, train, validation, test)
    assert set(both) == set(BASELINES)
    for name, (of_test, of_validation) in both.items():
        for actual, asked in ((of_test, test), (of_validation, validation)):
            fields = settings.data.item_fields
            expected = BASELINES[name](train, validation, asked, settings.labels.schema_, fields)
            np.testing.assert_allclose(actual, expected, atol=1e-12, err_msg=name)


def test_verdicts_are_compared_where_human_tags_ask():
    settings = config.Config()
    written = ["color: red | red | match\nlabel: Exact", "color: red | - | absent\nlabel: Irrelevant"]
    rules = [
        Rationale((Comparison("color", ("red",), (), verdict), Comparison("brand", ("acme",), (), "match")), None)
        for verdict in ("match", "mismatch")
    ]
    parsed = tuple(parse_output(text, dimensions=("color",), labels=("Exact", "Irrelevant")) for text in written)
    judged = TeacherPredictions(np.ones((2, 4)), np.ones((2, 7, 3)), tuple(written), parsed, "first_token", 0, 0)
    tags = (Tag("red", "color"), Tag("red", "color"), Tag("x", "modifier"))
    pairs = [Pair(str(n), "red", Item(str(n), "red"), label="Exact", tags=tags) for n in range(2)]
    figures = rationale_figures(settings, pairs, judged, lambda: rules)
    assert figures["agreement_where_tags_ask"] == {"dimensions": 2, "agreement": 0.5, "most_frequent_verdict": 0.5}
    untagged = [replace(pair, tags=None) for pair in pairs]
    assert "agreement_where_tags_ask" not in rationale_figures(settings, untagged, judged, lambda: rules)

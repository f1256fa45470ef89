"""Several kinds of answer: what each says of a rationale, and that a judgement is the mean over them."""

import dataclasses

import numpy as np
import pytest

from jax_rele.rationale import ParseFailure, parse
from jax_rele.teacher import judge
from jax_rele.teacher.judging import from_perspective
from jax_rele.teacher.perspectives import MAIN, Perspective, mean_of_perspectives
from jax_rele.teacher.predictions import TeacherPredictions
from jax_rele.types import VERDICTS, Comparison, Rationale, Rule

RULES = (Rule("", {"brand": ("mismatch",)}, ("Irrelevant",)), Rule("", {"color": ("match", "absent")}, ("Exact",)))
INTENT = Perspective("intent", "rationale_first", ("category",), instructions="answer: category, label")
LABEL = Perspective("label", "label_only", instructions="answer: label")
RULED = Perspective("rules", "label_first", ("color",), RULES, "answer: label, color, rule 1, rule 2")
PERSPECTIVES = INTENT, LABEL, RULED


def test_an_answer_has_the_lines_of_its_perspective_alone():
    whole = Rationale(
        (Comparison("brand", ("a",), ("b",), "mismatch"), Comparison("color", verdict="mismatch")), "Exact"
    )
    assert INTENT.answer(whole) == Rationale((Comparison("category", verdict="absent"),), "Exact")
    assert LABEL.answer(whole) == Rationale((), "Exact")
    ruled = RULED.answer(whole)
    assert [each.dimension for each in ruled.comparisons] == list(RULED.lines) == ["color", "rule 1", "rule 2"]
    assert [each.verdict for each in ruled.comparisons] == ["mismatch", "match", "absent"]


@pytest.mark.parametrize("order", ["rationale_first", "label_first"])
@pytest.mark.parametrize("write", [True, False])
def test_a_judgement_is_the_mean_over_the_kinds_of_answer(teacher, pairs, order, write):
    main = dataclasses.replace(teacher, order=order)
    several = dataclasses.replace(main, perspectives=PERSPECTIVES)
    counted = []
    judged = judge(several, pairs, write=write, progress=counted.append)
    assert sum(counted) == len(pairs)
    alone = {MAIN: judge(main, pairs, write=write)}
    alone |= {each.name: judge(from_perspective(main, each), pairs, write=write) for each in PERSPECTIVES}
    assert list(judged.label_probs_of) == list(alone)
    for name, each in alone.items():
        np.testing.assert_array_equal(judged.label_probs_of[name], each.label_probs)
    np.testing.assert_allclose(judged.label_probs, np.mean([each.label_probs for each in alone.values()], axis=0))
    assert np.ptp([each.label_probs for each in alone.values()], axis=0).max() > 0.01  # prompts differ
    expected = {
        "category": [alone[MAIN].verdict_probs[:, 0], alone["intent"].verdict_probs[:, 0]],
        "brand": [alone[MAIN].verdict_probs[:, 1]],
        "color": [alone[MAIN].verdict_probs[:, 2], *([alone["rules"].verdict_probs[:, 0]] if write else [])],
    }
    for column, name in enumerate(teacher.dimensions):
        np.testing.assert_allclose(judged.verdict_probs[:, column], np.mean(expected[name], axis=0))
    for row, (text, rationale) in enumerate(zip(judged.texts, judged.rationales)):
        assert parse(text).label == rationale.label == teacher.schema.names[judged.label_probs[row].argmax()]
        assert rationale.comparisons == alone[MAIN].rationales[row].comparisons
    assert judged.tokens_decoded == sum(each.tokens_decoded for each in alone.values())


def test_annotated_rationales_are_read_from_every_perspective(teacher, pairs):
    class Fixed:
        def annotate(self, asked):
            return [Rationale((Comparison("brand", ("x",), ("y",), "mismatch"),)) for _ in asked]

    ruled = dataclasses.replace(RULED, order="rationale_first")
    several = dataclasses.replace(teacher, order="rationale_first", annotator=Fixed(), perspectives=(ruled,))
    judged = judge(several, pairs)
    assert judged.tokens_decoded == 0
    np.testing.assert_allclose(judged.label_probs, np.mean(list(judged.label_probs_of.values()), axis=0))
    read = from_perspective(several, ruled).annotator.annotate(pairs)
    assert [each.verdict("rule 1") for each in read] == ["match"] * len(pairs)


def test_a_mean_keeps_a_text_that_does_not_parse():
    probs, verdicts = np.array([[0.9, 0.1]]), np.full((1, 1, len(VERDICTS)), np.nan)
    failure = ParseFailure("none")
    main = TeacherPredictions(probs, verdicts, ("??",), (failure,), "first_token", 1, 2)
    other = TeacherPredictions(probs[:, ::-1], verdicts, ("label: b",), (Rationale((), "b"),), "first_token", 3, 4)
    mean = mean_of_perspectives(main, {"label": ((), other)}, ("a", "b"), ("brand",), "label_first")
    assert (mean.texts, mean.rationales) == (("??",), (failure,))
    assert np.isnan(mean.verdict_probs).all()
    np.testing.assert_allclose(mean.label_probs, [[0.5, 0.5]])
    assert (mean.tokens_decoded, mean.tokens_emitted) == (4, 6)

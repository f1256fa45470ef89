"""Rationales that are read: over what the teacher writes itself, its distributions are those of decoding."""

import dataclasses

import numpy as np
import pytest

from jax_rele.data.tokens.prompts import encode_prompts
from jax_rele.rationale import grammar, parse
from jax_rele.teacher import judge, judging, read_rationales
from jax_rele.teacher.label_scores import score_choices
from jax_rele.types import VERDICTS, Comparison, LabelSchema, Rationale

COLLIDING = LabelSchema(("Exact", "Exact match", "Irrelevant"), (1.0, 0.5, 0.0), ("Exact",))
ASKED = Rationale(
    (
        Comparison("color", ("red",), ("Red ; | \\", "blue"), "mismatch"),
        Comparison("category", ("a very long category of shoes and more shoes",), ("shoes",), "match"),
    ),
    "Irrelevant",
)


@pytest.mark.parametrize("kind", ["own", "byte_level", "sentencepiece"])
@pytest.mark.parametrize("order", ["rationale_first", "label_first"])
@pytest.mark.parametrize("scoring", ["first_token", "full"])
def test_over_its_own_rationales_a_teacher_judges_as_when_it_decodes(
    teacher, pairs, tokenizers_by_kind, kind, order, scoring, monkeypatch
):
    schema = COLLIDING if scoring == "full" else teacher.schema
    teacher = dataclasses.replace(teacher, tokenizer=tokenizers_by_kind[kind], order=order, schema=schema)
    # A pair that occurs twice shares its whole rationale, and yet each choice has a distribution.
    pairs = [*pairs, pairs[0]]
    written, generate = [], judging.generate

    def record(*args, **more):
        texts, passes = generate(*args, **more)
        written.extend(one.slots for (one,) in texts)
        return texts, passes

    monkeypatch.setattr(judging, "generate", record)
    decoded = judge(teacher, pairs)
    assert decoded.label_scoring == scoring
    done = []
    form = judging._checked_form(teacher)
    labels, verdicts, _ = judging.score_slots(teacher, form, pairs, written, progress=done.append)
    np.testing.assert_allclose(labels, decoded.label_probs, atol=1e-5)
    np.testing.assert_allclose(verdicts, decoded.verdict_probs, atol=1e-5)
    assert sum(done) == len(pairs)


@dataclasses.dataclass
class Annotator:
    rationale: Rationale

    def annotate(self, pairs):
        return [self.rationale] * len(pairs)


@pytest.mark.parametrize("order", ["rationale_first", "label_first"])
def test_an_annotator_replaces_decoding(teacher, pairs, order, monkeypatch):
    teacher = dataclasses.replace(teacher, order=order, annotator=Annotator(ASKED))
    monkeypatch.setattr(judging, "generate", None)
    judged = teacher.explain(pairs)
    assert judged.tokens_decoded == 0
    asked = {comparison.dimension: comparison for comparison in ASKED.comparisons}
    for row, (text, rationale) in enumerate(zip(judged.texts, judged.rationales)):
        assert parse(text) == rationale
        assert rationale.label == teacher.schema.names[judged.label_probs[row].argmax()]
        assert [one.dimension for one in rationale.comparisons] == list(teacher.dimensions)
        for one, probs in zip(rationale.comparisons, judged.verdict_probs[row]):
            source = asked.get(one.dimension, Comparison(one.dimension, verdict="absent"))
            assert one == dataclasses.replace(source, verdict=VERDICTS[probs.argmax()])
    np.testing.assert_array_equal(teacher.predict(pairs).label_probs.argmax(-1), judged.label_probs.argmax(-1))


def test_each_choice_is_read_after_the_text_before_it(teacher, pairs, naive):
    """Against logits over the whole vocabulary; the rationale's label is not read."""
    teacher = dataclasses.replace(teacher, order="rationale_first")
    judged = read_rationales(teacher, pairs, [ASKED] * len(pairs))
    whole = Rationale(
        tuple(
            next((one for one in ASKED.comparisons if one.dimension == name), Comparison(name, verdict="absent"))
            for name in teacher.dimensions
        ),
        "Exact",
    )
    encode = teacher.tokenizer.encode
    for row, prompt in enumerate(encode_prompts(teacher.tokenizer, pairs, teacher.fields, teacher.prompt_length)):
        ids, verdicts = list(prompt), []
        for segment in grammar.segments(whole, "rationale_first"):
            new = encode(segment.text, add_special_tokens=False)
            if segment.kind in ("verdict", "label"):
                names = VERDICTS if segment.kind == "verdict" else teacher.schema.names
                logits = naive.logits(teacher.model, teacher.variables, ids)[-1]
                probs = naive.softmax(logits[[encode(" " + name, add_special_tokens=False)[0] for name in names]])
                verdicts.append(probs)
            ids += new[: teacher.value_length] if segment.kind.endswith("values") else new
        np.testing.assert_allclose(judged.verdict_probs[row], verdicts[:-1], atol=1e-4)
        np.testing.assert_allclose(judged.label_probs[row], verdicts[-1], atol=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_few_pairs(teacher, pairs, count):
    teacher = dataclasses.replace(teacher, order="rationale_first", annotator=Annotator(ASKED))
    judged = judge(teacher, pairs[:count])
    assert judged.label_probs.shape == (count, 3)
    assert judged.verdict_probs.shape == (count, 3, 3)


def test_choices_in_rows_that_share_all_their_tokens(teacher):
    rows, before = [[5, 6, 7, 8, 9] * 8] * 5, np.array([[3, 20]] * 5)
    first = np.array([[1, 2, 3], [4, 5, -1]])
    probs = score_choices(teacher.model, teacher.variables, rows, before, first, groups=["same"] * 5, batch_size=4)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(probs, np.broadcast_to(probs[:1], probs.shape), atol=1e-5)
    assert (probs[:, 1, 2] == 0).all()

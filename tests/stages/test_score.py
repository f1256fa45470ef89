"""Scoring by shards: each is judged once, whoever does it, and together they are one table."""

from dataclasses import dataclass
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.config import from_dict
from jax_rele.data import read_signals, take_signals
from jax_rele.errors import UserError
from jax_rele.rationale import ParseFailure, RuleAnnotator
from jax_rele.runs.rationale_source import AnnotatedRationales
from jax_rele.stages import score
from jax_rele.teacher import TeacherPredictions
from jax_rele.types import Comparison, Item, LabelSchema, Pair, Rationale

SCHEMA = LabelSchema(("Exact", "Other"), (1.0, 0.0), ("Exact",))
PAIRS = [Pair(str(number), f"shoes {number % 3}", Item(str(number), "red shoes")) for number in range(10)]
SETTINGS = from_dict(
    {
        "labels": {"names": SCHEMA.names, "gains": SCHEMA.gains, "positive": SCHEMA.positive},
        "rationale": {"dimensions": ["category"], "tag_map": {}},
    }
)


@dataclass(frozen=True)
class FakeTeacher:
    schema: LabelSchema = SCHEMA
    dimensions: tuple[str, ...] = ("category",)
    fields: tuple[str, ...] = ("title",)
    order: str = "label_first"


@dataclass(frozen=True)
class Judge:
    """Says of each pair what its id says."""

    schema: LabelSchema = SCHEMA
    fields: tuple[str, ...] = ("title",)

    def predict(self, pairs):
        probs = np.array([[float(pair.pair_id), 1 - float(pair.pair_id)] for pair in pairs])
        return SimpleNamespace(label_probs=probs)


def held_out(probs, titles, labels):
    return [
        Pair(str(prob), "red shoes", Item(str(i), title), label=label)
        for i, (prob, title, label) in enumerate(zip(probs, titles, labels))
    ]


def test_the_teacher_is_compared_with_word_overlap():
    titles = ["red shoes", "blue shoes", "lamp", "red lamp"]
    labels = ["Exact", "Other", "Exact", "Other"]
    pairs = held_out([0.9, 0.2, 0.8, 0.4], titles, labels)
    expected = {"pairs": 4, "teacher_auc": 1.0, "word_overlap_auc": 0.5}
    assert score.compare_with_overlap(Judge(), pairs) == expected
    assert score.compare_with_overlap(Judge(), pairs[::2]) == {}
    assert score.compare_with_overlap(Judge(), []) == {}
    assert score.weak_teacher(expected) == score.weak_teacher({}) == ""
    assert "teacher's ROC-AUC is 0.400, word overlap's 0.500" in score.weak_teacher({**expected, "teacher_auc": 0.4})
    many = score.compare_with_overlap(Judge(), pairs * 67)
    assert (many["pairs"], many["teacher_auc"]) == (score.HELD_OUT, 1.0)


@pytest.fixture
def calls(monkeypatch):
    """Judges without a model; the pair called 4 gets a rationale that does not parse. Holds what was asked."""
    asked = []

    def judge(teacher, pairs, *, write, progress):
        asked.append([pair.pair_id for pair in pairs])
        assert write
        progress(len(pairs))
        rationale = Rationale((Comparison("category", ("shoes",), ("shoes",), "match"),), "Exact")
        return TeacherPredictions(
            label_probs=np.tile(np.float32([0.75, 0.25]), (len(pairs), 1)),
            verdict_probs=np.tile(np.float32([1, 0, 0]), (len(pairs), 1, 1)),
            texts=("",) * len(pairs),
            rationales=tuple(ParseFailure("no") if pair.pair_id == "4" else rationale for pair in pairs),
            label_scoring="first_token",
            tokens_decoded=2 * len(pairs),
            tokens_emitted=5 * len(pairs),
        )

    monkeypatch.setattr(score, "judge", judge)
    monkeypatch.setattr(score, "SHARD", 4)
    return asked


def test_shards_may_be_done_by_anyone_in_any_order_and_once(calls, tmp_path):
    done = []
    directory = tmp_path / "score" / "shards"
    score.score_shards(FakeTeacher(), PAIRS, directory, [2, 0], done.append)
    score.score_shards(FakeTeacher(), PAIRS, directory, range(3), done.append)
    assert calls == [["8", "9"], ["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    assert sum(done) == 6 + 10
    order = [9, *range(9)]  # the first row that was scored is the last pair of the tables
    counts = score.join(SETTINGS, tmp_path, range(3), order)
    assert counts == {"pairs": 10, "tokens decoded": 20, "tokens emitted": 50, "rationales that parse": "90.0%"}
    signals = read_signals(tmp_path / "score" / "signals.parquet", SCHEMA.names, ("category",))
    assert [signals.pair_ids[index] for index in order] == [pair.pair_id for pair in PAIRS]
    signals = take_signals(signals, order)
    np.testing.assert_array_equal(signals.label_probs, np.tile(np.float32([0.75, 0.25]), (10, 1)))
    assert [bool(text) for text in signals.rationales] == [number != 4 for number in range(10)]
    assert signals.rationales[0] == "label: Exact\ncategory: shoes | shoes | match"
    assert {span.source for span in signals.evidence[0]} == {"query", "title"}
    assert signals.evidence[4] == ()


def test_a_shard_that_was_cut_off_is_done_again(calls, tmp_path):
    score.score_shards(FakeTeacher(), PAIRS, tmp_path, range(3), lambda pairs: None)
    (tmp_path / "00001.parquet").unlink()
    (tmp_path / "00002.json").unlink()
    score.score_shards(FakeTeacher(), PAIRS, tmp_path, range(3), lambda pairs: None)
    assert calls[3:] == [["4", "5", "6", "7"], ["8", "9"]]


def test_a_damaged_shard_is_named(calls, tmp_path):
    directory = tmp_path / "score" / "shards"
    score.score_shards(FakeTeacher(), PAIRS, directory, range(3), lambda pairs: None)
    (directory / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"00001\.parquet: the table is damaged"):
        score.join(SETTINGS, tmp_path, range(3), range(10))
    assert not (tmp_path / "score" / "signals.parquet").exists()


def test_the_stage_says_whose_rationales_were_judged_over():
    teacher = SimpleNamespace(order="rationale_first", annotator=None)
    assert score.describe_rationales(teacher, PAIRS) == "written by the teacher"
    by_model = {(pair.query, pair.item): Rationale() for pair in PAIRS[:3]}
    teacher.annotator = AnnotatedRationales(RuleAnnotator.fit([], ["category"], {}), by_model)
    assert score.describe_rationales(teacher, PAIRS) == "read, not written: 7 by rules, 3 of annotate"
    assert score.describe_rationales(teacher, PAIRS[3:]) == "read, not written: 7 by rules"
    teacher.order = "label_only"
    assert score.describe_rationales(teacher, PAIRS) == "none"


@given(st.lists(st.integers(0, 4), max_size=30))
def test_pairs_of_a_query_stand_together_and_in_order(queries):
    pairs = [Pair(str(number), str(query), Item("", "t")) for number, query in enumerate(queries)]
    order = score.by_query(pairs)
    assert sorted(order) == list(range(len(pairs)))
    assert len([query for query, _ in groupby(order, lambda index: queries[index])]) == len(set(queries))
    for query in set(queries):
        indices = [index for index in order if queries[index] == query]
        assert indices == sorted(indices)

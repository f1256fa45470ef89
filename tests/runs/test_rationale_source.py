"""Whose rationales a teacher reads: a model's for training pairs that it explained, the rules' for all others."""

import pytest

from jax_rele.config import from_dict
from jax_rele.data import RATIONALES, write_pairs, write_table
from jax_rele.errors import UserError
from jax_rele.rationale import render
from jax_rele.runs import layout
from jax_rele.runs.rationale_source import rationale_source
from jax_rele.runs.stages import STAGES
from jax_rele.types import Comparison, Item, Pair, Rationale

ITEM = Item("a", "Acme red shoes", brand="Acme")
TRAIN = Pair("1", "red shoes", ITEM, label="Exact", split="train")
TEST = Pair("2", "blue shoes", ITEM, label="Exact", split="test")
UNLABELLED = Pair("3", "red boots", ITEM)
BY_MODEL = Rationale((Comparison("brand", (), ("Acme",), "absent"),), "Exact")


def settings(annotator="rules", **more):
    llm = (
        {"endpoints": [{"name": "m", "model": "m", "base_url": "http://127.0.0.1:1/v1"}]} if annotator == "llm" else {}
    )
    annotate = {"annotator": annotator, **llm}
    return from_dict({"score": {"rationale": "annotated"}, "annotate": annotate, **more})


@pytest.fixture
def run_dir(tmp_path):
    write_pairs(tmp_path / layout.PAIRS, [TRAIN, TEST])
    write_pairs(tmp_path / layout.UNLABELLED, [UNLABELLED])
    rows = [{"pair_id": one, "text": render(BY_MODEL), "annotator": "m"} for one in ("1", "2")]
    write_table(tmp_path / layout.RATIONALES, rows, RATIONALES)
    return tmp_path


def test_a_models_rationales_are_read_for_training_pairs_alone(run_dir):
    rules = rationale_source(settings(), run_dir)
    source = rationale_source(settings("llm"), run_dir)
    # A pair of another query does not get the rationale of one with its id.
    other = Pair("1", "green lamp", ITEM)
    pairs = [TEST, TRAIN, UNLABELLED, other]
    expected = rules.annotate(pairs)
    assert BY_MODEL not in expected
    assert source.annotate(pairs) == [expected[0], BY_MODEL, expected[2], expected[3]]
    assert source.count(pairs) == {"rules": 3, "annotate": 1}
    assert rules.count([]) == {}


def test_a_teacher_that_writes_has_none(run_dir):
    assert rationale_source(from_dict({}), run_dir) is None


def test_the_source_is_part_of_what_the_stages_read():
    written, annotated = from_dict({}), settings("llm")
    for name in ("score", "evaluate"):
        assert "score.rationale" in STAGES[name].reads(annotated)
        assert "score.rationale" in STAGES[name].reads(written)
        assert "annotate" in STAGES[name].needs(annotated)
        assert "annotate" not in STAGES[name].needs(written)
        assert "annotate" not in STAGES[name].needs(settings("rules"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"teacher": {"order": "label_only"}}, "score.rationale: with teacher.order label_only no rationale is read"),
        ({"score": {"rationale": "annotated", "samples": 3}}, "score.samples: an annotated rationale is not drawn"),
    ],
)
def test_what_has_nothing_to_read_is_refused(more, message):
    with pytest.raises(UserError, match=message):
        settings(**more)

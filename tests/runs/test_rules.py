"""The business rules of a config reach the prompts and the figures of a run."""

import json

import pytest

from jax_rele import config
from jax_rele.runs import chat_annotators, layout
from jax_rele.runs.questions import chat_instructions
from jax_rele.types import Item, Pair

RULES = [{"text": "Used items are Substitutes."}, {"when": {"brand": "mismatch"}, "labels": "Substitute"}]
IN_WORDS = ["Used items are Substitutes.", "Where brand is mismatch, the label is Substitute."]


def test_chat_models_are_told():
    prompts = chat_annotators.prompts_of(config.from_dict({"rules": RULES}))
    system = prompts.messages(Pair("1", "red shoes", Item("1", "shoes")))[0]["content"]
    assert all(f"- {words}\n" in system for words in IN_WORDS)


@pytest.mark.parametrize("order", ["label_first", "rationale_first", "label_only"])
def test_a_teacher_in_a_chat_is_told_what_its_answer_can_follow(order):
    settings = config.from_dict({"rules": RULES})
    instructions = chat_instructions(settings, order)
    # A label alone has no verdicts.
    assert [words in instructions for words in IN_WORDS] == [True, order != "label_only"]
    assert "rules" not in chat_instructions(config.Config(), order)


def test_the_report_says_who_breaks_a_rule(tiny):
    metrics = json.loads((tiny[1] / layout.METRICS).read_text("utf-8"))
    (figures,) = metrics["rules"]
    assert figures["rule"] == "Where brand is mismatch, the label is Substitute or Complement or Irrelevant."
    assert set(figures["broken"]) == {"human labels", *metrics["models"]}
    assert "teacher" in figures["own"]
    page = (tiny[1] / layout.REPORT).read_text("utf-8")
    assert "Business rules" in page
    assert figures["rule"] in page

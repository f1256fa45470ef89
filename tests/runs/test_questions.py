"""The kinds of answer of a config: their lines, orders and instructions, in prompts and in chats."""

import pytest

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.runs.questions import kinds_of_answer
from jax_rele.teacher.perspectives import MAIN

RULE = {"when": {"brand": "mismatch"}, "labels": ["Irrelevant"]}
THREE = {
    "intent": {"dimensions": ["category"], "order": "label_first"},
    "label": {"order": "label_only"},
    "rules": {"dimensions": [], "rules": True},
}


def settings(perspectives=THREE, rules=(RULE, {"text": "Be kind."}), **teacher):
    return config.from_dict({"rules": list(rules), "teacher": {"perspectives": perspectives, **teacher}})


def test_answers_name_their_lines_in_a_prompt():
    main, *others = kinds_of_answer(settings(order="rationale_first", instructions="Judge.\n"), False)
    assert (main.name, main.order, main.instructions) == (MAIN, "rationale_first", "Judge.\n")
    assert main.lines == config.RationaleConfig().dimensions
    assert {one.name: (one.order, one.lines, one.instructions) for one in others} == {
        "intent": ("label_first", ("category",), "Judge.\nanswer: label, category"),
        "label": ("label_only", (), "Judge.\nanswer: label"),
        "rules": ("rationale_first", ("rule 1",), "Judge.\nanswer: rule 1, label"),
    }


def test_a_chat_shows_the_form_of_each_answer():
    main, intent, label, rules = kinds_of_answer(settings(), True)
    assert main.instructions == kinds_of_answer(settings({}), True)[0].instructions
    assert intent.instructions.endswith("\nlabel: the label's name\ncategory: query | item | verdict")
    assert "brand:" not in intent.instructions
    assert label.instructions.endswith("Answer in this form:\nlabel: the label's name")
    assert "- rule 1: Where brand is mismatch, the label is Irrelevant." in rules.instructions
    assert "Compare what" not in rules.instructions
    own = kinds_of_answer(settings(instructions="Mine."), True)
    assert own[0].instructions == "Mine."
    assert own[3].instructions == (
        "Mine.\n\nAnswer in this form:\nlabel: the label's name\nrule 1: query | item | verdict"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"perspectives": {"a": {"dimensions": ["grip"]}}}, "teacher.perspectives.a.dimensions: 'grip' is not one of"),
        ({"perspectives": {"a": {"dimensions": ["brand", "brand"]}}}, "a.dimensions: must be different"),
        ({"perspectives": {"a": {"dimensions": []}}}, "a: says nothing"),
        ({"perspectives": {"a": {}}}, "a: is the same answer as the main answer"),
        (
            {"perspectives": {"a": {"dimensions": ["brand"]}, "b": {"dimensions": ["brand"]}}},
            "b: is the same answer as the perspective a",
        ),
        (
            {"perspectives": {"a": {"order": "label_only"}, "b": {"order": "label_only"}}},
            "b: is the same answer as the perspective a",
        ),
        ({"perspectives": {"zero-shot": {"order": "label_only"}}}, "reports call the untrained teacher so"),
        ({"perspectives": {"a": {"order": "label_only", "rules": True}}}, "a.order: label_only compares nothing"),
        ({"perspectives": {"a": {"order": "label_first"}}, "order": "label_only"}, "no answer compares all dimensions"),
        ({"perspectives": {"main answer": {"order": "label_only"}}}, "main answer"),
    ],
)
def test_a_mistake_is_named(values, message):
    with pytest.raises(UserError, match=message):
        settings(**values)


def test_rules_need_a_condition_and_names_of_their_own():
    with pytest.raises(UserError, match=r"none of `rules` has a condition"):
        settings({"a": {"rules": True}}, rules=({"text": "Be kind."},))
    values = {
        "rules": [{"when": {"rule 1": "match"}, "labels": ["Exact"]}],
        "rationale": {"dimensions": ["rule 1", "brand"], "tag_map": {}},
        "teacher": {"perspectives": {"a": {"dimensions": ["brand"], "rules": True}}},
    }
    with pytest.raises(UserError, match=r"a dimension is called 'rule 1'"):
        config.from_dict(values)

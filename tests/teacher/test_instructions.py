"""The default instructions name every label, every dimension that is compared, and the form that is trained."""

import pytest

from jax_rele import config
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.names import ORDERS
from jax_rele.runs.questions import teacher_question
from jax_rele.teacher.instructions import default_instructions

LABELS = {"Good": "it fits.", "Bad": ""}
DIMENSIONS = {"brand": "the maker", "grip": ""}


@pytest.mark.parametrize("order", ORDERS)
def test_labels_and_dimensions_are_named_in_the_order_of_the_answer(order):
    text = default_instructions(LABELS, DIMENSIONS, order)
    assert "- Good: it fits.\n- Bad\n" in text
    form = text.splitlines()[text.splitlines().index("Answer in this form:") + 1 :]
    lines = {"label": "label: the label's name", "brand": "brand: query | item | verdict"}
    assert [line for line in form if line in lines.values()] == {
        "label_only": [lines["label"]],
        "label_first": [lines["label"], lines["brand"]],
        "rationale_first": [lines["brand"], lines["label"]],
    }[order]
    assert ("the maker" in text) == (order != "label_only")


def test_a_config_decides_what_is_asked():
    tokenizer = train_tokenizer(["red shoes"], 300)
    settings = config.from_dict(
        {
            "labels": {"names": ["Exact", "Other"], "gains": [1.0, 0.0]},
            "annotate": {"definitions": {"Other": "anything else."}},
        }
    )
    assert teacher_question(settings, tokenizer) == ("", False)
    tokenizer.chat_template = "{{ messages }}"
    question = teacher_question(settings, tokenizer)
    assert question.chat
    assert "- Exact: the item is what the query asks for" in question.instructions
    assert "- Other: anything else." in question.instructions
    assert "brand:" in question.instructions
    assert "brand:" not in teacher_question(settings, tokenizer, "label_only").instructions
    own = settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"instructions": "Judge."})})
    assert teacher_question(own, tokenizer) == ("Judge.", True)
    none = own.model_copy(update={"teacher": own.teacher.model_copy(update={"chat_template": "none"})})
    assert teacher_question(none, tokenizer) == ("Judge.", False)

"""An answer as it was drawn: its tokens are those of its text, and what was forced is told apart."""

import pytest

from jax_rele.names import ORDERS
from jax_rele.teacher.form import drawn_answer, make_form

LABELS, DIMENSIONS, LENGTH = ("Exact", "Other"), ("brand", "color"), 3


def holds(ids, part):
    return any(tuple(ids[start : start + len(part)]) == tuple(part) for start in range(len(ids)))


@pytest.mark.parametrize("name", ["own", "byte_level", "sentencepiece"])
@pytest.mark.parametrize("order", ORDERS)
def test_tokens_and_choices(tokenizers_by_kind, name, order):
    tokenizer = tokenizers_by_kind[name]
    form = make_form(tokenizer, LABELS, DIMENSIONS, order, LENGTH, len(tokenizer) + 8, False)
    value = tuple(tokenizer.encode(" ab", add_special_tokens=False))[:2]
    full = (value * LENGTH)[:LENGTH]
    slots = []
    if form.template is not None:
        values = iter([value, full, full, value])
        for choice in form.template.choice.tolist():
            slots.append(next(values) if choice < 0 else form.template.alternative(choice, 1))
        assert holds(drawn_answer(form, order, slots, 1)[0], form.template.tokens(slots))
    ids, decided = drawn_answer(form, order, slots, 1)
    assert len(ids) == len(decided) <= form.longest
    assert (ids[-1], decided[-1]) == (form.end, False)
    assert holds(ids, form.verbalizers.tokens(1))
    # Tokens of values, the ends of the two that are shorter than they may be, two verdicts, and the label.
    of_label = 1 if form.verbalizers.scoring == "first_token" else len(form.verbalizers.rests[1])
    written = 2 * len(value) + 2 * LENGTH + 2 * (len(value) < LENGTH) + 2
    assert sum(decided) == of_label + (0 if order == "label_only" else written)

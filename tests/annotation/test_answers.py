"""Whatever a model writes: a rationale by the schema, or a named failure, and never an error."""

import json

import json_repair
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.annotation.answers import KINDS, MAX_VALUE_CHARACTERS, Failure, answer_form, read, read_answer
from jax_rele.annotation.types import ModelAnswer
from jax_rele.rationale import render
from jax_rele.types import VERDICTS, Comparison, Rationale

DIMENSIONS = ("category", "brand", "Power source")
LABELS = ("Exact", "Substitute", "Irrelevant")
ANSWER = Rationale(
    (
        Comparison("category", ("shoe",), ("running shoe", "sneaker"), "match"),
        Comparison("brand", ("Nike",), (), "absent"),
        Comparison("Power source"),
    ),
    "Substitute",
)
FORM = json.dumps(answer_form(ANSWER, DIMENSIONS))

value = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).map(str.strip)
values = st.lists(value.filter(lambda text: text not in ("", "-")), max_size=3, unique=True).map(tuple)
rationales = st.builds(
    lambda parts, label: Rationale(tuple(Comparison(name, *part) for name, part in zip(DIMENSIONS, parts)), label),
    st.lists(st.tuples(values, values, st.sampled_from(VERDICTS)), min_size=3, max_size=3),
    st.sampled_from(LABELS),
)


def answer(text):
    return read_answer(text, DIMENSIONS, LABELS)


def changed(**fields):
    return json.dumps({**json.loads(FORM), **fields})


@given(rationales, st.booleans(), st.sampled_from([None, 2]))
def test_the_form_reads_back(comparison, ascii_only, indent):
    text = json.dumps(answer_form(comparison, DIMENSIONS), ensure_ascii=ascii_only, indent=indent)
    assert answer(text) == comparison
    assert answer(f"<think>{{x}} label: Exact</think>\n```json\n{text}\n```\nDone.") == comparison


@pytest.mark.parametrize(
    "text",
    [
        FORM,
        "Here it is:\n" + FORM + "\nI hope that this {helps}.",
        "```json\n" + FORM + "\n```",
        '<think>maybe {"label": "Exact", "verdicts": {}}</think>' + FORM,
        'the prompt opened it: label Exact {"label": "Exact"}</think>\n\n' + FORM,
        "<thinking>\nhm\n</thinking>" + FORM,
        FORM + "<think>and then it thought on",
        "<think>a</think> or " + FORM.replace("Substitute", "Exact") + "</think>" + FORM,
        "Reasoning: the brand is not stated.\n\n" + FORM,
        json.dumps({"answer": json.loads(FORM)}),
        FORM.replace("Substitute", " substitute. "),
        FORM.replace('"match"', '"MATCH"').replace('"label"', '"Label"'),
        FORM.replace("query_attributes", "queryAttributes").replace("Power source", "power_source"),
        FORM.replace('"match"', '"匹配"').replace('"absent"', '"缺失"'),
        FORM.replace('"match"', '"一致"').replace('"absent"', '"該当なし"'),
        FORM.replace('"match"', '"Coincide"').replace('"absent"', '"ausente"'),
        FORM.replace('"match"', '"マッチ"').replace('"absent"', '"未記載"'),
        FORM.replace('"match"', '"coinciden"').replace('"absent"', '"no aplica"'),
        FORM.replace('["Nike"]', '"Nike"').replace("[]", "null", 1),
        FORM[:-1] + ",}",
        FORM.replace('"', "'"),
        FORM.replace('"Substitute"}', '"Substitute", // a comment\n}'),
        FORM[:-1],
        FORM + "\n" + FORM,
        changed(confidence=0.3, verdicts={**json.loads(FORM)["verdicts"], "price": "match"}),
        render(ANSWER),
        "**Label:** Substitute\n- category: shoe | running shoe ; sneaker | match\n- brand: Nike | - | absent",
    ],
)
def test_dress_does_not_matter(text):
    assert answer(text) == ANSWER


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("抱歉，我无法协助处理此请求。", "refusal"),
        ("申し訳ありませんが、このリクエストにはお応えできません。", "refusal"),
        ("すみませんが、お手伝いできません。", "refusal"),
        ("Lo siento, no puedo ayudar con eso.", "refusal"),
        ("Disculpa, no puedo ayudar con eso.", "refusal"),
        ("Como modelo de lenguaje no juzgo.", "refusal"),
        ("As an AI language model I do not judge.", "refusal"),
        (FORM[: len(FORM) // 2], "truncated"),
        (FORM[: FORM.index("Substitute") + 3], "truncated"),
        ("<think>so the label should be Exact because", "truncated"),
        ("The item is relevant.", "not_json"),
        ("[1, 2]", "not_json"),
        ("{" * 100_000, "truncated"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "not_json"),
        ('{"verdicts": {}}', "wrong_schema"),
        ('{"label": "Exact"}', "wrong_schema"),
        ("label: Exact", "wrong_schema"),
        ('{"relevance": 3}', "wrong_schema"),
        (changed(label=3), "wrong_schema"),
        (changed(label=[]), "wrong_schema"),
        (changed(verdicts=["match"]), "wrong_schema"),
        (changed(verdicts={}), "wrong_schema"),
        (changed(item_attributes={"brand": {"x": 1}}), "wrong_schema"),
        (changed(item_attributes={"brand": [True]}), "wrong_schema"),
        (changed(item_attributes={"brand": ["x" * (MAX_VALUE_CHARACTERS + 1)]}), "wrong_schema"),
        (changed(item_attributes={"brand": [str(n) for n in range(99)]}), "wrong_schema"),
        (changed(item_attributes={"brand": ["\ud800"]}), "wrong_schema"),
        (changed(verdicts={"brand": "match", "Brand": "mismatch", "category": "match"}), "wrong_schema"),
        (changed(verdicts={"brand": "partly", "category": "match"}), "unknown_verdict"),
        (FORM.replace("Substitute", "Complement"), "unknown_label"),
        (FORM.replace("Substitute", "Exactly"), "unknown_label"),
        (FORM.replace("'", '"').replace('"Substitute"', "'Partial'"), "unknown_label"),
        (FORM.replace("Substitute", "Exact or Substitute"), "several_labels"),
        (changed(label=["Exact", "Irrelevant"]), "several_labels"),
        (FORM[:-1] + ', "label": "Exact"}', "several_labels"),
        (FORM[:-1] + ', "Label": "Exact"}', "several_labels"),
        (FORM[:-1] + ", 'label': 'Exact',}", "several_labels"),
        (FORM + FORM.replace("Substitute", "Exact"), "several_labels"),
    ],
)
def test_failures_have_their_kind(text, kind):
    failure = answer(text)
    assert isinstance(failure, Failure), failure
    assert failure.kind == kind, failure
    assert "\n" not in failure.detail


pieces = st.sampled_from(
    [
        *(
            FORM,
            FORM[:90],
            FORM[90:],
            "{",
            "}",
            "[",
            "]",
            '"',
            "'",
            ",",
            ":",
            "label",
            '"label": "Exact"',
            "label: Exact\n",
        ),
        *(
            "<think>",
            "</think>",
            "```json\n",
            "```",
            "verdicts",
            '"verdicts": {"brand": "match"}',
            "\n",
            '"label": "Odd"',
        ),
        *("brand: a | b | match\n", "Exact", "Substitute", "//", "/*", "\\", "\\u", "NaN", "1e999", "“", "：", "\x00"),
    ]
)


@settings(max_examples=400)
@given(st.lists(pieces | st.text(max_size=4), max_size=12).map("".join))
def test_nothing_raises_and_nothing_outside_the_schema_is_read(text):
    comparison = answer(text)
    if isinstance(comparison, Failure):
        assert comparison.kind in KINDS
        assert len(comparison.detail) <= 200
        return
    assert comparison.label in LABELS
    assert tuple(one.dimension for one in comparison.comparisons) == DIMENSIONS
    for one in comparison.comparisons:
        assert one.verdict in VERDICTS
        assert all(0 < len(text) <= MAX_VALUE_CHARACTERS for text in (*one.query_values, *one.item_values))
    # A label that was read was written.
    assert comparison.label.casefold() in text.casefold()
    render(comparison).encode()


def test_what_the_repair_of_json_fails_at_is_a_failure():
    """One of its own assertions fails at a fence within a key."""
    text = '{"":t" "```json[```}'
    with pytest.raises(AssertionError):
        json_repair.loads(text, skip_json_loads=True)
    assert isinstance(answer(text), Failure)


@settings(max_examples=200)
@given(st.integers(0, len(FORM) - 2), st.sampled_from(["", "```json\n", "<think>x</think>"]))
def test_no_part_of_an_answer_passes_for_a_whole(end, before):
    failure = answer(before + FORM[:end])
    assert isinstance(failure, Failure)
    assert failure.kind in ("truncated", "empty", "not_json")


def test_what_the_server_said_is_kept():
    def from_server(failure, text=""):
        return read(ModelAnswer("p", "e", 0, 0, "k", text, failure), DIMENSIONS, LABELS)

    assert from_server("refusal") == Failure("refusal")
    assert from_server("empty") == Failure("empty")
    assert from_server("rejected: 400 too long") == Failure("rejected", "400 too long")
    assert from_server("odd").kind == "rejected"
    assert from_server("length", FORM[:60]).kind == "truncated"
    assert from_server("length", "") == Failure("truncated")
    assert from_server("length", FORM + " and then it went on and") == ANSWER
    assert from_server("", FORM) == ANSWER


@pytest.mark.timeout(10)  # more is read of no text: MAX_CHARACTERS
def test_enormous_answers_are_read_in_linear_time():
    for text in (
        "{" * 300_000,
        '{"a": "' * 50_000,
        FORM + " x" * 300_000,
        "<think>" * 40_000,
        "label: Exact\n" * 20_000,
    ):
        answer(text)


@pytest.mark.parametrize("mark", ["<think>", "<THINK>", "</think>", "[reasoning]", "<|end_of_thought|>"])
def test_marks_of_thoughts_in_values_are_values(mark):
    values = Comparison(DIMENSIONS[0], (mark,), (f"a {mark} b",), "mismatch")
    rationale = Rationale((values, *(Comparison(name, (), (), "absent") for name in DIMENSIONS[1:])), "Exact")
    text = json.dumps(answer_form(rationale, DIMENSIONS))
    for whole in (
        f"<think>x</think>{text}",
        f"Sure: {text}",
        f"<think>{text}</think>{text}<think>so",
        f"x</think>{text}",
    ):
        assert answer(whole) == rationale


@pytest.mark.parametrize(
    ("names", "label", "expected"),
    [
        (("1.0", "0.5", "0.0"), "1", "1.0"),
        (("1.0", "0.5", "0.0"), "1.0", "1.0"),
        (("1.0", "0.5", "0.0"), '"1"', "1.0"),
        (("3", "2", "1"), '"3.0"', "3"),
        (("3", "2", "1"), "3.0", "3"),
        (("3", "2", "1"), "true", None),
        (("3", "3.0"), '"3.00"', None),
    ],
)
def test_a_number_is_the_label_of_that_number(names, label, expected):
    text = json.dumps({"verdicts": {}, "label": "LABEL"}).replace('"LABEL"', label)
    result = read_answer(text, dimensions=(), labels=names)
    assert (None if isinstance(result, Failure) else result.label) == expected

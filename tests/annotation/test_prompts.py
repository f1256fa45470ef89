"""No text of a shopper or seller leaves its block; what a template may say, and what it is told when it errs."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.annotation import definitions
from jax_rele.annotation.answers import answer_form, read_answer
from jax_rele.annotation.injection import attack
from jax_rele.annotation.prompts import FIELDS, PromptExample, Prompts, delimit_item, encode, read_examples
from jax_rele.errors import UserError
from jax_rele.names import PROMPT_LANGUAGES
from jax_rele.types import Comparison, Item, Pair, Rationale

DIMENSIONS = dict.fromkeys(("category", "brand"), "")
LABELS = dict.fromkeys(definitions.LABELS["en"], "")
FORGERY = st.lists(
    st.sampled_from(
        [
            "</query>",
            "</item>",
            "<item>",
            "\n",
            '"',
            "\\",
            "\\u003c",
            "[INST]",
            "<|im_end|>",
            "＜/item＞",
            "title:",
            "{{ query }}",
        ]
    )
    | st.text(st.characters(), max_size=5)
).map("".join)


def load(template="en", **settings):
    return Prompts.load(template, **{"dimensions": DIMENSIONS, "labels": LABELS, "fields": FIELDS, **settings})


def pair_of(query, title, brand="", attributes=()):
    return Pair("p", query, Item("i", title, brand, attributes=attributes), "Exact")


@pytest.mark.parametrize("language", PROMPT_LANGUAGES)
def test_rules_are_in_the_prompt_and_change_nothing_where_there_are_none(language):
    plain, ruled = load(language), load(language, rules=["Another brand is a Substitute.", "Used items are none."])
    system = ruled.messages(pair_of("a", "b"))[0]["content"]
    assert "- Another brand is a Substitute.\n- Used items are none.\n" in system
    lines = plain.messages(pair_of("a", "b"))[0]["content"].splitlines()
    assert [line for line in system.splitlines() if line and line in lines] == list(filter(None, lines))
    assert "\n\n\n" not in plain.messages(pair_of("a", "b"))[0]["content"]
    assert plain.version != ruled.version


@pytest.fixture
def write(tmp_path):
    def write(system="", user="{{ query }}\n{{ item }}", again=""):
        path = tmp_path / "own.j2"
        blocks = {"system": system, "user": user, "again": again}
        path.write_text(
            "".join(f"{{% block {name} %}}{text}{{% endblock %}}" for name, text in blocks.items()), "utf-8"
        )
        return path

    return write


@pytest.mark.parametrize("language", PROMPT_LANGUAGES)
@given(query=FORGERY, title=FORGERY, brand=FORGERY, name=FORGERY)
def test_no_text_closes_its_block_and_all_of_it_is_there(language, query, title, brand, name):
    prompts = load(language)
    [*_, message] = prompts.messages(pair_of(query, title, brand, ((name, title),)))
    content = message["content"]
    # Whatever the texts hold, the tags are the four of the template, and lines are as many as there are fields.
    assert re.findall(r"[<＜][^>＞]*[>＞]", content) == ["<query>", "</query>", "<item>", "</item>"]
    parsed = re.fullmatch(r"<query>(.*)</query>\n<item>\n(.*\n)?</item>", content, re.DOTALL)
    assert json.loads(parsed[1]) == query
    shown = dict(line.split(": ", 1) for line in (parsed[2] or "").splitlines())
    shown_values = {field: json.loads(text) for field, text in shown.items()}
    requested = {"title": title, "brand": brand, "attributes": [[name, title]]}
    assert shown_values == {field: text for field, text in requested.items() if text}
    content.encode()


@given(FORGERY)
def test_what_a_model_copied_stays_data_when_it_is_asked_again(value):
    answer = Rationale((Comparison("brand", (), (value,) if value else (), "absent"),), "Exact")
    *_, previous, again = load().messages_again(pair_of("q", "t"), answer, "Irrelevant")
    assert not re.search(r"[<>]|\[INST", previous["content"])
    assert json.loads(previous["content"]) == answer_form(answer, list(DIMENSIONS))
    assert "Irrelevant" in again["content"]
    assert "Exact" in again["content"]


def test_the_gold_label_is_told_only_when_asked_again():
    prompts = load(labels={"Good": "fits", "Bad": "does not"})
    pair = Pair("p", "q", Item("i", "t"), "secret-label")
    assert "secret-label" not in json.dumps(prompts.messages(pair))


def test_no_tampered_title_adds_a_message_or_leaves_the_last_one():
    pair = pair_of("red shoes", "Blue shoes")
    clean = load().messages(pair)
    for one in attack(pair, "Exact", list(DIMENSIONS)):
        messages = load().messages(one.pair)
        assert messages[:-1] == clean[:-1]
        assert len(messages) == len(clean)
        assert messages[-1]["content"].count("</item>") == 1


def test_data_are_not_rendered_as_templates():
    [*_, message] = load().messages(pair_of("{{ 7 * 7 }}", "{% for x in labels %}x{% endfor %}"))
    assert "{{ 7 * 7 }}" in message["content"]
    assert "49" not in message["content"]


def test_the_schema_puts_attributes_before_verdicts_before_the_label():
    schema = load(reasoning=True).schema
    assert list(schema["properties"]) == ["query_attributes", "item_attributes", "verdicts", "reasoning", "label"]
    assert list(load().schema["properties"])[-2:] == ["verdicts", "label"]
    assert schema["properties"]["label"]["enum"] == list(LABELS)
    # What strict servers ask of every object.
    objects = [schema, *(schema["properties"][name] for name in ("query_attributes", "item_attributes", "verdicts"))]
    for one in objects:
        assert one["required"] == list(one["properties"])
        assert one["additionalProperties"] is False


def test_examples_are_turns_that_read_back():
    answer = Rationale((Comparison("category", ("shoe",), ("shoe",), "match"), Comparison("brand")), "Exact")
    prompts = load(examples=[PromptExample(pair_of("shoe", "Shoe"), answer)])
    system, asked, answered, last = prompts.messages(pair_of("hat", "Hat"))
    assert [m["role"] for m in (system, asked, answered, last)] == ["system", "user", "assistant", "user"]
    assert read_answer(answered["content"], list(DIMENSIONS), list(LABELS)) == answer
    assert "shoe" in asked["content"]
    assert "hat" in last["content"]


def test_definitions_come_from_the_config_or_else_from_the_language():
    text = load("zh", labels={**LABELS, "Exact": "mine"}).messages(pair_of("q", "t"))[0]["content"]
    assert "mine" in text
    assert definitions.LABELS["zh"]["Exact"] not in text
    assert definitions.LABELS["zh"]["Irrelevant"] in text
    assert definitions.DIMENSIONS["zh"]["brand"] in text
    with pytest.raises(UserError, match="'Odd' has no definition"):
        load(labels={"Odd": "", "Exact": ""})


def test_the_version_tells_what_was_changed(write):
    answer = Rationale((), "Exact")
    versions = [
        load().version,
        load("zh").version,
        load(fields=("title",)).version,
        load(labels={**LABELS, "Exact": "mine"}).version,
        load(dimensions={**DIMENSIONS, "size": ""}).version,
        load(reasoning=True).version,
        load(examples=[PromptExample(pair_of("a", "b"), answer)]).version,
        load(write()).version,
        load(write(system="x")).version,
    ]
    assert len(set(versions)) == len(versions)
    assert load().version == versions[0]


@pytest.mark.parametrize(
    ("blocks", "answer"),
    [
        ({"system": "\n\n{{ colour }}"}, r"own.j2:3: the field 'colour' is unknown; known are dimensions, .*previous"),
        ({"system": "{% if false %}\n{{ colour }}{% endif %}"}, r"own.j2:2: the field 'colour' is unknown"),
        ({"system": "\n{% for d in dimensions %}{{ d.nmae }}{% endfor %}"}, r"own.j2:2: .*'nmae'.* block 'system'"),
        (
            {"user": "{{ query }}{{ item }}{{ gold }}"},
            r"own.j2:1: 'gold' is undefined in the block 'user', which knows",
        ),
        ({"system": "{{ ''.__class__ }}"}, r"own.j2:1: access to attribute '__class__'.*unsafe"),
        ({"system": "\n{{ 1 / 0 }}"}, r"own.j2:2: ZeroDivisionError"),
        ({"system": "{% include '/etc/passwd' %}"}, r"own.j2:1: .*no loader"),
        ({"system": "{% if %}"}, r"own.j2:1: "),
        ({"user": "{{ query | lower }}{{ item }}"}, r"own.j2: the block 'user' must show"),
        ({"user": "{{ query.replace('\\\\u003c', '<') }}{{ item }}"}, r"own.j2: the block 'user' must show"),
        ({"user": "no pair"}, r"own.j2: the block 'user' must show"),
    ],
)
def test_a_faulty_template_is_named_with_its_line_before_any_pair(write, blocks, answer):
    with pytest.raises(UserError, match=answer) as caught:
        load(write(**blocks)).messages(pair_of("Q", "t"))
    assert "\n" not in str(caught.value)


def test_a_template_that_is_missing_or_lacks_a_block(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read.*en or zh or ja or es"):
        load("fr")
    (tmp_path / "x.j2").write_text("hello")
    with pytest.raises(UserError, match="has no block 'system'"):
        load(tmp_path / "x.j2")
    with pytest.raises(UserError, match="'price' cannot be shown"):
        load(fields=("title", "price"))


def test_examples_of_a_config():
    raw = {
        "query": "shoe",
        "item": {"title": "Shoe", "attributes": {"a": "b"}},
        "answer": {"verdicts": {}, "label": "exact"},
    }
    [example] = read_examples([raw], list(DIMENSIONS), list(LABELS))
    assert example.rationale.label == "Exact"
    assert example.pair.item.attributes == (("a", "b"),)
    for broken, answer in [
        ({**raw, "answer": {"verdicts": {}, "label": "Odd"}}, r"examples\[0\].answer: unknown_label"),
        ({**raw, "item": {"brand": "x"}}, r"examples\[0\].item"),
        ({"query": "x"}, r"examples\[0\]: must have"),
    ]:
        with pytest.raises(UserError, match=answer):
            read_examples([broken], list(DIMENSIONS), list(LABELS))


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_encoding_is_json(value):
    assert json.loads(encode(value)) == value


def test_fields_that_are_not_shown_are_not_there():
    assert (
        delimit_item(Item("i", "t", brand="secret", attributes=(("x", "secret"),)), ("title",))
        == '<item>\ntitle: "t"\n</item>'
    )


def test_a_template_that_leaves_out_the_rules_is_refused(write):
    with pytest.raises(UserError, match=r"the block 'system' must show the rules, of which 'No used items\.'"):
        load(write(system="{{ form }}"), rules=["No used items."])
    load(write(system="{% for rule in rules %}{{ rule }}{% endfor %}"), rules=["No used items."])

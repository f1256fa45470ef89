import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jax_rele.rationale.grammar import (
    KINDS,
    ORDERS,
    VALUE_DELIMITERS,
    ParseError,
    Segment,
    escape,
    parse,
    prompt,
    render,
    segments,
    template,
    unescape,
)
from jax_rele.types import ITEM_FIELDS, VERDICTS, Comparison, Item, Pair, Rationale

MARKERS = ["\\", "|", ";", ":", "-", " ", "\n", "\r", "\t", "\x85", "\u2028", "\u00a0", " ; ", " | ", "label: Exact"]
MARKERS += [
    "label",
    "match",
    "\\n",
    "\\u006c",
    "<think>",
    "</think>",
    "```",
    "**",
    "\u202e",
    "عربي",
    "👩‍👧",
    "e\u0301",
    "judge:",
]

texts = st.one_of(
    st.text(), st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=2)), max_size=6).map("".join)
)
names = texts.filter(bool)
values = st.lists(names, max_size=3).map(tuple)
verdicts = st.sampled_from(VERDICTS)
rationales = st.builds(
    Rationale,
    st.lists(st.builds(Comparison, names, values, values, verdicts), max_size=4, unique_by=lambda c: c.dimension).map(
        tuple
    ),
    st.none() | names,
)

BATTERY = Rationale(
    (
        Comparison("category", ("battery", "power; bank"), ("Portable | Charger",), "mismatch"),
        Comparison("brand", (), ("-",), "absent"),
        Comparison("label", ("a:b",), ("two\nlines\\",), "match"),
    ),
    "Substitute",
)
BATTERY_TEXT = (
    "category: battery ; power\\; bank | Portable \\| Charger | mismatch\n"
    "brand: - | \\- | absent\n"
    "\\u006cabel: a\\:b | two\\nlines\\\\ | match\n"
    "label: Substitute"
)


def test_text_is_as_documented():
    assert render(BATTERY) == BATTERY_TEXT
    *comparisons, label = BATTERY_TEXT.split("\n")
    assert render(BATTERY, "label_first").split("\n") == [label, *comparisons]
    assert render(BATTERY, "label_only") == label


@given(rationales, st.sampled_from(ORDERS))
@example(BATTERY, "label_first")
@example(Rationale((Comparison("label", verdict="match"),)), "rationale_first")
@example(Rationale((), "a | b | match"), "rationale_first")
@example(Rationale((Comparison("d", ("\u2028", " x ", "- ", "-"), ("\\", "\\;", "\\u0041")),), "-"), "rationale_first")
def test_parse_inverts_render(rationale, order):
    expected = Rationale((), rationale.label) if order == "label_only" else rationale
    assert parse(render(rationale, order)) == expected


@given(rationales, st.sampled_from(ORDERS))
def test_content_cannot_add_lines(rationale, order):
    lines = 0 if order == "label_only" else len(rationale.comparisons)
    lines += rationale.label is not None
    assert len(render(rationale, order).splitlines()) == lines


@given(rationales, st.sampled_from(ORDERS), st.data())
def test_parse_accepts_only_what_render_writes(rationale, order, data):
    text = render(rationale, order)
    position = data.draw(st.integers(0, len(text)))
    removed = data.draw(st.integers(0, 2))
    edited = text[:position] + data.draw(st.sampled_from(["", *MARKERS])) + text[position + removed :]
    try:
        parsed = parse(edited)
    except ParseError:
        return
    assert edited in {render(parsed, o) for o in ORDERS}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("brand: - | Sony | absent\nprose", 2, "expected 'dimension: query values"),
        ("brand: - | Sony\nlabel: E", 1, "expected 'dimension: query values"),
        ("brand: - | Sony | absent\nbrand: - | Sony | absent", 2, "twice"),
        ("label: E\nlabel: E", 2, "a second label"),
        ("a: - | - | absent\nlabel: E\nb: - | - | absent", 2, "between comparisons"),
        ("brand: - | Sony | perhaps", 1, "'perhaps' is not one of match, mismatch, absent"),
        ("brand: - | Sony | Absent", 1, "'Absent' is not one of"),
        ("brand:- | Sony | absent", 1, "a space after"),
        ("brand: -| Sony | absent", 1, "a space before"),
        ("brand: - | a ;  | absent", 1, "empty"),
        ("brand: - | a;b | absent", 1, "is not how"),
        ("brand: - | a:b | absent", 1, "is not how"),
        ("brand: - | a\\x | absent", 1, "is not an escape"),
        ("br\\and: - | a | absent", 1, "is not an escape"),
        ("brand: - | \\u0041 | absent", 1, "is not how"),
        ("label: - | a | absent", 1, "is not how"),
        ("label:", 1, "a space after"),
        ("label: ", 1, "empty"),
        ("label: E\n", 2, "expected"),
        ("label: \\ud800", 1, "is not an escape"),
    ],
)
def test_parse_error_says_where_and_why(text, line, reason):
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert caught.value.line == line
    assert reason in caught.value.reason
    assert str(caught.value) == f"line {line}: {caught.value.reason}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@given(rationales, st.sampled_from(ORDERS))
def test_segments_join_to_the_text_and_hold_only_their_own(rationale, order):
    parts = segments(rationale, order)
    assert "".join(part.text for part in parts) == render(rationale, order)
    by_name = {c.dimension: c for c in rationale.comparisons}
    for part in parts:
        assert part.kind in KINDS
        if part.kind == "fixed":
            continue
        assert part.text[0] == " "
        assert part.text[1:2] != " "
        if part.kind == "verdict":
            assert part.text[1:] == by_name[part.dimension].verdict
        elif part.kind == "label":
            assert (part.dimension, unescape(part.text[1:])) == (None, rationale.label)
        else:
            values = getattr(by_name[part.dimension], part.kind)
            pieces = [] if part.text == " -" else part.text[1:].split(" ; ")
            assert tuple(map(unescape, pieces)) == values


@given(rationales.filter(lambda r: r.label is not None), st.sampled_from(ORDERS))
def test_template_is_the_segments_without_content(rationale, order):
    empty = [s if s.kind == "fixed" else Segment(s.kind, "", s.dimension) for s in segments(rationale, order)]
    assert template([c.dimension for c in rationale.comparisons], order) == empty


@given(texts)
def test_escaped_text_is_one_line_without_markers(text):
    escaped = escape(text)
    assert unescape(escaped) == text
    assert len(escaped.splitlines()) <= 1
    assert escaped == escaped.strip()
    assert escaped != "-"
    bare = escaped.replace("\\\\", "").replace("\\|", "").replace("\\;", "").replace("\\:", "")
    assert not set(bare) & {*VALUE_DELIMITERS, ":"}


@pytest.mark.parametrize("separator", "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
def test_every_line_separator_is_escaped(separator):
    assert len(f"a{separator}b".splitlines()) == 2
    assert escape(f"a{separator}b").splitlines() == [escape(f"a{separator}b")]


def test_unescape_refuses_or_keeps_what_is_no_escape():
    for text in ("\\", "\\x", "\\u00", "a\\ b", "\\uD800"):
        with pytest.raises(ValueError, match="not an escape"):
            unescape(text)
        assert unescape(text, strict=False) == text


@given(texts, st.dictionaries(st.sampled_from(ITEM_FIELDS), texts))
def test_prompt_holds_one_line_per_text(query, item_texts):
    pair = Pair("1", query, Item(id="i", **{"title": "", **item_texts}))
    text = prompt(pair, ITEM_FIELDS)
    *lines, last, end = text.split("\n")
    assert (last, end) == ("judge:", "")
    assert len(text.splitlines()) == len(lines) + 1
    expected = [("query", query)] + [(f, item_texts[f]) for f in ITEM_FIELDS if item_texts.get(f)]
    assert [(line.split(": ", 1)[0], unescape(line.split(": ", 1)[1])) for line in lines] == expected


def test_prompt_reads_the_given_fields_in_their_order():
    pair = Pair("1", "tv", Item("i", "Big\nTV: 4K", brand="LG", color="", bullets="x"))
    assert prompt(pair, ("brand", "color", "title")) == "query: tv\nbrand: LG\ntitle: Big\\nTV\\: 4K\njudge:\n"


@pytest.mark.parametrize("call", [lambda: render(BATTERY, "last"), lambda: template(["a"], "last")])
def test_unknown_order_is_refused(call):
    with pytest.raises(ValueError, match="order must be one of"):
        call()

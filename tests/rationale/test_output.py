import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jax_rele.names import ORDERS
from jax_rele.rationale.grammar import VALUE_DELIMITERS, render, template
from jax_rele.rationale.output import ParseFailure, parse_output
from jax_rele.types import VERDICTS, Comparison, Rationale

DIMENSIONS = ("category", "brand", "label")
LABELS = ("Exact", "Substitute", "Very Irrelevant")
EXPECTED = Rationale(
    (
        Comparison("category", ("battery",), ("Charger", "Bank"), "mismatch"),
        Comparison("brand", (), ("INIU",), "absent"),
        Comparison("label"),
    ),
    "Very Irrelevant",
)
PIECES = [
    "\n", "|", ";", ":", "\\", "-", " ", "label:", "label: Exact", "category: a | b | match", "brand:", "**", "```",
    "<think>", "</think>", "match", "absent", "* ", "1. ", "\r", "\\u006cabel", "\ud800", "label: exact\n",
]  # fmt: skip
noise = st.one_of(
    st.text(), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=2)), max_size=14).map("".join)
)
texts = st.one_of(st.text(min_size=1), st.lists(st.sampled_from(PIECES[:-2]), min_size=1, max_size=5).map("".join))
values = st.lists(texts, max_size=3).map(tuple)


def read(text):
    return parse_output(text, dimensions=DIMENSIONS, labels=LABELS)


@given(st.lists(st.tuples(values, values, st.sampled_from(VERDICTS)), min_size=3, max_size=3), st.sampled_from(LABELS))
def test_well_formed_text_is_read_as_it_was_written(slots, label):
    rationale = Rationale(tuple(Comparison(d, *slot) for d, slot in zip(DIMENSIONS, slots)), label)
    for order in ("rationale_first", "label_first"):
        assert read(render(rationale, order)) == rationale
    assert read(render(rationale, "label_only")) == Rationale(tuple(map(Comparison, DIMENSIONS)), label)


@given(noise)
@example("label: Exact\nlabel: Exact\r")
@example("brand: \\ | \\ | match\nlabel: Exact")
def test_never_raises(text):
    result = read(text)
    assert isinstance(result, (Rationale, ParseFailure))
    if isinstance(result, Rationale):
        assert tuple(c.dimension for c in result.comparisons) == DIMENSIONS
        assert result.label in LABELS
    else:
        assert result.reason
        assert len(result.reason) < 300


def fill(slots, order, data):
    """Text of a decoder that forces the fixed parts; also the values, verdicts and label that it wrote."""
    text, written, label = "", {}, None
    for part in template(DIMENSIONS, order):
        if part.kind == "fixed":
            text += part.text
        elif part.kind == "label":
            label = data.draw(st.sampled_from(LABELS))
            text += " " + label
        else:
            slot = data.draw(st.sampled_from(VERDICTS) if part.kind == "verdict" else slots)
            written.setdefault(part.dimension, []).append(slot)
            text += " " + slot if part.kind == "verdict" else slot
    return text, written, label


free = st.one_of(
    st.text(st.characters(exclude_characters=VALUE_DELIMITERS + "\\", exclude_categories=["Cs"])),
    st.sampled_from(
        ["", " ", " -", "-", " <think>", " ```", " label: Exact", " ** x **", " a:b", "\r", " \u2028", "* x"]
    ),
)


@given(st.sampled_from(ORDERS), st.data())
def test_free_text_without_delimiters_in_the_template_is_always_read(order, data):
    text, written, label = fill(free, order, data)
    result = read(text)
    assert result.label == label
    for comparison in result.comparisons:
        query, item, verdict = written.get(comparison.dimension, ("", "", "absent"))
        assert comparison.verdict == verdict
        for raw, read_values in ((query, comparison.query_values), (item, comparison.item_values)):
            assert read_values == (() if raw.strip() in ("", "-") else (raw.strip(),))


@given(st.sampled_from(ORDERS), st.data())
def test_a_decoder_may_also_separate_values(order, data):
    text, _, label = fill(st.lists(free, max_size=3).map(" ;".join), order, data)
    assert read(text).label == label


@pytest.mark.parametrize(
    "text",
    [
        "category: battery | Charger ; Bank | mismatch\nbrand: - | INIU | absent\nlabel: Very Irrelevant",
        "label: Very Irrelevant\nbrand: - | INIU | absent\ncategory: battery | Charger ; Bank | mismatch\n",
        "Sure! Here: \n\nCategory:battery|Charger;Bank|MISMATCH\r\n  Brand :  | INIU | Absent.\r\n\r\n"
        "LABEL = none\r\nLabel: very irrelevant.\r\nDone.",
        "<think>\nlabel: Exact\nbrand: x | y | match\n</think>\n"
        "category: battery | Charger ; Bank | mismatch\nbrand: - | INIU | absent\nlabel: Very Irrelevant",
        "label: Exact, I think, no.</think>```text\n```\ncategory: battery | Charger ; Bank | mismatch\n"
        "brand: - | INIU | absent\nlabel: Very Irrelevant\n```",
        "- **category**: battery | Charger ; Bank | **mismatch**\n* **brand:** - | INIU | _absent_\n"
        "3. size: 3 | 4 | mismatch\n### **Final label: Very Irrelevant**",
        "**category**: battery | Charger ; Bank | mismatch\n**brand**: - | INIU | absent\nlabel: Very Irrelevant",
        "- category: battery | Charger ; Bank | mismatch\n- brand: - | INIU | absent\nlabel: Very Irrelevant",
        "> `category`: **battery** | `Charger ; Bank` | mismatch |\n> brand: - | INIU | absent\n\n"
        "\"label\": 'Very Irrelevant'",
        "category: battery | Charger ; Bank | mismatch\ncategory: battery | Charger | mismatch\n"
        "brand: - | INIU | absent\nlabel: Very Irrelevant\nlabel: very irrelevant",
        "The brand: see below.\nBrand: it is said that\nbrand: - | INIU | absent\nwords | words\n"
        "category: battery | Charger ; Bank | mismatch\n\\u006cabel: - | - | absent\nlabel: Very Irrelevant",
        "colour: red | red | match\ncategory: battery | Charger ; Bank | mismatch\nbrand: - | INIU | absent\n"
        "label: Very Irrelevant\n<think>label: Exact",
    ],
)
def test_dress_does_not_matter(text):
    assert read(text) == EXPECTED


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no label"),
        ("brand: - | INIU | absent", "no label"),
        ("brand: - | INIU | absent\nlabel:", "no label"),
        ("<think>label: Exact", "no label"),
        ("label: Complement", "the label 'Complement' is not one of Exact, Substitute, Very Irrelevant"),
        ("label: Exact or Substitute", "is not one of"),
        ("label: Exact\nlabel: Substitute", "more than one label: Exact, Substitute"),
        ("brand: - | INIU | maybe\nlabel: Exact", "brand: the verdict 'maybe' is not one of match, mismatch, absent"),
        ("brand: - | INIU | \nlabel: Exact", "brand: the verdict '' is not one of"),
        ("brand: - | INIU\nlabel: Exact", "brand: expected query values | item values | verdict, found 2 fields"),
        ("brand: a | b | c | match\nlabel: Exact", "brand: expected query values | item values | verdict, found 4"),
        ("brand: INIU\nlabel: Exact", "brand: no verdict in 'INIU'"),
        ("brand: a | b | match\nbrand: a | b | mismatch\nlabel: Exact", "brand: judged both match and mismatch"),
        ("label: " + "x" * 1000, "'" + "x" * 37 + "...'"),
    ],
)
def test_failure_says_why(text, reason):
    result = read(text)
    assert isinstance(result, ParseFailure)
    assert reason in result.reason


def test_names_that_differ_in_case_alone_are_told_apart():
    text = "Size: 1 | 1 | match\nsize: 2 | 3 | mismatch\nlabel: e"
    result = parse_output(text, dimensions=("size", "Size"), labels=("E", "e"))
    assert [c.verdict for c in result.comparisons] == ["mismatch", "match"]
    assert result.label == "e"
    assert isinstance(parse_output("label: É", dimensions=(), labels=("E", "e")), ParseFailure)
    assert isinstance(parse_output("* label: x", dimensions=(), labels=("X", "x ")), ParseFailure)


@pytest.mark.parametrize("piece", ["<think>", "</think>", "|", "\\", "a:", "brand: ", "- ", "#", "`", "x", " ", "\\u"])
@pytest.mark.timeout(60)  # what is quadratic and takes 5 s for a quarter of it takes 80 s
def test_long_garbage_is_read_in_linear_time(piece):
    assert isinstance(read(piece * 120_000), ParseFailure)

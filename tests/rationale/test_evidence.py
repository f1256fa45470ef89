from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.rationale.evidence import find_evidence, token_tags
from jax_rele.rationale.words import key
from jax_rele.types import ITEM_FIELDS, QUERY, Comparison, Item, Pair, Rationale, Span

PIECES = [
    "red",
    "Reds",
    "T-shirt",
    "tshirt",
    "İzmir",
    "izmir",
    "Straße",
    "STRASSE",
    "e\u0301",
    "👟",
    " ",
    "the",
    ", ",
    "カバン",
    '12"',
]
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=2)), max_size=8).map("".join)
DIMENSIONS = ("color", "category", "brand")


def text_of(pair, span):
    text = pair.query if span.source == QUERY else getattr(pair.item, span.source)
    return text[span.start : span.end]


def make(query, title, *comparisons, **item):
    return Pair("1", query, Item("i", title, **item)), Rationale(tuple(Comparison(*c) for c in comparisons))


@pytest.mark.parametrize(
    ("text", "value", "spans"),
    [
        ("İİ red İ REDS", "Red", ["red", "REDS"]),
        ("aus Straße, STRASSE!", "strasse", ["Straße", "STRASSE"]),
        ("👩‍👧👟 cafe\u0301 CAFÉ", "café", ["cafe\u0301", "CAFÉ"]),
        ("T-shirts and TSHIRT", "t shirt", ["T-shirts", "TSHIRT"]),
        ("The North Face / NorthFace", "the north face", ["North Face", "NorthFace"]),
        ("redder scarred", "red", []),
        ('TV 12" or 12 inches', "12 inch", ['12"', "12 inches"]),
        ("黒いカバン", "カバン", ["カバン"]),
        ("red", "🔥", []),
    ],
)
def test_values_are_found_in_the_original_text(text, value, spans):
    for pair, rationale in (
        make(text, "x", ("color", (value,))),
        make("x", text, ("color", (), (value,))),
    ):
        assert [text_of(pair, span) for span in find_evidence(pair, rationale, ["title"])] == spans


def test_query_values_stand_in_the_query_and_item_values_in_the_given_fields():
    pair, rationale = make("red", "red blue", ("color", ("red",), ("blue",)), color="Blue", bullets="blue")
    assert find_evidence(pair, rationale, ["color", "title", "brand"]) == (
        Span("query", 0, 3, "color"),
        Span("color", 0, 4, "color"),
        Span("title", 4, 8, "color"),
    )


def test_overlaps_go_to_more_words_then_to_the_earlier_dimension():
    pair, rationale = make(
        "rose gold ring", "x", ("material", ("gold", "gold ring")), ("color", ("rose gold",)), ("category", ("ring",))
    )
    assert [(text_of(pair, s), s.dimension) for s in find_evidence(pair, rationale, [])] == [("gold ring", "material")]
    pair, rationale = make("gold", "x", ("color", ("gold",)), ("material", ("gold",)))
    assert find_evidence(pair, rationale, []) == (Span("query", 0, 4, "color"),)


@given(texts, st.dictionaries(st.sampled_from(ITEM_FIELDS), texts), st.lists(texts.filter(bool), max_size=6), st.data())
def test_every_span_says_its_value(query, item_texts, values, data):
    sides = (
        data.draw(st.lists(st.tuples(*[st.lists(st.sampled_from(values), max_size=2).map(tuple)] * 2), max_size=3))
        if values
        else []
    )
    pair, rationale = make(
        query, item_texts.pop("title", ""), *[(d, *side) for d, side in zip(DIMENSIONS, sides)], **item_texts
    )
    fields = data.draw(st.lists(st.sampled_from(ITEM_FIELDS), unique=True))
    spans = find_evidence(pair, rationale, fields)
    stated = {c.dimension: c for c in rationale.comparisons}
    sources = [QUERY, *fields]
    for span in spans:
        comparison = stated[span.dimension]
        side = comparison.query_values if span.source == QUERY else comparison.item_values
        assert key(text_of(pair, span)) in {key(value) for value in side} - {""}
    order = [(sources.index(s.source), s.start, s.end) for s in spans]
    assert order == sorted(order)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(order))
    # A source that is one value as a whole has evidence.
    for source, text in [(QUERY, pair.query), *pair.item.texts(fields)]:
        side_values = [v for c in rationale.comparisons for v in (c.query_values if source == QUERY else c.item_values)]
        if key(text) and text in side_values:
            assert any(span.source == source for span in spans)


boundaries = st.lists(st.integers(0, 30), max_size=8).map(lambda cuts: [0, *sorted(cuts)])


@given(boundaries, st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))), st.data())
def test_token_tags_lie_where_spans_do(cuts, offsets, data):
    spans = [
        Span(data.draw(st.sampled_from(["query", "title"])), start, end, data.draw(st.sampled_from(DIMENSIONS)))
        for start, end in pairwise(cuts)
        if start < end and data.draw(st.booleans())
    ]
    tags = token_tags(spans, "title", offsets, DIMENSIONS)
    assert len(tags) == len(offsets)
    for tag, (start, end) in zip(tags, offsets):
        counts = [0] * (1 + len(DIMENSIONS))
        for span in spans:
            if span.source == "title":
                counts[1 + DIMENSIONS.index(span.dimension)] += len(
                    set(range(start, end)) & set(range(span.start, span.end))
                )
        assert counts[tag] == max(counts)
        assert (tag == 0) == (max(counts) == 0)


def test_token_tags_of_real_tokens():
    text = "red t-shirts"
    spans = [Span("title", 0, 3, "color"), Span("title", 4, 12, "category")]
    offsets = [(0, 0), (0, 3), (3, 5), (5, 6), (6, 12), (0, 0)]
    assert text[4:12] == "t-shirts"
    assert token_tags(spans, "title", offsets, DIMENSIONS) == [0, 1, 2, 2, 2, 0]
    assert token_tags(spans, "query", offsets, DIMENSIONS) == [0] * 6
    assert token_tags(spans, "title", [(1, 5)], DIMENSIONS) == [1]
    assert token_tags(spans, "title", [(2, 5)], DIMENSIONS) == [1]
    assert token_tags(spans, "title", [(2, 6)], DIMENSIONS) == [2]


def test_token_tags_refuse_an_unknown_dimension():
    with pytest.raises(ValueError, match="'color'"):
        token_tags([Span("title", 0, 3, "color")], "title", [(0, 3)], ("brand",))
    assert token_tags([Span("query", 0, 3, "color")], "title", [(0, 3)], ("brand",)) == [0]

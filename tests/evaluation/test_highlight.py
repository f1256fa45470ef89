"""Cut texts lose nothing, and every character carries just the dimensions that cover it."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from jax_rele.evaluation.highlight import segments
from jax_rele.types import Span

spans = st.lists(
    st.builds(
        Span,
        st.just("title"),
        st.integers(-3, 40),
        st.integers(-3, 40),
        st.sampled_from(["brand", "color", "size"]),
    ),
    max_size=8,
)


@given(st.text(max_size=30), spans)
def test_every_character_has_the_dimensions_that_cover_it(text, spans):
    pieces = segments(text, spans)
    assert "".join(piece for piece, _ in pieces) == text
    covering = [set(dimensions) for piece, dimensions in pieces for _ in piece]
    for index, dimensions in enumerate(covering):
        assert dimensions == {span.dimension for span in spans if span.start <= index < span.end}


@given(st.text(max_size=30), spans)
def test_pieces_are_as_long_as_they_can_be(text, spans):
    pieces = segments(text, spans)
    assert all(piece for piece, _ in pieces)
    assert all(left[1] != right[1] for left, right in itertools.pairwise(pieces))


def test_overlap_in_any_order():
    spans = [Span("title", 4, 9, "color"), Span("title", 0, 6, "brand")]
    assert segments("abcdefghij", spans) == [
        ("abcd", ("brand",)),
        ("ef", ("brand", "color")),
        ("ghi", ("color",)),
        ("j", ()),
    ]

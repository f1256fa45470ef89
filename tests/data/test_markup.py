"""HTML to text: an independent reading by lxml-like rules is not at hand, so what must and must not change is said."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data.markup import plain_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>One</p><p>Two</p>", "One\nTwo"),
        ("a <b>bold</b> word<br/>next <BR>line", "a bold word\nnext\nline"),
        ('<a href="x?a=1" class=y>link</a>', "link"),
        ("<ul>\n <li>light &amp; strong</li>\n\n<li>5&nbsp;kg</li></ul>", "light & strong\n5 kg"),
        ("hold <5 lbs, a<b and c>d, <unknown> <b and c>", "hold <5 lbs, a<b and c>d, <unknown> <b and c>"),
        ("AT&T  black&gt-style & co", "AT&T  black&gt-style & co"),
        ("&lt;p&gt; &amp;amp;", "<p> &amp;"),
        ("x<script>if (a < b) {}</script>y<style>p {}</style>z<!-- no <b>note</b> -->!", "xyz!"),
        ("seen<!-- never closed <p>seen too", "seen<!-- never closed\nseen too"),
        ("A <style> guide for <b>men</b>", "A <style> guide for men"),
        ("<script>alert('never closed')", "<script>alert('never closed')"),
        ("a<!-- b -->c<!-- d", "ac<!-- d"),
        ("<style>a</style>b</style>c<style>d", "bc<style>d"),
        ("  no markup,\n\n kept  ", "  no markup,\n\n kept  "),
        ("&#39;&#x41;&eacute;", "'Aé"),
        ("", ""),
    ],
)
def test_examples(text, expected):
    assert plain_text(text) == expected


@given(
    st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), min_size=1).filter(str.strip), min_size=1)
)
def test_escaped_paragraphs_come_back_as_lines(lines):
    lines = [line for line in lines if line.split() == [line]]
    markup = "".join(f"<p class='x'>{html.escape(line)}</p>" for line in lines)
    assert plain_text(markup) == "\n".join(lines)


@given(st.text("<>!-/abp=& ;\n", max_size=60))
def test_only_what_looks_like_markup_goes(text):
    characters = "".join(plain_text(text).split())
    source = iter("".join(html.unescape(text).split()))
    assert all(character in source for character in characters)  # a subsequence


@pytest.mark.parametrize("piece", ["<script>", "<!--", "<p ", "<p>", "&amp;", "<", "<b =", "</style>"])
@pytest.mark.timeout(60)  # what is quadratic and takes 5 s for a quarter of it takes 80 s
def test_time_is_linear(piece):
    plain_text(piece * 400_000)

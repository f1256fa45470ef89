"""Tags of many pairs at once are those of each token alone."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer

from jax_rele.data.tokens.evidence_tags import _sources, evidence_rows
from jax_rele.data.tokens.pair_texts import PairTexts
from jax_rele.data.tokens.student_inputs import cross_rows
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.errors import UserError
from jax_rele.rationale import token_tags
from jax_rele.types import Item, Pair, Span

CORPUS = ["acme corp red shoes", "ＡＢＣ ﬁne café", "電池 battery pack", "usb-c cable (2m)"] * 20
FIELDS, DIMENSIONS = ("title", "brand", "color"), ("brand", "color", "size")


def wordpiece():
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=120, show_progress=False)
    return BertTokenizer(vocab=trained.get_vocab())


TOKENIZERS = {"byte-level": train_tokenizer(CORPUS, 320, encoder=True), "wordpiece": wordpiece()}
# Invisible characters and full width: what is read is not what is written.
TEXTS = st.text(st.sampled_from("ab c1-é電ＡＢ\u200b\u00ad ﬁ"), max_size=14)


@given(st.sampled_from(sorted(TOKENIZERS)), st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=4), st.data())
def test_tags_are_those_of_each_token(name, texts, data):
    tokenizer = TOKENIZERS[name]
    pairs = [Pair("", query, Item("", title, brand=brand)) for query, title, brand in texts]
    evidence = []
    for pair in pairs:
        spans = []
        for source, text in [("query", pair.query), *pair.item.texts(FIELDS)]:
            cuts = sorted(data.draw(st.lists(st.integers(0, len(text) + 2), max_size=4)))
            spans += [Span(source, *ends, data.draw(st.sampled_from(DIMENSIONS))) for ends in itertools.pairwise(cuts)]
        evidence.append(spans)
    lengths = data.draw(st.integers(2, 12)), data.draw(st.integers(2, 20))
    tokenized = PairTexts(tokenizer, pairs, FIELDS)
    tags, masks = evidence_rows(tokenizer, tokenized, evidence, DIMENSIONS, FIELDS, *lengths)
    rows, types = cross_rows(tokenizer, tokenized, FIELDS, *lengths)
    assert [list(map(len, part)) for part in (tags, masks)] == [list(map(len, rows))] * 2
    for index, spans in enumerate(evidence):
        for number, side in enumerate((tokenized.queries, tokenized.items)):
            actual = [
                tag for tag, mask, kind in zip(tags[index], masks[index], types[index]) if mask and kind == number
            ]
            each = [
                token_tags(spans, source, [characters], DIMENSIONS)[0] for source, characters in _sources(side, index)
            ]
            assert actual == each[: len(actual)]
    assert (tags, masks) == evidence_rows(tokenizer, pairs, evidence, DIMENSIONS, FIELDS, *lengths)
    assert (rows, types) == cross_rows(tokenizer, pairs, FIELDS, *lengths)


def test_equal_texts_are_tokenized_once():
    tokenizer = TOKENIZERS["wordpiece"]
    pairs = PairTexts(tokenizer, [Pair("", "red", Item("", title)) for title in ("shoes", "pack", "shoes")], FIELDS)
    queries, items = pairs.queries.ids, pairs.items.ids
    assert queries[0] is queries[1] is queries[2]
    assert items[0] is items[2] is not items[1]
    assert PairTexts.of(tokenizer, pairs, FIELDS) is pairs
    assert PairTexts.of(tokenizer, pairs, ("title",)) is not pairs
    assert PairTexts.of(TOKENIZERS["byte-level"], pairs, FIELDS).queries.ids != queries


def test_earlier_truncation_and_padding_of_the_tokenizer_do_not_matter():
    tokenizer = wordpiece()
    (expected,) = PairTexts(tokenizer, [Pair("", "acme corp red shoes", Item("", "x"))], FIELDS).queries.ids
    tokenizer(["acme corp red shoes"], truncation=True, max_length=2, padding="max_length")
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    assert PairTexts(tokenizer, [Pair("", "acme corp red shoes", Item("", "x"))], FIELDS).queries.ids == [expected]


def test_a_tokenizer_without_offsets_is_refused_where_evidence_needs_them(monkeypatch):
    tokenizer = BertTokenizer(vocab=TOKENIZERS["wordpiece"].get_vocab())
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    pairs = [Pair("", "red", Item("", "red shoes"))]
    assert cross_rows(tokenizer, pairs, FIELDS, 8, 8) == cross_rows(TOKENIZERS["wordpiece"], pairs, FIELDS, 8, 8)
    assert evidence_rows(tokenizer, pairs, [[]], DIMENSIONS, FIELDS, 8, 8)[0] == [[0] * 6]
    with pytest.raises(UserError, match=r"student\.init: .* does not say where its tokens stand"):
        evidence_rows(tokenizer, pairs, [[Span("title", 0, 3, "color")]], DIMENSIONS, FIELDS, 8, 8)

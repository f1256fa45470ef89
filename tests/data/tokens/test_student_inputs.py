"""The students' tokens with every kind of tokenizer: texts and pairs as it writes them, evidence at its place."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer, XLMRobertaTokenizer

from jax_rele.data.tokens.evidence_tags import decode_evidence, evidence_rows
from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.student_inputs import cross_rows, tower_rows
from jax_rele.data.tokens.tokenizers import load_tokenizer, train_tokenizer
from jax_rele.students.base import InputSpec, padded_inputs
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower
from jax_rele.text import clean_text
from jax_rele.types import Item, Pair, Span

CORPUS = [
    "acme corp red shoes size 10",
    "café crème señor",
    "usb-c to usb-c cable (2m), braided",
    "women's waterproof boots",
    "電池 battery pack ✅ new",
    "Acme Zeta USB RED ACME",
] * 20
# Their inputs do not depend on the encoder.
CROSS_ENCODER, TWO_TOWER = CrossEncoder(None, 2, 2), TwoTower(None, 2, 2, 8, 8)
FIELDS = ("title", "brand", "color")


def padded(tags_and_masks, length):
    """Evidence rows as arrays."""
    tags, masks = tags_and_masks
    return pad(tags, length, 0), pad(masks, length, False, bool)


def wordpiece(path):
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=160, show_progress=False)
    return BertTokenizer(vocab=trained.get_vocab())


def byte_level(path, **settings):
    """RoBERTa's: two markers between the sides."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        CORPUS, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    return RobertaTokenizer(vocab=state["vocab"], merges=merges, **settings)


def sentencepiece(path):
    """XLM-R's: a unigram model."""
    trained = tokenizers.Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=pieces, unk_token="<unk>", show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    return XLMRobertaTokenizer(vocab=[tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]])


def modern(path):
    """ModernBERT's: byte-level pieces with BERT's markers."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=pieces,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, tokenizer.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), pieces)),
    )


KINDS = {
    "wordpiece": wordpiece,
    "byte_level": byte_level,
    "byte_level with a space before": lambda path: byte_level(path, add_prefix_space=True),
    "sentencepiece": sentencepiece,
    "modern": modern,
    "own": lambda path: train_tokenizer(CORPUS, 400, encoder=True),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    KINDS[request.param](path).save_pretrained(path / "saved")
    return load_tokenizer(path / "saved", ("pad", "cls", "sep"))


def pair(query: str, title: str, **fields: str) -> Pair:
    return Pair("1", query, Item("a", title, **fields))


TEXTS = st.one_of(
    st.sampled_from(CORPUS),
    st.text(alphabet="acme rd  usb-(é電✅'S[]<>/\t\n", min_size=1, max_size=30),
    st.text(min_size=1, max_size=20),
).filter(clean_text)


@settings(max_examples=60)
@given(query=TEXTS, title=TEXTS)
def test_texts_and_pairs_are_written_as_the_tokenizer_writes_them(tokenizer, query, title):
    ids, types = cross_rows(tokenizer, [pair(query, title)], ("title",), 100, 100)
    expected = tokenizer(clean_text(query), clean_text(title))
    queries, items = tower_rows(tokenizer, [pair(query, title)], ("title",), 100, 100)
    singles = [tokenizer(clean_text(text))["input_ids"] for text in (query, title)]
    unknown = tokenizer.unk_token_id
    if unknown is not None and any(piece in query + title for piece in tokenizer.all_special_tokens):
        return
    assert ids == [expected["input_ids"]]
    assert [queries[0], items[0]] == singles
    assert len(ids[0]) == len(types[0])
    # The item and what follows it are of type 1.
    sides = expected.sequence_ids(0)
    if 1 in sides:
        assert types[0] == [0] * sides.index(1) + [1] * (len(sides) - sides.index(1))


def test_two_markers_between_the_sides_where_the_tokenizer_has_them(tokenizer):
    count = tokenizer.num_special_tokens_to_add(pair=True)
    (row,), _ = cross_rows(tokenizer, [pair("acme", "zeta")], ("title",), 50, 50)
    special = [token in tokenizer.all_special_ids for token in row]
    assert sum(special) == count
    assert count == (4 if isinstance(tokenizer, RobertaTokenizer | XLMRobertaTokenizer) else 3)


def test_the_item_s_fields_are_joined_by_spaces(tokenizer):
    whole = pair("red", "acme corp shoes acme red")
    parts = pair("red", "acme corp shoes", brand="acme", color="red")
    assert cross_rows(tokenizer, [parts], FIELDS, 40, 60) == cross_rows(tokenizer, [whole], FIELDS, 40, 60)
    assert tower_rows(tokenizer, [parts], FIELDS, 40, 60) == tower_rows(tokenizer, [whole], FIELDS, 40, 60)


def test_long_texts_lose_their_ends_and_keep_their_markers(tokenizer):
    long = [pair("acme shoes " * 30, "battery pack " * 30, color="red"), pair("acme", "zeta"), pair("", "")]
    ids, types = cross_rows(tokenizer, long, FIELDS, 12, 20)
    between = [
        token
        for token, side in zip(tokenizer("a", "a")["input_ids"], tokenizer("a", "a").sequence_ids(0))
        if side is None
    ][1:-1]
    assert len(ids[0]) == len(types[0]) == 32
    assert ids[1] == tokenizer("acme", "zeta")["input_ids"]
    assert ids[2] == [tokenizer.cls_token_id, *between, tokenizer.sep_token_id]
    queries, items = tower_rows(tokenizer, long, FIELDS, 12, 20)
    assert [len(row) for row in (queries[0], items[0])] == [12, 21]
    assert {row[-1] for row in (*queries, *items)} == {tokenizer.sep_token_id}
    assert cross_rows(tokenizer, [], FIELDS, 12, 20) == ([], [])
    assert tower_rows(tokenizer, [], FIELDS, 12, 20) == ([], [])


@settings(max_examples=60)
@given(
    query=TEXTS, title=TEXTS, repeats=st.tuples(*[st.integers(1, 12)] * 2), lengths=st.tuples(*[st.integers(4, 30)] * 2)
)
def test_pairs_are_cut_as_other_programs_cut_them(tokenizer, query, title, repeats, lengths):
    query, title = (f"{text} " * count for text, count in zip((query, title), repeats))
    if any(piece in query + title for piece in tokenizer.all_special_tokens):
        return
    (ids,), _ = cross_rows(tokenizer, [pair(query, title)], ("title",), *lengths)
    assert (
        ids
        == tokenizer(clean_text(query), clean_text(title), truncation="longest_first", max_length=sum(lengths))[
            "input_ids"
        ]
    )


def test_padded_arrays_hold_the_rows(tokenizer):
    pairs = [pair("acme shoes", "red shoes " * 20), pair("usb", "cable", brand="acme")]
    ids, types = cross_rows(tokenizer, pairs, FIELDS, 10, 30)
    arrays = padded_inputs(CROSS_ENCODER, tokenizer, pairs, InputSpec(FIELDS, 10, 30))
    queries, items = tower_rows(tokenizer, pairs, FIELDS, 10, 30)
    towers = padded_inputs(TWO_TOWER, tokenizer, pairs, InputSpec(FIELDS, 10, 30))
    for tokens, valid, length, rows in (
        (arrays["tokens"], arrays["valid"], 40, ids),
        (towers["query_tokens"], towers["query_valid"], 10, queries),
        (towers["item_tokens"], towers["item_valid"], 31, items),
    ):
        assert tokens.shape == valid.shape == (2, length)
        for row, mask, expected in zip(tokens, valid, rows):
            assert row[mask].tolist() == expected
            assert set(row[~mask]) <= {tokenizer.pad_token_id}
    assert arrays["token_types"][0][arrays["valid"][0]].tolist() == types[0]


@pytest.mark.parametrize("text", ["</s>", "<s> <pad>", "[SEP] [CLS]", "a</s>b", "<mask>[MASK]"])
def test_no_text_makes_markers(tokenizer, text):
    (row,), _ = cross_rows(tokenizer, [pair(text, text, brand=text)], FIELDS, 60, 90)
    markers = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert sum(token in markers for token in row) == tokenizer.num_special_tokens_to_add(pair=True)
    (query,), (item,) = tower_rows(tokenizer, [pair(text, text)], FIELDS, 60, 90)
    assert sum(token in markers for token in (*query, *item)) == 2 * tokenizer.num_special_tokens_to_add()


# ---- evidence

DIMENSIONS = ("brand", "color", "size")
TITLE = "ACME café  Shoes, red (size 10)"


def spans(source: str, text: str, **words: str) -> list[Span]:
    return [
        Span(source, text.index(word), text.index(word) + len(word), dimension) for dimension, word in words.items()
    ]


def test_evidence_stands_at_the_tokens_of_its_words(tokenizer):
    pairs = [pair("Acme red", TITLE, brand="acme corp", color="red"), pair("red", "red " * 60)]
    evidence = [
        [
            *spans("query", "Acme red", brand="Acme", color="red"),
            *spans("title", TITLE, brand="ACME", color="red", size="10"),
            *spans("brand", "acme corp", brand="acme"),
            *spans("color", "red", color="red"),
        ],
        [],
    ]
    cross = padded_inputs(CROSS_ENCODER, tokenizer, pairs, InputSpec(FIELDS, 16, 60))
    tags, mask = padded(evidence_rows(tokenizer, pairs, evidence, DIMENSIONS, FIELDS, 16, 60), 76)
    assert tags.shape == mask.shape == cross["tokens"].shape
    # The spans that the tags decode to have the same tags.
    decoded = decode_evidence(tokenizer, pairs, tags, DIMENSIONS, FIELDS, 16, 60)
    again, _ = padded(evidence_rows(tokenizer, pairs, decoded, DIMENSIONS, FIELDS, 16, 60), 76)
    np.testing.assert_array_equal(again, tags)

    def words(tag, kind):
        chosen = (tags[0] == tag) & (cross["token_types"][0] == kind)
        return tokenizer.decode(cross["tokens"][0][chosen]).replace(" ", "").lower()

    assert [words(tag, 0) for tag in (1, 2, 3)] == ["acme", "red", ""]
    assert [words(tag, 1) for tag in (1, 2, 3)] == ["acmeacme", "redred", "10"]
    # The mask is that of tokens of texts: all but padding and markers.
    markers = np.isin(cross["tokens"], list(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}))
    np.testing.assert_array_equal(mask, cross["valid"] & ~markers)
    assert not tags[~mask].any()
    assert not tags[1].any()


@settings(max_examples=40)
@given(words=st.lists(st.sampled_from(["acme", "red", "café", "電池", "usb-c", "10", "✅"]), min_size=1, max_size=6))
def test_every_word_s_tokens_are_its_own(tokenizer, words):
    """Each word in a field of its own and in one of all: every token is tagged by the word that it is of."""
    names = tuple(f"d{number}" for number in range(len(words)))
    title, begin, marked = " ".join(words), 0, []
    for name, word in zip(names, words):
        marked.append(Span("title", begin, begin + len(word), name))
        begin += len(word) + 1
    rows, masks = evidence_rows(tokenizer, [pair("x", title)], [marked], names, ("title",), 20, 100)
    tags = np.array(rows[0])[np.array(masks[0], bool)]
    query = len(tokenizer("x", add_special_tokens=False)["input_ids"])
    offsets = tokenizer(title, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # A space alone is of no word.
    expected = [1 + title[: end - 1].count(" ") if title[start:end].strip() else 0 for start, end in offsets]
    assert tags[query:].tolist() == expected


# ---- the trained one


def test_a_word_is_the_same_token_wherever_it_stands(tmp_path):
    tokenizer = train_tokenizer(CORPUS, 400, encoder=True)
    first, later = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("acme", "red acme"))
    assert later[-len(first) :] == first
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("acme", "red")["input_ids"] == tokenizer("acme", "red")["input_ids"]


def test_a_tokenizer_without_markers_gets_bert_s():
    tokenizer = train_tokenizer(CORPUS, 400)
    (row,), (types,) = cross_rows(tokenizer, [pair("acme", "red")], FIELDS, 20, 20)
    acme, red = (tokenizer(text)["input_ids"] for text in ("acme", "red"))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert row == [cls, *acme, sep, *red, sep]
    assert types == [0] * (len(acme) + 2) + [1] * (len(red) + 1)
    assert tower_rows(tokenizer, [pair("acme", "red")], FIELDS, 20, 20) == ([[cls, *acme, sep]], [[cls, *red, sep]])


def test_width_composition_and_invisible_characters_change_nothing(tokenizer):
    plain = pair("café usb", "プラグ acme 10", brand="Zeta")
    other = pair("cafe\u0301\u200b ｕｓｂ", "ﾌﾟﾗｸﾞ ac\u00adme １０", brand="Ze\u2060ta")
    for rows in (cross_rows, tower_rows):
        one, two = (rows(tokenizer, [each], FIELDS, 30, 30) for each in (plain, other))
        assert one == two


def test_evidence_counts_the_characters_of_the_text_that_was_given(tokenizer):
    title = "\u200bcafe\u0301 ａｃｍｅ red"
    start = title.index("ａ")
    spans = [(Span("title", start, start + 4, "brand"),)]
    pairs = [pair("acme", title)]
    tags, _ = evidence_rows(tokenizer, pairs, spans, ("brand",), ("title",), 40, 40)
    (decoded,) = decode_evidence(tokenizer, pairs, tags, ("brand",), ("title",), 40, 40)
    assert [title[span.start : span.end].strip() for span in decoded] == ["ａｃｍｅ"]

"""What models do not read is counted, said and refused."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer, PreTrainedTokenizerFast

from jax_rele.config import TextLossConfig
from jax_rele.data.tokens import text_loss
from jax_rele.data.tokens.student_inputs import cross_rows, tower_rows
from jax_rele.data.tokens.text_loss import TextLoss, check_text_loss, count_characters, summarize
from jax_rele.errors import UserError
from jax_rele.types import Item, Pair

LATIN = ["red shoes for men", "acme usb cable", "blue shirt"] * 20
REMEDIES = "take another tokenizer", "read more tokens"


@pytest.fixture(scope="module")
def tokenizer():
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(LATIN, vocab_size=200, show_progress=False)
    return BertTokenizer(vocab=trained.get_vocab())


def pair(query, title):
    return Pair(title, query, Item(title, title))


@pytest.mark.parametrize("rows", [cross_rows, tower_rows])
def test_unknown_tokens_and_cut_texts_are_counted(tokenizer, rows):
    pairs = [
        pair("red shoes", "acme usb cable"),
        pair("红色鞋子", "acme 电池"),
        pair("red " * 30, "blue"),
        pair("blue", "shirt " * 30 + "red"),
        pair("blue", "shirt " * 30 + "blue"),
    ]
    losses = []
    ids = rows(tokenizer, pairs, ("title",), 8, 8, losses)
    loss = summarize(losses)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for p in pairs for text in (p.query, p.item.title)]
    assert loss.pairs == 5
    assert loss.tokens == sum(map(len, whole))
    assert loss.unknown_tokens == sum(row.count(tokenizer.unk_token_id) for row in whole) == 6
    assert (loss.cut_pairs, loss.cut_queries, loss.cut_items, loss.merged_pairs) == (3, 1, 2, 1)
    assert loss.characters == sum(len("".join(text.split())) for p in pairs for text in (p.query, p.item.title))
    assert loss.unknown_characters == len("红色鞋子电池")
    losses.clear()
    rows(tokenizer, [pair("red " * 30, "shirt " * 30)], ("title",), 8, 8, losses)
    assert (summarize(losses).cut_pairs, summarize(losses).cut_fraction) == (1, 1.0)
    markers = 3 if rows is cross_rows else 4
    read = sum(map(len, ids[0])) + (0 if rows is cross_rows else sum(map(len, ids[1])))
    assert read - markers * len(pairs) == loss.tokens - loss.cut_tokens


counts = st.builds(TextLoss, *[st.integers(0, 1000)] * 10)


@given(st.lists(counts, max_size=4))
def test_losses_add_up(parts):
    total = sum(parts, TextLoss())
    assert total.tokens == sum(part.tokens for part in parts)
    assert total.counts().keys() == TextLoss().counts().keys()


def check(loss, **limits):
    messages = []
    check_text_loss("here", loss, TextLossConfig(**limits), remedies=REMEDIES, say=messages.append)
    return messages


def test_what_is_lost_is_said_and_refused():
    loss = TextLoss(pairs=100, characters=1000, unknown_characters=100, cut_pairs=25, cut_queries=5, cut_items=20)
    assert check(loss, warn_unknown=0.1, warn_cut=0.25) == []
    assert check(loss, warn_unknown=0.09, warn_cut=0.24) == [
        "warning: here: 10.0% of the characters are unknown to the tokenizer; take another tokenizer",
        "warning: here: 25.0% of the pairs lose the end of their query or item; read more tokens",
    ]
    with pytest.raises(UserError, match=r"here: 10\.0% .*more than data\.text_loss\.max_unknown 0\.05; take another"):
        check(loss, max_unknown=0.05)
    with pytest.raises(UserError, match=r"here: 25\.0% .*more than data\.text_loss\.max_cut 0\.2; read more tokens"):
        check(loss, max_cut=0.2)
    assert check(TextLoss(pairs=3, tokens=9, merged_pairs=2)) == [
        "warning: here: 2 pairs have the same tokens as another pair with another text"
    ]
    assert check(summarize([np.zeros((0, 8), np.int64)])) == []


THAI = "รองเท้าวิ่งผู้ชายสีแดงขนาดใหญ่พิเศษมาก"


@pytest.mark.parametrize("rows", [cross_rows, tower_rows])
def test_a_text_of_one_unknown_word_counts_by_its_characters(tokenizer, rows):
    losses = []
    rows(tokenizer, [pair("red shoes", f"{THAI} usb cable")], ("title",), 8, 8, losses)
    loss = summarize(losses)
    assert (loss.tokens, loss.unknown_tokens) == (5, 1)
    assert (loss.characters, loss.unknown_characters) == (len("redshoesusbcable") + len(THAI), len(THAI))
    assert loss.unknown_fraction > 0.6


def test_characters_that_a_tokenizer_drops_are_unknown():
    dropping = tokenizers.Tokenizer(tokenizers.models.BPE())
    dropping.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<pad>", "</s>"], show_progress=False)
    dropping.train_from_iterator(LATIN, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=dropping, pad_token="<pad>", eos_token="</s>")
    assert fast.unk_token_id is None
    ids = fast(["red 红色", "blue"], add_special_tokens=False)["input_ids"]
    assert count_characters(fast, ["red 红色", "blue"], ids) == [(5, 2), (4, 0)]


def test_pairs_of_one_encoding_are_counted_over_all_parts(tokenizer):
    texts = ["usb 红", "usb 色", "usb cable", "usb 红", "usb 池", "USB 红"]
    whole, parts = [], []
    cross_rows(tokenizer, [pair("red", text) for text in texts], ("title",), 8, 8, whole)
    for text in texts:
        cross_rows(tokenizer, [pair("red", text)], ("title",), 8, 8, parts)
    assert len(parts) == len(texts)
    assert summarize(whole).merged_pairs == summarize(parts).merged_pairs == 2
    assert summarize(parts) == summarize(whole)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=30))
def test_merged_pairs_are_those_of_a_dictionary(rows):
    first = {}
    expected = sum(first.setdefault(read, text) != text for read, text in rows)
    losses = np.array([[0] * 6 + [read, text] for read, text in rows], np.int64).reshape(-1, 8)
    assert summarize([losses]).merged_pairs == expected


def test_the_mark_before_a_word_does_not_make_its_first_character_known():
    model = tokenizers.models.WordLevel({"<unk>": 0, "▁": 1, "▁red": 2, "▁shoe": 3}, unk_token="<unk>")
    metaspace = tokenizers.Tokenizer(model)
    split = tokenizers.pre_tokenizers
    alone = split.Split(tokenizers.Regex("▁(?=[^a-z])"), "isolated")
    metaspace.pre_tokenizer = split.Sequence([split.Metaspace(), alone])
    fast = PreTrainedTokenizerFast(tokenizer_object=metaspace, unk_token="<unk>")
    texts = ["日 本 語", "日本", "😀", "red shoe", "red 鞋"]
    ids = fast(texts, add_special_tokens=False)["input_ids"]
    assert ids[0] == [1, 0, 1, 0, 1, 0]
    assert count_characters(fast, texts, ids) == [(3, 3), (2, 2), (1, 1), (7, 0), (4, 1)]


@pytest.mark.parametrize("lost", ["\ufffd", "\ue000", "\ufff9", "\x07", "\U000e0041"])
def test_characters_that_a_normalizer_leaves_out_are_unknown(tokenizer, lost):
    texts = [f"red {lost}{lost} shoes", lost * 3, "red shoes"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert ids[1] == []
    assert count_characters(tokenizer, texts, ids) == [(10, 2), (3, 3), (8, 0)]


def test_accents_that_are_left_out_are_no_loss_of_a_known_character(tokenizer):
    texts = ["réd shoes\ufffd", "re\u0301d shoes\ufffd", "red \u0301 shoes\ufffd", "红\u0301 shoes"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [lost for _, lost in count_characters(tokenizer, texts, ids)] == [1, 1, 2, 2]


def test_marks_in_an_unknown_token_are_unknown():
    model = tokenizers.models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("ก", -2.0)], unk_id=0)
    unigram = tokenizers.Tokenizer(model)
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")
    ids = fast(["กู"], add_special_tokens=False)["input_ids"]
    assert count_characters(fast, ["กู"], ids) == [(2, 1)]


def test_white_space_alone_needs_no_second_look(tokenizer, monkeypatch):
    text = "red\nshoes\u00a0usb\u202fcable"
    ids = tokenizer([text], add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenized again"))
    monkeypatch.setattr(text_loss, "_drops_characters", lambda _: False)
    assert count_characters(tokenizer, [text], ids) == [(16, 0)]

"""What models do not read is counted, said and refused."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from jax_rele.config import TextLossConfig
from jax_rele.data.tokens.student_inputs import cross_rows, tower_rows
from jax_rele.data.tokens.text_loss import TextLoss, check_text_loss, summarize
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
    losses.clear()
    rows(tokenizer, [pair("red " * 30, "shirt " * 30)], ("title",), 8, 8, losses)
    assert (summarize(losses).cut_pairs, summarize(losses).cut_fraction) == (1, 1.0)
    markers = 3 if rows is cross_rows else 4
    read = sum(map(len, ids[0])) + (0 if rows is cross_rows else sum(map(len, ids[1])))
    assert read - markers * len(pairs) == loss.tokens - loss.cut_tokens


counts = st.builds(TextLoss, *[st.integers(0, 1000)] * 8)


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
    loss = TextLoss(pairs=100, tokens=1000, unknown_tokens=100, cut_pairs=25, cut_queries=5, cut_items=20)
    assert check(loss, warn_unknown=0.1, warn_cut=0.25) == []
    assert check(loss, warn_unknown=0.09, warn_cut=0.24) == [
        "warning: here: 10.0% of the tokens are unknown to the tokenizer; take another tokenizer",
        "warning: here: 25.0% of the pairs lose the end of their query or item; read more tokens",
    ]
    with pytest.raises(UserError, match=r"here: 10\.0% .*more than data\.text_loss\.max_unknown 0\.05; take another"):
        check(loss, max_unknown=0.05)
    with pytest.raises(UserError, match=r"here: 25\.0% .*more than data\.text_loss\.max_cut 0\.2; read more tokens"):
        check(loss, max_cut=0.2)
    assert check(TextLoss(pairs=3, tokens=9, merged_pairs=2)) == [
        "warning: here: 2 pairs have the same tokens as another pair with another text"
    ]
    assert check(summarize([np.zeros((0, 5), np.int32)])) == []

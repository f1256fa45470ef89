"""Texts that a model knows nothing of are named."""

import numpy as np
import pytest
import tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from jax_rele.data.tokens.student_inputs import unreadable_texts
from jax_rele.deployment.scorer import load_bundle
from jax_rele.types import Item, Pair


def wordpieces():
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(["red shoes for men"] * 20, vocab_size=100, show_progress=False)
    return BertTokenizer(vocab=trained.get_vocab())


def sentencepieces():
    unigram = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), ("\u2581", -3.0), ("\u2581red", -1.0)], 0)
    )
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>", pad_token="<unk>")


@pytest.fixture(scope="module", params=[wordpieces, sentencepieces])
def tokenizer(request):
    return request.param()


@pytest.mark.parametrize("query", ["红色", "\u200b红\u200b色", "красные", "красные, красные!"])
def test_a_text_of_unknown_tokens_alone_is_named(tokenizer, query):
    wrong = unreadable_texts(tokenizer, ["red", query])
    assert list(wrong) == [1]
    assert "the model knows nothing of" in wrong[1]


@pytest.mark.parametrize("query", ["red", "red 红色", "ｒｅｄ"])
def test_a_text_that_is_partly_known_is_not(tokenizer, query):
    assert unreadable_texts(tokenizer, [query]) == {}


@pytest.mark.parametrize("query", ["\u200b", "\x07"])
def test_a_text_without_tokens_is_named(tokenizer, query):
    assert "has no tokens" in unreadable_texts(tokenizer, ["red", query])[1]


def test_pairs_of_which_nothing_is_known_are_named_by_both_students(word_bundles):
    known, unknown = "red shoes", "\u7ea2\u8272"
    texts = [(known, known), (unknown, known), (known, unknown), (unknown, unknown), (known, f"{unknown} red")]
    texts += [("\u200b", known), (known, "\x07"), (f"{known} " * 30, known), (known, f"{unknown} " * 40 + known)]
    pairs = [Pair("", query, Item("", title)) for query, title in texts]
    for kind, folder in word_bundles.items():
        scorer = load_bundle(folder, threads=1)
        encoded = scorer.encode(pairs)
        wrong = scorer.unreadable_pairs(encoded, pairs)
        # What is cut is not read.
        expected = [(1, "query"), (2, "item"), (3, "query"), (5, "query"), (6, "item"), (8, "item")]
        assert [(index, side) for index, (side, _) in wrong.items()] == expected, kind
        np.testing.assert_array_equal(scorer.predict_rows(encoded, pairs).scores, scorer.predict(pairs).scores)
        assert list(scorer.unreadable([title for _, title in texts])) == [2, 3, 6]

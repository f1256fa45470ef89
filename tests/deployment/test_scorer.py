"""Queries that a model knows nothing of are named."""

from types import SimpleNamespace

import pytest
import tokenizers
from transformers import BertTokenizer

from jax_rele.deployment.scorer import Scorer


@pytest.fixture(scope="module")
def scorer():
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(["red shoes for men"] * 20, vocab_size=100, show_progress=False)
    return SimpleNamespace(tokenizer=BertTokenizer(vocab=trained.get_vocab()))


@pytest.mark.parametrize("query", ["红色", "\u200b红\u200b色", "красные", "красные, красные!"])
def test_a_query_of_unknown_tokens_alone_is_named(scorer, query):
    assert "the model knows nothing of" in Scorer.unreadable(scorer, ["red shoes", query])


@pytest.mark.parametrize("query", ["red", "red 红色", "ｒｅｄ"])
def test_a_query_that_is_partly_known_is_not(scorer, query):
    assert Scorer.unreadable(scorer, [query]) == ""


@pytest.mark.parametrize("query", ["\u200b", " ", "\x07"])
def test_a_query_without_tokens_is_named(scorer, query):
    assert "has no tokens" in Scorer.unreadable(scorer, ["red", query])

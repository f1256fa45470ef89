"""Queries that a model knows nothing of are refused."""

from types import SimpleNamespace

import pytest
import tokenizers
from transformers import BertTokenizer

from jax_rele.serving.refusals import BadRequest
from jax_rele.serving.service import _check_tokens


@pytest.fixture(scope="module")
def scorer():
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(["red shoes for men"] * 20, vocab_size=100, show_progress=False)
    return SimpleNamespace(tokenizer=BertTokenizer(vocab=trained.get_vocab()))


@pytest.mark.parametrize("query", ["红色", "\u200b红\u200b色", "красные"])
def test_a_query_of_unknown_tokens_alone_is_refused(scorer, query):
    with pytest.raises(BadRequest, match="query: the model knows nothing of"):
        _check_tokens(scorer, ["red shoes", query], "query")


@pytest.mark.parametrize("query", ["red", "red 红色", "ｒｅｄ"])
def test_a_query_that_is_partly_known_is_answered(scorer, query):
    _check_tokens(scorer, [query], "query")

"""Labels and verdicts as tokens: distinct, or refused."""

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jax_rele.errors import UserError
from jax_rele.teacher import check_verbalizers, make_verbalizers
from jax_rele.teacher.verbalizers import make_verdict_verbalizers
from jax_rele.types import VERDICTS


def test_labels_with_different_first_tokens_are_scored_by_them(tokenizer):
    verbalizers = make_verbalizers(tokenizer, ["Exact", "Substitute"])
    assert verbalizers.scoring == "first_token"
    assert [tokenizer.decode(verbalizers.tokens(index)) for index in (0, 1)] == [" exact", " substitute"]


@pytest.mark.parametrize("names", [["Exact", "Exact match"], ["Exact one", "Exact two", "Irrelevant"]])
def test_labels_that_begin_alike_are_scored_in_full(tokenizer, names):
    verbalizers = make_verbalizers(tokenizer, names)
    assert verbalizers.scoring == "full"
    assert [tokenizer.decode(verbalizers.tokens(index)) for index in range(len(names))] == [
        f" {n.lower()}" for n in names
    ]


def test_the_common_first_token_is_split_off(tokenizers_by_kind):
    """A sentencepiece vocabulary writes the space before a word as a token of its own."""
    tokenizer = tokenizers_by_kind["sentencepiece"]
    first = {tokenizer.encode(" " + word, add_special_tokens=False)[0] for word in VERDICTS}
    assert len(first) == 1
    verbalizers = make_verdict_verbalizers(tokenizer)
    assert first == {verbalizers.common[0]}
    assert verbalizers.scoring == "first_token"


def test_labels_of_the_same_tokens_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"labels\.names: 'Exact' and 'exact' are the same tokens"):
        check_verbalizers(tokenizer, ["Exact", "exact"])


def characters(**special):
    vocabulary = {chr(code): code for code in range(128)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_verdicts_that_begin_alike_are_refused():
    with pytest.raises(UserError, match="begins two of the verdicts match, mismatch, absent with the same token"):
        check_verbalizers(characters(eos_token="~"), ["Exact", "Other"])


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(UserError, match="no end token"):
        check_verbalizers(characters(), ["Exact", "Other"])

"""Decoding templates of several kinds of tokenizers: the tokens of training, and no delimiter within a value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data.tokens.prompts import AnswerEncoder
from jax_rele.rationale import grammar
from jax_rele.teacher import compile_template
from jax_rele.teacher.template import VERDICT, value_tokens
from jax_rele.types import Comparison, Rationale

DIMENSIONS = ("category", "brand")
KINDS = ("own", "byte_level", "sentencepiece")


def template_of(tokenizer, value_length=6, vocab_size=None):
    encoder = AnswerEncoder(tokenizer, "label_first", value_length)
    segments = grammar.template(DIMENSIONS, "label_first")[2:]
    return compile_template(tokenizer, encoder, segments, vocab_size or len(tokenizer)), encoder


@pytest.mark.parametrize("kind", KINDS)
@given(choices=st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_no_tokens_of_a_value_form_a_delimiter(tokenizers_by_kind, kind, choices):
    tokenizer = tokenizers_by_kind[kind]
    template, _ = template_of(tokenizer)
    allowed = np.flatnonzero(template.value_tokens)
    text = tokenizer.decode([int(allowed[choice % len(allowed)]) for choice in choices])
    assert not set(text) & set("\n\r|\\")


@pytest.mark.parametrize("kind", KINDS)
def test_plain_values_can_be_written(tokenizers_by_kind, kind):
    tokenizer = tokenizers_by_kind[kind]
    template, encoder = template_of(tokenizer, 20)
    ends = {tail[0] for is_choice, tail in zip(template.is_choice, template.forced_suffixes) if not is_choice}
    for value in (" acme", " shoes ; boots", " 電池", " -"):
        ids = encoder.segment_ids(value, "item_values")
        assert template.value_tokens[list(ids)].all(), value
        assert ends.isdisjoint(ids[1:]), value


def test_markers_of_roles_and_tools_are_refused_in_values(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["byte_level"]
    allowed = value_tokens(tokenizer, len(tokenizer) + 3)
    for mark in ("<|im_end|>", "<|im_start|>", "<tool_call>"):
        assert not allowed[tokenizer.convert_tokens_to_ids(mark)]
    assert not allowed[len(tokenizer) :].any()


def test_delimiter_bytes_are_refused_in_values(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["sentencepiece"]
    allowed = value_tokens(tokenizer, len(tokenizer))
    byte = {code: allowed[tokenizer.convert_tokens_to_ids(f"<0x{code:02X}>")] for code in range(256)}
    assert [code for code, may in byte.items() if not may] == [ord(c) for c in "\n\r\\|"]


@pytest.mark.parametrize("kind", KINDS)
def test_forced_tokens_equal_those_of_training(tokenizers_by_kind, kind):
    """The template filled with the slots of a rationale equals the token ids of the training row."""
    tokenizer = tokenizers_by_kind[kind]
    template, encoder = template_of(tokenizer)
    comparisons = (Comparison("category", ("Shoes",), (), "mismatch"), Comparison("brand", (), ("Acme",), "absent"))
    rationale = Rationale(comparisons, "Exact")
    segments = grammar.segments(rationale, "label_first")
    slots, verdicts = [], iter((1, 2))
    for segment in segments[2:]:
        if segment.kind == "verdict":
            slots.append(template.alternative(VERDICT, next(verdicts)))
        elif segment.kind != "fixed":
            slots.append(encoder.segment_ids(segment.text, segment.kind))
    label = [token for segment in segments[:2] for token in encoder.segment_ids(segment.text, segment.kind)]
    assert [*label, *template.tokens(slots), encoder.end] == encoder(rationale).ids
    assert template.longest >= len(template.tokens(slots))

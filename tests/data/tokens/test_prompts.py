"""Tokens of teacher and students, and the batches that they come in."""

import numpy as np
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from jax_rele.data.tokens.evidence_tags import evidence_rows
from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.prompts import AnswerEncoder, encode_prompts, language_rows
from jax_rele.data.tokens.text_loss import summarize
from jax_rele.data.tokens.tokenizers import load_tokenizer, train_tokenizer
from jax_rele.errors import UserError
from jax_rele.rationale import render
from jax_rele.students.base import InputSpec, padded_inputs
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower
from jax_rele.types import Comparison, Item, Pair, Rationale, Span

RATIONALE = Rationale(
    (Comparison("brand", ("acme",), ("acme corp", "zeta"), "match"), Comparison("color", (), ("red",), "absent")),
    "Exact",
)
PAIRS = [
    Pair("1", "acme shoes", Item("a", "Acme Corp red shoes", brand="Acme", color="red")),
    Pair("2", "電池 ✅ pack", Item("b", "Battery " * 40)),
]
# Their inputs do not depend on the encoder.
CROSS_ENCODER, TWO_TOWER = CrossEncoder(None, 2, 2), TwoTower(None, 2, 2, 8, 8)
FIELDS = ("title", "brand", "color")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([render(RATIONALE), "acme corp shoes red battery match mismatch absent"] * 20, 400)


@given(st.text())
def test_any_text_survives_the_tokenizer_but_for_case(tokenizer, text):
    lower = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == lower
    assert not text.isascii() or lower == text.lower()


@given(st.text(alphabet="<>/s pad|", max_size=30))
def test_no_text_makes_special_tokens(tokenizer, text):
    assert set(tokenizer.encode(text, add_special_tokens=False)).isdisjoint(tokenizer.all_special_ids)


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t", ("pad", "cls"))
    text = "Acme </s> <pad> ✅ shoes"
    assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
    assert loaded.pad_token_id == tokenizer.pad_token_id
    settings = tmp_path / "t" / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"pad_token"', '"other"'))
    # A decoder's padding is masked, so any token will do; an encoder's classification token is one that it knows.
    assert load_tokenizer(tmp_path / "t", ("pad", "eos")).pad_token_id == tokenizer.eos_token_id
    settings.write_text(settings.read_text().replace('"cls_token"', '"third"'))
    with pytest.raises(UserError, match="unsuitable tokenizer: it has no cls token"):
        load_tokenizer(tmp_path / "t", ("eos", "cls"))
    (tmp_path / "t" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="damaged tokenizer"):
        load_tokenizer(tmp_path / "t", ())
    with pytest.raises(UserError, match="no such tokenizer folder"):
        load_tokenizer(tmp_path / "u", ())


@pytest.mark.parametrize("order", ["rationale_first", "label_first", "label_only"])
def test_an_answer_is_the_rendered_rationale(tokenizer, order):
    answer = AnswerEncoder(tokenizer, order, 50)(RATIONALE)
    assert tokenizer.decode(answer.ids[:-1]) == render(RATIONALE, order).lower()
    assert answer.ids[-1] == tokenizer.eos_token_id
    by_kind = {kind: [i for i, k in zip(answer.ids, answer.kinds) if k == kind] for kind in set(answer.kinds)}
    assert tokenizer.decode(by_kind["label"]) == " exact"
    if order != "label_only":
        assert tokenizer.decode(by_kind["verdict"]) == " match absent"


def test_long_values_are_cut(tokenizer):
    long = Rationale((Comparison("brand", ("a b c d e f g h i j",), (), "absent"),))
    answer = AnswerEncoder(tokenizer, "rationale_first", 4)(long)
    assert answer.kinds.count("query_values") == 4


def test_language_rows_predict_the_next_token_of_the_completion(tokenizer):
    prompts = encode_prompts(tokenizer, PAIRS, FIELDS, 40)
    encoder = AnswerEncoder(tokenizer, "label_first", 8)
    answers = [encoder(RATIONALE)] * 2
    rows = language_rows(prompts, answers, 0, kind_weights={"verdict": 3.0})
    for row, prompt in enumerate(prompts):
        whole = [*prompt, *answers[row].ids]
        np.testing.assert_array_equal(rows["inputs"]["tokens"][row][: len(whole) - 1], whole[:-1])
        np.testing.assert_array_equal(rows["targets"][row][rows["targets_mask"][row]], answers[row].ids)
    weights = rows["token_weights"][0]
    assert sorted(set(weights)) == [0.0, 1.0, 3.0]
    assert (weights == 3).sum() == answers[0].kinds.count("verdict")
    rows = language_rows(prompts, answers, 0, prompt_weight=0.1)
    assert rows["targets_mask"][0].sum() == len(prompts[0]) + len(answers[0].ids) - 1


def test_student_inputs_hold_query_and_item(tokenizer):
    cross = padded_inputs(CROSS_ENCODER, tokenizer, PAIRS, InputSpec(FIELDS, 12, 30))
    assert cross["tokens"].shape == (2, 42)
    valid, types = cross["valid"][0], cross["token_types"][0]
    text = tokenizer.decode(cross["tokens"][0][valid & (types == 0)], skip_special_tokens=True)
    assert text.strip() == "acme shoes"
    text = tokenizer.decode(cross["tokens"][0][valid & (types == 1)], skip_special_tokens=True)
    assert text.strip() == "acme corp red shoes acme red"
    towers = padded_inputs(TWO_TOWER, tokenizer, PAIRS, InputSpec(FIELDS, 12, 30))
    assert towers["query_tokens"].shape == (2, 12)
    for side in ("query", "item"):
        for tokens, valid in zip(towers[f"{side}_tokens"], towers[f"{side}_valid"]):
            ids = tokens[valid]
            assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert not tokens[~valid].any()


def test_evidence_tags_stand_at_the_tokens_of_their_spans(tokenizer):
    spans = [
        (Span("query", 0, 4, "brand"), Span("title", 10, 13, "color"), Span("brand", 0, 4, "brand")),
        (Span("query", 0, 2, "brand"),),
    ]
    cross = padded_inputs(CROSS_ENCODER, tokenizer, PAIRS, InputSpec(FIELDS, 12, 30))
    rows, masks = evidence_rows(tokenizer, PAIRS, spans, ("brand", "color"), FIELDS, 12, 30)
    tags, mask = pad(rows, 42, 0), pad(masks, 42, False, bool)

    def text(row, tag):
        return tokenizer.decode(cross["tokens"][row][tags[row] == tag]).split()

    assert text(0, 1) == ["acme", "acme"]
    assert text(0, 2) == ["red"]
    assert text(1, 1) == ["電池"]
    assert not tags[~mask].any()
    assert (mask <= cross["valid"]).all()


ALPHABET = "abc 電池✅é|:;\\-\n"
words_of_a_pair = st.text(ALPHABET, min_size=1, max_size=120)


@given(query=words_of_a_pair, title=words_of_a_pair, brand=st.text(ALPHABET, max_size=40), length=st.integers(40, 90))
def test_a_cut_prompt_keeps_its_words_and_whole_characters(tokenizer, query, title, brand, length):
    pair = Pair("1", query, Item("a", title, brand=brand))
    fields, losses = ("brand", "title"), []
    (ids,) = encode_prompts(tokenizer, [pair], fields, length, losses=losses)
    text = tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False)
    (whole,) = encode_prompts(tokenizer, [pair], fields, 100_000)
    assert len(ids) <= length
    assert text.startswith("query: ")
    assert text.endswith("\njudge:\n")
    assert "\N{REPLACEMENT CHARACTER}" not in text
    tokens, _, _, unknown, query_cut, item_cut, *_ = losses[0][0]
    assert tokens == len(whole)
    assert (query_cut + item_cut > 0) == (len(whole) > length)
    assert not unknown
    if len(whole) <= length:
        assert ids == whole
        return
    lines = text.removesuffix("\njudge:\n").split("\n")
    full = tokenizer.decode(whole[1:], clean_up_tokenization_spaces=False).split("\n")
    assert all(line.split(": ")[0] in ("query", "brand", "title") for line in lines if line)
    assert all(any(original.startswith(line) for original in full) for line in lines)


@pytest.mark.parametrize("chat", [False])
def test_an_item_never_disappears_behind_its_query(tokenizer, chat):
    long = Pair("1", "red shoes " * 80, Item("a", "acme corp battery " * 80))
    (ids,) = encode_prompts(tokenizer, [long], ("title",), 60, chat=chat)
    query, title, _, _ = tokenizer.decode(ids[1:]).split("\n")
    sizes = [len(tokenizer.encode(line, add_special_tokens=False)) for line in (query, title)]
    assert abs(sizes[0] - sizes[1]) < 12
    short = Pair("1", "red shoes", long.item)
    (ids,) = encode_prompts(tokenizer, [short], ("title",), 60, chat=chat)
    assert tokenizer.decode(ids[1:]).startswith("query: red shoes\ntitle: acme corp")


@given(
    query=st.text(ALPHABET, min_size=1, max_size=400),
    title=words_of_a_pair.filter(str.strip),
    brand=st.text(ALPHABET, max_size=200),
    color=st.text(ALPHABET, max_size=200),
    fields=st.permutations(("brand", "title", "color")),
    length=st.integers(48, 120),
)
@example(query=":", title=":", brand=":" * 9, color="", fields=["brand", "title", "color"], length=48)
def test_a_title_keeps_a_quarter_of_the_tokens(tokenizer, query, title, brand, color, fields, length):
    pair = Pair("1", query, Item("a", title, brand=brand, color=color))

    def title_of(ids):
        lines = tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False).split("\n")
        return next((line for line in lines if line.startswith("title: ")), "")

    (whole,), (ids,) = (encode_prompts(tokenizer, [pair], fields, size) for size in (100_000, length))
    assert len(ids) <= length
    full, shown = title_of(whole), title_of(ids)
    assert full.startswith(shown)
    # Words of the prompt itself, and a character or an escape of several tokens that is left out whole.
    words = len(tokenizer.encode("query: title: brand: color: judge:", add_special_tokens=False)) + 6
    if shown != full:
        assert len(tokenizer.encode(shown, add_special_tokens=False)) >= (length - words) // 4 - 6
    assert len(shown) > len("title: ") or not full.removeprefix("title: ").strip()


def test_a_long_query_and_brand_leave_room_for_the_title(tokenizer):
    long = Pair("1", "red shoes " * 80, Item("a", "acme battery " * 9, brand="Acme Corp " * 40, color="red " * 40))
    (ids,) = encode_prompts(tokenizer, [long], ("brand", "color", "title"), 60)
    lines = tokenizer.decode(ids[1:]).split("\n")
    assert [line.split(":")[0] for line in lines] == ["query", "brand", "title", "judge", ""]
    assert lines[2].startswith("title: acme battery")
    short = Pair("1", "red shoes", long.item)
    (ids,) = encode_prompts(tokenizer, [short], ("brand", "color", "title"), 60)
    assert "title: acme battery" in tokenizer.decode(ids[1:])


def test_pairs_that_become_one_prompt_are_counted(tokenizer):
    endings = ("the device", "the spare case", "The  Device")
    pairs = [Pair(str(i), "acme", Item(str(i), "red battery pack " * 30 + ending)) for i, ending in enumerate(endings)]
    losses = []
    encode_prompts(tokenizer, pairs, ("title",), 50, losses=losses)
    loss = summarize(losses)
    assert (loss.pairs, loss.merged_pairs, loss.cut_items, loss.cut_queries) == (3, 1, 3, 0)
    assert loss.cut_tokens > 0


def test_a_length_without_room_for_the_words_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"teacher\.prompt_length: 4 tokens do not hold the prompt's own words"):
        encode_prompts(tokenizer, PAIRS, FIELDS, 4)


def test_width_and_invisible_characters_make_one_prompt(tokenizer):
    pairs = [Pair("1", "red", Item("a", "acme")), Pair("2", "ｒｅ\u200bｄ", Item("b", "ac\u00adme", brand="\u2060"))]
    one, two = encode_prompts(tokenizer, pairs, ("brand", "title"), 50)
    assert one == two


def test_a_cut_keeps_marks_with_their_letters(tokenizer):
    title = "हिन्दी कपड़ा " * 10
    for length in range(40, 70):
        (ids,) = encode_prompts(tokenizer, [Pair("1", "red", Item("a", title))], ("title",), length)
        shown = tokenizer.decode(ids[1:]).split("\n")[1].removeprefix("title: ")
        assert regex.findall(r"\X", shown) == regex.findall(r"\X", title)[: len(regex.findall(r"\X", shown))]


@pytest.mark.parametrize("length", [60, 100, 200])
def test_what_a_character_too_long_for_the_title_leaves_goes_to_the_other_texts(tokenizer, length):
    accents = "e" + "\N{COMBINING ACUTE ACCENT}\N{COMBINING GRAVE ACCENT}" * 15  # of two tokens each
    pair = Pair("1", "red shoes " * 80, Item("a", f"acme {accents}", brand="acme " * 80))
    (ids,) = encode_prompts(tokenizer, [pair], ("brand", "title"), length)
    text = tokenizer.decode(ids[1:])
    assert "\ntitle: acme\n" in text or "\ntitle: acme \n" in text
    # A token or two may be lost at the end of each text.
    assert length - 6 <= len(ids) <= length


@pytest.mark.parametrize("title", ["a" + "\u0301" * 3000, "\u1100" * 2000 + "\u1161", "ก" + "\u0e33" * 3000])
def test_a_character_without_an_end_costs_an_item_no_title(tokenizer, title):
    first, second = (
        encode_prompts(tokenizer, [Pair("1", "red shoe", Item("a", start + title))], ("title",), 64)[0]
        for start in ("", "b")
    )
    assert first != second
    for prompt in (first, second):
        assert 48 < len(prompt) <= 64
        assert "title: \n" not in tokenizer.decode(prompt)

"""Texts that look the same are the same; words of every script match alike."""

import random
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jax_rele.data.pairs.candidates import candidates
from jax_rele.data.pairs.splits import long_tail
from jax_rele.rationale.words import words as rationale_words
from jax_rele.text import clean_text, clean_text_spans, lexical_words, locale_key, text_key
from jax_rele.types import Item, Pair

INVISIBLE = "\u200b\u200f\u200e\ufeff\u00ad\u2060\u200c\u200d\u034f\u061c\ufe0f\u3164\ufff3\U000e0041\x07\x7f"

any_text = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("e\u0301\u0323ガカ\u3099ｶﾞﾊﾟＡａ\u3000한ㅎ\u1112\u1161 \n" + INVISIBLE),
    )
)


@pytest.mark.parametrize("mark", INVISIBLE)
def test_characters_that_are_not_shown_make_no_difference(mark):
    for text in (f"t{mark}v", f"{mark}tv", f"tv{mark}"):
        assert text_key(text) == "tv"
        assert clean_text(text) == "tv"
        assert lexical_words(text) == ["tv"]
        assert [word.norm for word in rationale_words(text)] == ["tv"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" ＲＥＤ\u00a0\tStraße  ", "red strasse"),
        ("Cafe\u0301", "CAFÉ"),
        ("ﾌﾟﾗｸﾞ", "プラグ"),
        ("５０㌔", "50キロ"),
        ("가", "\u1100\u1161"),
        ("ﬁsh", "FISH"),
    ],
)
def test_one_identity(one, other):
    assert text_key(one) == text_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("ＴＶ　４Ｋ", "TV 4K"), ("ﾌﾟﾗｸﾞ", "プラグ"), ("Cafe\u0301", "Café"), ("가", "\u1100\u1161")],
)
def test_models_read_one_text(one, other):
    assert clean_text(one) == clean_text(other)


@pytest.mark.parametrize(
    "text", ["Kindle™ ½ cup", "m²", "ﬁsh", "Ⅻ", "plain text", "日本語のタイトル", "हिन्दी", "😀 fun"]
)
def test_models_read_other_forms_as_they_are(text):
    assert clean_text(text) == text


@settings(max_examples=300)
@given(any_text)
@example("e\u200b\u0301")
def test_cleaning_is_idempotent_and_keeps_track_of_characters(text):
    cleaned, spans = clean_text_spans(text)
    assert cleaned == clean_text(text)
    assert len(spans) == len(cleaned)
    assert clean_text(cleaned) == cleaned
    assert spans == sorted(spans)
    for character, (start, end) in zip(cleaned, spans):
        assert 0 <= start < end <= len(text)
        assert character in clean_text(text[start:end])


@settings(max_examples=300)
@given(any_text)
def test_identity_is_idempotent_and_knows_no_composition(text):
    key = text_key(text)
    assert text_key(key) == key
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert text_key(unicodedata.normalize(form, text)) == key
    assert text_key(clean_text(text)) == key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Men's 5-pocket jeans!", ["men", "s", "5", "pocket", "jeans"]),
        ("हिन्दी कपड़ा", ["हिन्दी", "कपड\u093cा"]),
        ("הַסֵּפֶר العَرَبِيَّة", ["הַסֵּפֶר", "العَرَبِيَّة"]),
        ("한국어 가방", ["한국어", "가방"]),
        ("红色鞋", ["红", "色", "鞋"]),
        ("赤いＴシャツ", ["赤", "い", "t", "シャ", "ャツ"]),
        ("สวัสดี", ["สวั", "วัส", "สดี"]),
        ("- !", []),
    ],
)
def test_words(text, expected):
    assert lexical_words(text) == expected


def spell(rng, alphabet, lengths, vocabulary):
    """A distinct word of an alphabet for each word."""
    seen = {}
    for word in vocabulary:
        while (other := "".join(rng.choices(alphabet, k=rng.choice(lengths)))) in seen.values():
            pass
        seen[word] = other
    return seen


def letters(first, last):
    return [chr(code) for code in range(ord(first), ord(last) + 1)]


SCRIPTS = {
    "han": (letters("一", "龥"), (1, 2), ""),
    "kana": (letters("ア", "ン"), (3, 4, 5), ""),
    "thai": ([a + b for a in letters("ก", "ฮ") for b in ("", "\u0e34", "\u0e39")], (3, 4, 5), ""),
    "hangul": (letters("가", "힣"), (2, 3), " "),
    "devanagari": ([a + b for a in letters("क", "ह") for b in ("", "\u093e", "\u0940")], (2, 3), " "),
    "arabic": ([a + b for a in letters("ب", "ي") for b in ("", "\u064e")], (3, 4), " "),
    "hebrew": ([a + b for a in letters("א", "ת") for b in ("", "\u05b7")], (3, 4), " "),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_catalogue_says_the_same_in_every_script(script):
    """Long tail, candidates and word overlap of a made-up catalogue and of its translation, word by word."""
    rng = random.Random(script)
    vocabulary = [f"w{number}" for number in range(300)]
    weights = [1 / (number + 1) for number in range(len(vocabulary))]
    alphabet, lengths, space = SCRIPTS[script]
    translation = spell(rng, alphabet, lengths, vocabulary)
    titles = [list(dict.fromkeys(rng.choices(vocabulary, weights, k=7))) for _ in range(250)]
    queries = [rng.sample(title, min(rng.randint(1, 3), len(title))) for title in titles]

    def pairs(write):
        return [
            Pair(str(i), write(query), Item(str(i), write(title)), split="train")
            for i, (query, title) in enumerate(zip(queries, titles))
        ]

    spaced, other = pairs(" ".join), pairs(lambda words: space.join(translation[word] for word in words))
    rare, rare_there = long_tail(spaced, 3), long_tail(other, 3)
    assert 0.1 < rare.mean() < 0.9
    assert (rare == rare_there).mean() > 0.93

    def overlap(group):
        sets = [(set(lexical_words(pair.query)), set(lexical_words(pair.item.title))) for pair in group]
        return np.array([[len(query & title) / len(query) for _, title in sets[:60]] for query, _ in sets[:60]])

    assert np.abs(overlap(spaced) - overlap(other)).mean() < 0.05

    def retrieved(group):
        items = [pair.item for pair in group]
        drawn = candidates(group[:60], items, 5, 0, bm25=1.0)
        position = {pair.query: i for i, pair in enumerate(group)}
        return Counter((position[pair.query], pair.item.id) for pair in drawn)

    here, there = retrieved(spaced), retrieved(other)
    assert sum((here & there).values()) / sum(here.values()) > 0.6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("１／２ inch", "1/2 inch"),
        ("９．５", "9.5"),
        ("１，０００", "1,000"),
        ("ｍｅｎ＇ｓ", "men's"),
        ("5㎏ rice", "5kg rice"),
        ("ﾌﾟﾗｸﾞ", "プラグ"),
    ],
)
def test_rules_read_one_text_in_every_width(one, other):
    texts = [[word.norm for word in rationale_words(text)] for text in (one, other)]
    assert "".join(texts[0]) == "".join(texts[1])
    for word in rationale_words(one):
        assert one[word.start : word.end]


def test_spellings_of_a_locale_are_one():
    assert {locale_key(text) for text in ("en_US", "en-us", "EN US", " en-US\u200b")} == {"en-us"}
    assert locale_key("US") == locale_key("us") != locale_key("en_us")
    assert locale_key("") == ""

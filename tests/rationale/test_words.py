import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.rationale.words import join, key, longest_first, runs, words

PIECES = [
    "T-shirts",
    "The",
    "a",
    "for",
    "men's",
    '12"',
    "9.5",
    "1,000",
    "½",
    "İ",
    "ß",
    "ﬁ",
    "e\u0301",
    "\u0301",
    "カバン",
    "ガ",
    "👩‍👧",
    "'",
    " ",
]
texts = st.one_of(
    st.text(), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=2)), max_size=10).map("".join)
)


@pytest.mark.parametrize(
    "same",
    [
        ("T-Shirts", "t shirt", "TSHIRT", "T‑shirts"),
        ("The North Face", "northface", "NORTH  FACE", "north-face"),
        ("men's", "mens", "Men", "for men", "men’s"),
        ("dresses", "Dress"),
        ("watches", "watch"),
        ("batteries", "battery"),
        ("boxes", "box"),
        ("knives", "knife"),
        ('12"', "12 inches", "12in", "12-inch", "12inch"),
        ("5 lbs", "5lb", "5 pound"),
        ("16 oz", "16oz", "16 ounces"),
        ("1,000mAh", "1000 mAh"),
        ("½", "1/2"),
        ("café", "cafe\u0301", "CAFE"),
        ("İstanbul", "istanbul", "ISTANBUL"),
        ("straße", "STRASSE"),
        ("ﬁlter", "filter"),
        ("ＬＥＤ", "led"),
        ("grey", "Gray"),
        ("ガス", "カ\u3099ス"),
        ("Foo™", "foo"),
        ("", "🔥", "--"),
    ],
)
def test_texts_that_say_the_same_have_one_key(same):
    assert len({key(text) for text in same}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bus", "bu"),
        ("glass", "glas"),
        ("1 2", "12"),
        ("9.5", "95"),
        ("1,5", "15"),
        ("ガス", "カス"),
        ("red", "reds x"),
        ("the", ""),
    ],
)
def test_texts_that_differ_have_different_keys(one, other):
    assert key(one) != key(other)


def test_offsets_are_those_of_the_original_text():
    text = "👟 İKEA's  STRAßE-cafe\u0301, 9.5\""
    assert [(text[w.start : w.end], w.norm) for w in words(text)] == [
        ("İKEA's", "ikea"),
        ("STRAßE", "strasse"),
        ("cafe\u0301", "cafe"),
        ('9.5"', "9.5inch"),
    ]


def test_marks_alone_are_no_word():
    assert [w.norm for w in words("5 \u0301 6")] == ["5", "6"]


@given(texts, texts)
def test_words_are_in_order_and_keep_apart(text, other):
    end = 0
    for word in words(text):
        assert end <= word.start < word.end <= len(text)
        assert word.norm
        end = word.end
    assert key(f"{text}\n{other}") == key(key_of_parts(text, other))


def key_of_parts(*parts):
    return " ".join(part[w.start : w.end] for part in parts for w in words(part))


@given(texts, st.integers(0, 8), st.integers(1, 3))
def test_runs_find_every_run_with_the_key(text, start, length):
    text_words = words(text)
    run = text_words[start : start + length]
    if not run:
        assert list(runs(text_words, key("absent here"))) == []
        return
    phrase = key(text[run[0].start : run[-1].end])
    assert phrase == key(" ".join(text[w.start : w.end] for w in run))
    spans = list(runs(text_words, phrase))
    expected = {
        (s, e)
        for s in range(len(text_words))
        for e in range(s + 1, len(text_words) + 1)
        if key(text[text_words[s].start : text_words[e - 1].end]) == phrase == join([w.norm for w in text_words[s:e]])
    }
    assert set(spans) == expected
    assert len(spans) == len(expected)


def test_runs_respect_word_boundaries():
    text = "redder red reds, T-shirt tshirts; a x"
    text_words = words(text)
    assert [text[text_words[s].start : text_words[e - 1].end] for s, e in runs(text_words, "red")] == ["red", "reds"]
    assert [text[text_words[s].start : text_words[e - 1].end] for s, e in runs(text_words, "tshirt")] == [
        "T-shirt",
        "tshirts",
    ]
    assert list(runs(text_words, "ax")) == []


def test_longest_first_prefers_length_then_the_order_given():
    assert longest_first([(0, 1, "a"), (0, 2, "b"), (1, 3, "c"), (3, 4, "d"), (3, 4, "e")]) == [
        (0, 2, "b"),
        (3, 4, "d"),
    ]

"""Made-up pairs: new texts of known words."""

import pytest

from jax_rele.data import read_pairs, recombine

LABELS = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}


@pytest.fixture(scope="module")
def pairs():
    return read_pairs("sample", label_names=list(LABELS.values()), label_map=LABELS)[0][:477]


def test_texts_are_new_and_their_words_are_known(pairs):
    recombined = recombine(pairs, 2000, seed=0)
    known = {word for pair in pairs for word in f"{pair.item.title} {pair.item.brand} {pair.query}".lower().split()}
    assert len({(pair.query, pair.item.title) for pair in recombined}) > 1950
    assert not {pair.item.title for pair in recombined} & {
        pair.item.title for pair in pairs if len(pair.item.title) > 60
    }
    for pair in recombined:
        assert pair.query.strip()
        assert pair.item.title.strip()
        assert set(f"{pair.item.title} {pair.query}".lower().split()) <= known
        assert (pair.label, pair.tags) == (None, None)


def test_queries_are_found_in_titles_often_but_not_always(pairs):
    recombined = recombine(pairs, 2000, seed=0)
    fraction = sum(pair.query in pair.item.title.lower() for pair in recombined) / len(recombined)
    assert 0.4 < fraction < 0.75


def test_it_depends_on_the_seed_and_not_on_the_order(pairs):
    assert recombine(pairs, 50, seed=1) == recombine(pairs[::-1], 50, seed=1)
    assert recombine(pairs, 50, seed=1) != recombine(pairs, 50, seed=2)


def test_one_pair_of_one_word_is_enough(pairs):
    tiny = [pair for pair in pairs if len(pair.query.split()) == 1][:1]
    assert len(recombine(tiny, 20, seed=0)) == 20

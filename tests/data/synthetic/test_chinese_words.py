"""The Chinese words of the attribute world: texts without spaces that can still be read back."""

from itertools import permutations

import numpy as np

from jax_rele.data.synthetic import attribute_world, catalogue
from jax_rele.data.synthetic.chinese_words import CHINESE
from jax_rele.rationale import find_evidence
from jax_rele.types import QUERY, Span

DIMENSION_OF = {
    word: dimension
    for dimension, values in zip(catalogue.DIMENSIONS, CHINESE.words)
    for value in values
    for word in value
}
WORDS = [*DIMENSION_OF, *CHINESE.fillers]


def test_they_are_as_many_as_the_world_has_and_none_twice():
    assert tuple(len(values) for values in CHINESE.words) == catalogue.SIZES
    assert {len(value) for values in CHINESE.words for value in values} == {catalogue.SYNONYMS}
    assert len(CHINESE.fillers) == catalogue.FILLERS
    assert len(set(WORDS)) == len(WORDS)
    assert all(CHINESE.complements[other] == one for one, other in enumerate(CHINESE.complements))


def test_no_word_stands_in_another_or_across_the_border_of_two():
    folded = [word.casefold() for word in WORDS]
    for one, other in permutations(folded, 2):
        joined = one + other
        assert one not in other
        for word in folded:
            at = joined.find(word, 1)
            assert at in (-1, 0, len(one)) or word in (one, other), (one, other, word)


def test_evidence_is_where_the_words_stand():
    table = catalogue.make_table(catalogue.make_world(0, CHINESE), "test", 200)
    for pair, rationale in zip(table.pairs, attribute_world.judge(table, 0.3).rationales):
        expected = set()
        for source, text in ((QUERY, pair.query), ("title", pair.item.title)):
            assert " " not in text
            for word, dimension in DIMENSION_OF.items():
                if (at := text.find(word)) >= 0:
                    expected.add(Span(source, at, at + len(word), dimension))
        assert set(find_evidence(pair, rationale, ("title",))) == expected


def test_the_world_is_that_of_meaningless_words_but_for_its_words_and_complements():
    chinese, meaningless = (catalogue.make_world(3, lexicon) for lexicon in (CHINESE, None))
    tables = [catalogue.make_table(world, "labelled", 500) for world in (chinese, meaningless)]
    np.testing.assert_array_equal(chinese.query_values, meaningless.query_values)
    np.testing.assert_array_equal(tables[0].synonyms, tables[1].synonyms)
    np.testing.assert_array_equal(tables[0].values[:, 1:], tables[1].values[:, 1:])


def test_the_command_writes_the_characters_themselves(tmp_path):
    assert attribute_world.main([str(tmp_path), "--words", "chinese", "--labels", "6", "--unlabelled", "4"]) == 0
    assert "书包" in (tmp_path / "pairs.jsonl").read_text("utf-8")
    assert "书包" in (tmp_path / "signals.jsonl").read_text("utf-8")

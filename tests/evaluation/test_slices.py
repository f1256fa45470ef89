"""Slices are the masks that their names say."""

from dataclasses import replace

import numpy as np
import pytest

from jax_rele.evaluation import slices


def test_long_tail_and_head_part_the_pairs_and_locales_are_those_that_occur(pairs):
    located = [replace(pair, locale=locale) for pair, locale in zip(pairs, ["us", "es", "", "us"])]
    named = slices(located, np.array([True, False, False, True]))
    assert {name: mask.tolist() for name, mask in named.items()} == {
        "long_tail": [True, False, False, True],
        "head": [False, True, True, False],
        "locale:es": [False, True, False, False],
        "locale:us": [True, False, False, True],
    }


def test_nothing_is_made_up_where_nothing_is_known(pairs):
    assert slices([replace(pair, locale="") for pair in pairs]) == {}
    with pytest.raises(ValueError, match="one bool per pair"):
        slices(pairs, np.array([True]))


def test_spellings_of_a_locale_are_one_slice(pairs):
    spelled = [replace(pair, locale=locale) for pair, locale in zip(pairs, ["en_US", "EN-us", "us", "US"])]
    named = slices(spelled)
    assert {name: mask.tolist() for name, mask in named.items()} == {
        "locale:en-us": [True, True, False, False],
        "locale:us": [False, False, True, True],
    }

"""Scores by shared prefixes against one uncached pass per row, with the softmax in float64."""

import dataclasses

import jax
import numpy as np
import pytest

from jax_rele.teacher import Verbalizers, score
from jax_rele.teacher import label_scores as scoring_module
from jax_rele.teacher.label_scores import first_token_probs, full_probs
from jax_rele.teacher.shared_prefixes import make_plan

FIRST = Verbalizers((5,), ((30,), (31, 9), (32,)))
FULL = Verbalizers((), ((30, 8), (30, 8, 12), (31, 9)))
"""The first verbalizer is a prefix of the second."""
FOLLOW = 12
"""The token after a verbalizer, which is also how the longer verbalizer continues."""


def make_rows(queries, items, base=(1,), seed=0):
    """Prompts of queries of different lengths, `items[query]` rows for each."""
    rng = np.random.default_rng(seed)
    rows, groups = [], []
    for query, count in zip(range(queries), items):
        prefix = [*base, *rng.integers(40, 90, 20 + 2 * query)]
        rows += [[*prefix, *rng.integers(40, 90, rng.integers(1, 17))] for _ in range(count)]
        groups += [query] * count
    return [[int(token) for token in row] for row in rows], groups


def score_rows(teacher, rows, groups, verbalizers, batch_size=8, **options):
    return score(
        teacher.model, teacher.variables, rows, verbalizers, FOLLOW, groups=groups, batch_size=batch_size, **options
    )


@pytest.mark.parametrize("base", [(1,), tuple(range(10, 35))], ids=["short", "instructions"])
def test_first_tokens_equal_the_naive_score_and_are_compiled_once_per_bucket(teacher, naive, base):
    rows, groups = make_rows(4, (9, 5, 1, 3), base)
    plan = make_plan(rows, groups, 8)
    assert any(window.prefixes for window in plan.windows)
    first_token_probs.clear_cache()
    label_probs = score_rows(teacher, rows, groups, FIRST)
    compiles = first_token_probs._cache_size()
    assert compiles == len({(window.length, batch.length) for window in plan.windows for batch in window.batches})
    score_rows(teacher, *make_rows(4, (9, 5, 1, 3), base, seed=7), FIRST)
    assert first_token_probs._cache_size() == compiles
    for row, probs in zip(rows, label_probs):
        logits = naive.logits(teacher.model, teacher.variables, row)[-1]
        np.testing.assert_allclose(probs, naive.softmax(logits[[30, 31, 32]]), atol=1e-5)


def test_full_log_probabilities_equal_the_naive_score(teacher, naive):
    """A verbalizer's probability is that of all its tokens and of the token that follows."""
    # A flatter model, so that no label has all the probability.
    variables = jax.tree.map(lambda x: x, teacher.variables)
    variables["params"]["embedding"] = variables["params"]["embedding"] / 30
    flat = dataclasses.replace(teacher, variables=variables)
    rows, groups = make_rows(3, (6, 4, 1))
    label_probs = score_rows(flat, rows, groups, FULL)
    for row, probs in zip(rows, label_probs):
        expected = []
        for verbalizer in FULL.rests:
            log_probs = np.log(naive.softmax(naive.logits(flat.model, variables, [*row, *verbalizer])))
            targets = [*verbalizer, FOLLOW]
            expected.append(sum(log_probs[len(row) - 1 + index, target] for index, target in enumerate(targets)))
        expected = naive.softmax(np.array(expected))
        np.testing.assert_allclose(probs, expected, atol=1e-5)
        np.testing.assert_allclose(np.log(probs), np.log(expected), atol=1e-3)


def test_results_are_in_input_order(teacher):
    rows, groups = make_rows(4, (9, 5, 1, 3))
    order = np.random.default_rng(1).permutation(len(rows))
    label_probs = score_rows(teacher, rows, groups, FIRST)
    shuffled = score_rows(teacher, [rows[row] for row in order], [groups[row] for row in order], FIRST)
    np.testing.assert_allclose(shuffled, label_probs[order], atol=1e-5)


def test_a_prefix_is_read_once(teacher, monkeypatch):
    """Two queries of 20 and 9 items, in batches of 8: one prefill of their two prefixes."""
    read = []
    prefill = scoring_module.prefill
    monkeypatch.setattr(scoring_module, "prefill", lambda *args: read.append(args[4].shape) or prefill(*args))
    rows, groups = make_rows(2, (20, 9))
    done = []
    score_rows(teacher, rows, groups, FIRST, progress=done.append)
    assert read == [(4, 32)]
    assert sum(done) == 29


def test_no_rows_have_no_scores(teacher):
    assert score_rows(teacher, [], [], FIRST).shape == (0, 3)


def test_the_logits_of_a_batch_are_never_formed(teacher):
    """No array of the compiled score holds a number per token and vocabulary entry."""
    rows, length, vocabulary = 3, 16, teacher.model.config.vocab_size
    ints = np.zeros(rows, np.int32)
    cache = scoring_module.base_cache(teacher.model, teacher.variables, (), 1)
    arguments = (teacher.model, teacher.variables, cache, ints, np.zeros((rows, length), np.int32), ints, ints + 1)
    first = first_token_probs.lower(*arguments, np.zeros(3, np.int32)).as_text()
    assert f"x{vocabulary}x" not in first.replace(f"tensor<{vocabulary}x", "")
    full = full_probs.lower(*arguments, np.zeros((3, 2), np.int32), np.zeros(3, np.int32), 1).as_text()
    assert f"{rows}x{length}x{vocabulary}x" not in full

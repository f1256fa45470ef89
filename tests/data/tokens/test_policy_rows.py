"""Rows of sampled answers: what counts of them, and that packing changes nothing of it."""

import numpy as np
import pytest

from jax_rele.data.tokens.policy_rows import decided_tokens, policy_rows
from jax_rele.data.tokens.prompts import Answer

KINDS = ["fixed", "query_values", "query_values", "fixed", "fixed", "verdict", "fixed", "label", "fixed"]


def test_what_the_model_decides_counts_and_where_a_value_ends():
    assert decided_tokens(KINDS) == [False, True, True, True, False, True, False, True, False]
    assert decided_tokens([]) == []


@pytest.mark.parametrize("length", [14, 40])
def test_every_answer_is_there_once_with_its_advantage(length):
    prompts = [[1, 2, 3], [4, 5], [6]]
    answers = [Answer([10 * n + k for k in range(len(KINDS))], KINDS) for n in range(1, 4)]
    rows = policy_rows(prompts, answers, [0.5, -1.5, 0.0], 0, length)
    mask = rows["targets_mask"]
    counted = dict(zip(rows["targets"][mask].tolist(), rows["advantages"][mask].tolist()))
    decided = np.flatnonzero(decided_tokens(KINDS))
    expected = {10 * n + int(k): a for n, a in zip(range(1, 4), [0.5, -1.5, 0.0]) for k in decided}
    assert counted == expected
    assert not rows["advantages"][~mask].any()
    assert rows["inputs"]["tokens"].shape == mask.shape
    assert {len(np.unique(row)) - 1 for row in rows["inputs"]["segments"]} <= {1, 2, 3}


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="sizes must be"):
        policy_rows([[1] * 9], [Answer([1, 2], ["label", "fixed"])], [1.0], 0, 8)

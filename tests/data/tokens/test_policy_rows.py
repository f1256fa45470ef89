"""Rows of sampled answers: packing changes nothing of what counts and of what it is worth."""

import numpy as np
import pytest

from jax_rele.data.tokens.policy_rows import policy_rows

DECIDED = [False, True, True, True, False, True, False, True, False]


@pytest.mark.parametrize("length", [14, 40])
def test_every_answer_is_there_once_with_its_advantage(length):
    prompts = [[1, 2, 3], [4, 5], [6]]
    answers = [[10 * n + k for k in range(len(DECIDED))] for n in range(1, 4)]
    rows = policy_rows(prompts, answers, [DECIDED] * 3, [0.5, -1.5, 0.0], 0, length)
    mask = rows["targets_mask"]
    counted = dict(zip(rows["targets"][mask].tolist(), rows["advantages"][mask].tolist()))
    decided = np.flatnonzero(DECIDED).tolist()
    assert counted == {10 * n + k: a for n, a in zip(range(1, 4), [0.5, -1.5, 0.0]) for k in decided}
    assert not rows["advantages"][~mask].any()
    assert rows["inputs"]["tokens"].shape == mask.shape == (len(mask), length)


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="sizes must be"):
        policy_rows([[1] * 9], [[1, 2]], [[True, False]], [1.0], 0, 8)

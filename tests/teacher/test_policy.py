"""Log-probabilities of drawn tokens, and how far they are from the reference's."""

import numpy as np
import pytest

from jax_rele import config
from jax_rele.data.tokens.policy_rows import policy_rows
from jax_rele.teacher.policy import divergence, token_log_probs
from jax_rele.training import make_mesh

PROMPTS = [[7, 8, 9], [10, 11], [12, 13, 14, 15]]
ANSWERS = [[20, 21, 22], [23, 24, 25, 26], [27, 28]]
DECIDED = [[False, True, True], [True, False, True, False], [True, True]]


@pytest.mark.parametrize("length", [8, 24])
def test_log_probs_are_those_of_each_text_read_alone(teacher, naive, length):
    rows = policy_rows(PROMPTS, ANSWERS, DECIDED, [1.0, 2.0, 3.0], 0, length)
    mesh = make_mesh(config.MeshConfig())
    log_probs = token_log_probs(teacher.model, teacher.variables, rows, 8, mesh)
    assert log_probs.shape == rows["targets"].shape
    np.testing.assert_array_equal(log_probs[~rows["targets_mask"]], 0.0)
    # Every target is another token, so it names its position.
    ours = dict(zip(rows["targets"][rows["targets_mask"]].tolist(), log_probs[rows["targets_mask"]]))
    expected = {}
    for prompt, answer, decided in zip(PROMPTS, ANSWERS, DECIDED):
        logits = naive.logits(teacher.model, teacher.variables, [*prompt, *answer])
        for index, (token, counts) in enumerate(zip(answer, decided)):
            if counts:
                expected[token] = np.log(naive.softmax(logits[len(prompt) + index - 1])[token])
    assert ours.keys() == expected.keys()
    for token, value in expected.items():
        np.testing.assert_allclose(ours[token], value, rtol=1e-3, atol=1e-3)


def test_the_divergence_estimates_that_of_the_model_that_drew():
    rng = np.random.default_rng(0)
    ours, reference = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    drawn = rng.choice(5, size=(1, 200_000), p=ours)
    mask = np.arange(200_000)[None] % 10 > 0
    total, count = divergence(np.log(ours)[drawn], np.log(reference)[drawn], mask)
    assert count == 180_000
    assert total / count == pytest.approx((ours * np.log(ours / reference)).sum(), rel=0.03)

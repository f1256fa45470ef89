"""Self-consistency: means over sampled rationales, the rationale that agrees with them, and repeatability."""

import dataclasses

import numpy as np
import pytest

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.rationale import ParseFailure, parse
from jax_rele.teacher import Sampling, TeacherPredictions, average, judge, sample
from jax_rele.types import VERDICTS

WARM = Sampling(temperature=1.5, seed=4)
LABELS, DIMENSIONS = ("Good", "Bad"), ("brand", "color")


@pytest.fixture(scope="module")
def warm(teacher):
    return dataclasses.replace(teacher, order="rationale_first", samples=4, sampling=WARM)


def predictions(label_probs, verdicts, text):
    """One pair's; `verdicts` are the indices of certain ones."""
    rationale = parse(text) if text else ParseFailure("none")
    return TeacherPredictions(
        np.array([label_probs]), np.eye(len(VERDICTS))[[verdicts]], (text,), (rationale,), "first_token", 3, 5
    )


def text_of(brand, color, label):
    return f"brand: - | - | {brand}\ncolor: - | - | {color}\nlabel: {label}"


def test_distributions_are_means_and_the_rationale_is_one_that_agrees():
    samples = [
        predictions([0.2, 0.8], [0, 0], text_of("match", "match", "Bad")),
        predictions([0.9, 0.1], [1, 0], text_of("mismatch", "match", "Good")),
        predictions([0.7, 0.3], [0, 0], text_of("match", "match", "Good")),
        predictions([0.6, 0.4], [0, 0], ""),
    ]
    mean = average(samples, LABELS, DIMENSIONS)
    np.testing.assert_allclose(mean.label_probs, [[0.6, 0.4]])
    np.testing.assert_allclose(mean.verdict_probs, [[[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]]])
    assert mean.texts == (text_of("match", "match", "Good"),)
    assert mean.rationales == (parse(mean.texts[0]),)
    assert (mean.tokens_decoded, mean.tokens_emitted) == (12, 20)
    # No sample has the likeliest label: most of the verdicts decide.
    assert average(samples[:1] + samples[3:], LABELS, DIMENSIONS).texts == (samples[0].texts[0],)
    assert average(samples[3:], LABELS, DIMENSIONS).rationales == (ParseFailure("none"),)


def test_the_mean_of_one_sample_is_that_sample(warm, pairs):
    (one,) = sample(warm, pairs, 1, WARM)
    mean = average([one], warm.schema.names, warm.dimensions)
    assert mean.texts == one.texts
    np.testing.assert_array_equal(mean.label_probs, one.label_probs)
    np.testing.assert_array_equal(mean.verdict_probs, one.verdict_probs)


def test_one_sample_is_greedy_whatever_the_temperature(teacher, pairs):
    greedy, warm = judge(teacher, pairs), judge(dataclasses.replace(teacher, samples=1, sampling=WARM), pairs)
    assert greedy.texts == warm.texts
    np.testing.assert_array_equal(greedy.label_probs, warm.label_probs)
    np.testing.assert_array_equal(greedy.verdict_probs, warm.verdict_probs)


def test_a_judgement_is_the_mean_of_the_samples(warm, pairs):
    done = []
    judged = judge(warm, pairs, progress=done.append)
    assert sum(done) == len(pairs)
    drawn = sample(warm, pairs, 4, WARM)
    assert len({one.texts for one in drawn}) > 1
    np.testing.assert_allclose(judged.label_probs, np.mean([one.label_probs for one in drawn], axis=0), atol=1e-6)
    np.testing.assert_allclose(judged.verdict_probs, np.mean([one.verdict_probs for one in drawn], axis=0), atol=1e-6)
    assert np.ptp([one.label_probs for one in drawn], axis=0).max() > 1e-3
    for pair, text in enumerate(judged.texts):
        assert text in {one.texts[pair] for one in drawn}


def test_it_depends_on_the_seed_alone_not_on_the_batch(warm, pairs):
    whole = judge(warm, pairs)
    again = judge(dataclasses.replace(warm, batch_size=2), pairs[::-1])
    assert again.texts[::-1] == whole.texts
    np.testing.assert_allclose(again.label_probs[::-1], whole.label_probs, atol=1e-5)
    np.testing.assert_allclose(again.verdict_probs[::-1], whole.verdict_probs, atol=1e-5)
    part = judge(warm, pairs[1:3])
    assert part.texts == whole.texts[1:3]
    other = dataclasses.replace(warm, sampling=dataclasses.replace(WARM, seed=5))
    assert np.abs(judge(other, pairs).label_probs - whole.label_probs).max() > 1e-3


def test_a_label_that_comes_first_has_one_distribution(teacher, pairs):
    warm = dataclasses.replace(teacher, samples=3, sampling=WARM)
    greedy = judge(teacher, pairs)
    np.testing.assert_allclose(judge(warm, pairs).label_probs, greedy.label_probs, atol=1e-5)
    assert judge(warm, pairs, write=False).texts == judge(teacher, pairs, write=False).texts


def test_labels_alone_have_nothing_to_sample():
    with pytest.raises(
        UserError, match=r"score\.samples: with teacher\.order label_only there is no rationale to draw"
    ):
        config.from_dict({"score": {"samples": 2}, "teacher": {"order": "label_only"}})

"""Which examples are in which batch: every one once per epoch, whatever the batches, streams and windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data.batches.sampler import Stream, count_streams, shuffle_streams


def drawn(examples, steps):
    return np.concatenate([examples.batch(step) for step in range(steps)])


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 17),
    epochs=st.integers(1, 3),
    window=st.sampled_from([1, 4]),
    seed=st.integers(0, 5),
)
def test_every_example_once_per_epoch_and_gaps_at_the_end_alone(count, batch_size, epochs, window, seed):
    sizes = np.arange(count) % 3
    examples = shuffle_streams(
        [Stream(np.arange(count) * 10, (batch_size,))], seed, sizes=np.repeat(sizes, 10), window=window, epochs=epochs
    )
    assert examples.steps == -(-count * epochs // batch_size)
    numbers = drawn(examples, examples.steps)
    present = numbers[numbers >= 0]
    assert (numbers[: len(present)] >= 0).all()
    assert len(numbers) - len(present) < batch_size
    np.testing.assert_array_equal(np.sort(present), np.repeat(np.arange(count) * 10, epochs))
    if window == 1:
        for epoch in range(epochs):
            assert sorted(present[epoch * count : (epoch + 1) * count]) == list(range(0, count * 10, 10))


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
def test_without_end_nothing_is_dropped_or_repeated_within_an_epoch(count, batch_size, seed):
    examples = shuffle_streams([Stream(np.arange(count), (batch_size,))], seed)
    assert examples.steps is None
    numbers = drawn(examples, -(-3 * count // batch_size))
    for epoch in range(3):
        assert sorted(numbers[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_every_epoch_and_every_seed_is_another_shuffle():
    first, second = (drawn(shuffle_streams([Stream(np.arange(50), (50,))], seed), 2) for seed in (0, 1))
    assert (first[:50] != first[50:]).any()
    assert (first[:50] != second[:50]).any()
    assert (first[:50] != np.arange(50)).any()


def test_what_a_stream_gives_does_not_depend_on_those_behind_it():
    alone = shuffle_streams([Stream(np.arange(9), (2,))], 3)
    mixed = shuffle_streams([Stream(np.arange(9), (2,)), Stream(np.arange(100, 130), (3,))], 3)
    for step in range(20):
        np.testing.assert_array_equal(mixed.batch(step)[:2], alone.batch(step))
        assert (mixed.batch(step)[2:] >= 100).all()


@given(
    start=st.floats(0.05, 1.0),
    end=st.floats(0.05, 1.0),
    width=st.integers(2, 64),
    steps=st.integers(1, 60),
)
def test_a_scheduled_mixture_has_its_proportions(start, end, width, steps):
    fraction = np.linspace(start, end, steps + 1)
    first, second, cycle = count_streams(fraction, width)
    streams = [Stream(np.arange(3), first, cycle), Stream(np.arange(3), second, cycle)] if any(second) else []
    for stream, expected_fraction in zip(streams, (fraction, 1 - fraction)):
        counts = np.diff([stream.before(step) for step in range(steps + 400)])
        if (fraction * width >= 1).all():
            # Carried rounding errors: never more than one place off while the share changes, nor long after.
            whole = (
                np.concatenate([expected_fraction, np.full(len(counts), expected_fraction[-1])])[: len(counts)] * width
            )
            drift = np.abs(np.cumsum(counts) - np.cumsum(whole))
            assert drift[: steps + 100].max() <= 1.0
            assert drift.max() <= 1.0 + 0.5 * (1 + len(counts) / 100)  # half a place a cycle
    assert all(a + b == width for a, b in zip(first, second))
    assert min(first) >= 1


def test_the_last_share_holds_for_ever():
    first, second, cycle = count_streams([0.75, 0.5, 0.25], 8)
    assert (first[-1], second[-1], cycle) == (2, 6, 1)
    examples = shuffle_streams([Stream(np.arange(50), first), Stream(np.arange(100, 150), second)], 0)
    for step in (2, 3, 10, 50):
        batch = examples.batch(step)
        assert ((batch >= 0) & (batch < 100)).sum() == 2


def test_a_window_deals_examples_of_like_size_together_and_draws_the_order_of_its_batches():
    sizes = np.random.default_rng(0).integers(1, 9, 4000)

    def spread(examples):
        return np.mean([np.ptp(sizes[examples.batch(step)]) for step in range(64)])

    stream = [Stream(np.arange(4000), (16,))]
    mixed, bucketed = shuffle_streams(stream, 0), shuffle_streams(stream, 0, sizes=sizes, window=32)
    assert spread(bucketed) < 0.2 * spread(mixed)
    means = np.array([sizes[bucketed.batch(step)].mean() for step in range(32)])
    assert (np.diff(means) < 0).any()
    assert (np.diff(means) > 0).any()
    # The same examples in the window, dealt otherwise.
    assert sorted(drawn(bucketed, 32)) == sorted(drawn(mixed, 32))


@pytest.mark.parametrize("window", [1, 8])
def test_a_step_does_not_depend_on_those_before_it(window):
    sizes = np.arange(100) % 7

    def make_order():
        return shuffle_streams([Stream(np.arange(100), (6,))], 2, sizes=sizes, window=window)

    whole = make_order()
    expected = [whole.batch(step) for step in range(60)]
    for step in (59, 0, 31, 7, 8):
        np.testing.assert_array_equal(make_order().batch(step), expected[step])


@pytest.mark.parametrize(("fraction", "width"), [(0.3, 16), (1 / 3, 16), (0.9, 5)])
def test_a_share_that_is_no_whole_number_of_places_is_kept(fraction, width):
    first, _, cycle = count_streams([fraction], width)
    stream = Stream(np.arange(9), first, cycle)
    assert stream.before(10_000) / (10_000 * width) == pytest.approx(fraction, abs=0.5 / (100 * width))
    assert set(np.diff([stream.before(step) for step in range(500)])) == {
        int(fraction * width),
        int(fraction * width) + 1,
    }


def test_what_can_never_give_a_batch_is_refused():
    with pytest.raises(ValueError, match="needs members"):
        Stream(np.arange(0), (3,))
    with pytest.raises(ValueError, match="not all 0"):
        Stream(np.arange(3), (0,))
    with pytest.raises(ValueError, match="cycle"):
        Stream(np.arange(3), (1,), 2)
    with pytest.raises(ValueError, match="never ends"):
        shuffle_streams([Stream(np.arange(3), (1, 0))], 0, epochs=1)

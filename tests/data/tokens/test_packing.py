"""Packed rows: every example once and whole, and the loss of the same examples one a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele import losses
from jax_rele.data.tokens.packing import lay_out, pack_examples
from jax_rele.data.tokens.prompts import Answer, language_rows
from jax_rele.models import Decoder, DecoderConfig

LENGTH, PAD = 24, 99


@given(st.lists(st.integers(1, LENGTH), max_size=60))
def test_every_example_is_in_one_row_that_has_room_for_it(sizes):
    rows = pack_examples(sizes, LENGTH)
    assert sorted(example for row in rows for example in row) == list(range(len(sizes)))
    row_sizes = [sum(sizes[example] for example in row) for row in rows]
    assert all(0 < total <= LENGTH for total in row_sizes)
    # No two rows that are at most half full: the later one's first example had room in the earlier.
    assert sum(total <= LENGTH / 2 for total in row_sizes) <= 1
    for row in rows:
        assert row == sorted(row, key=lambda example: (-sizes[example], example))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_few_rows_are_near_the_fewest(sizes):
    """Against the fewest possible, by search: 11/9 of them and 6/9 of a row."""
    assert 9 * len(pack_examples(sizes, 12)) <= 11 * fewest(tuple(sorted(sizes)), ()) + 6


def fewest(sizes, row_sizes):
    """Rows of 12 that hold all sizes, by trying every place for the largest."""
    if not sizes:
        return len(row_sizes)
    *rest, size = sizes
    spaces = {space for space in row_sizes if space + size <= 12}
    tried = [
        (*row_sizes[: row_sizes.index(space)], space + size, *row_sizes[row_sizes.index(space) + 1 :])
        for space in spaces
    ]
    return min(fewest(tuple(rest), tuple(sorted(rows))) for rows in [*tried, (*row_sizes, size)])


@pytest.mark.parametrize("sizes", [[3, LENGTH + 1], [0, 3]])
def test_an_example_that_no_row_can_hold_is_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be from 1 to 24"):
        pack_examples(sizes, LENGTH)
    with pytest.raises(ValueError, match="row 0 holds 25 tokens, more than 24"):
        lay_out([range(26)], [[1.0] * 26], [[0]], LENGTH, PAD)


def examples(count, seed=0):
    """Prompts of weight 0 and answers of three kinds, of unequal lengths."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 50, rng.integers(1, 8)).tolist() for _ in range(count)]
    answers = []
    for length in rng.integers(1, 10, count):
        kinds = rng.choice(["fixed", "verdict", "label"], length).tolist()
        answers.append(Answer(rng.integers(0, 50, length).tolist(), kinds))
    return prompts, answers


WEIGHTS = {"verdict": 3.0, "label": 0.5}


@given(st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_rows_hold_what_they_were_given_and_targets_stay_within_it(count, seed):
    prompts, answers = examples(count, seed)
    rows = language_rows(prompts, answers, PAD, LENGTH, kind_weights=WEIGHTS)
    tokens, segments, positions = (rows["inputs"][name] for name in ("tokens", "segments", "positions"))
    unpacked = []
    for row in range(len(tokens)):
        numbers = segments[row][segments[row] > 0]
        # Segments stand one behind the other, numbered from 1; padding comes last.
        assert (np.diff(numbers) >= 0).all()
        np.testing.assert_array_equal(segments[row][: len(numbers)], numbers)
        assert sorted(set(numbers)) == list(range(1, numbers.max() + 1))
        for segment in range(1, numbers.max() + 1):
            here = segments[row] == segment
            np.testing.assert_array_equal(positions[row][here], np.arange(here.sum()))
            ids, targets = tokens[row][here], rows["targets"][row][here]
            np.testing.assert_array_equal(ids[1:], targets[:-1])
            unpacked.append((*ids, targets[-1], *rows["token_weights"][row][here]))
        padding = segments[row] == 0
        assert (tokens[row][padding] == PAD).all()
        assert not rows["token_weights"][row][padding].any()
        assert not rows["targets_mask"][row][padding].any()
    expected = [
        (*prompt, *answer.ids, *[0.0] * (len(prompt) - 1), *[WEIGHTS.get(kind, 1.0) for kind in answer.kinds])
        for prompt, answer in zip(prompts, answers)
    ]
    assert sorted(unpacked) == sorted(expected)
    again = language_rows(prompts, answers, PAD, LENGTH, kind_weights=WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, rows, again)


def test_one_example_a_row_needs_no_segments():
    prompts, answers = examples(9)
    rows = language_rows(prompts, answers, PAD)
    assert set(rows["inputs"]) == {"tokens"}
    longest = max(len(prompt) + len(answer.ids) for prompt, answer in zip(prompts, answers)) - 1
    assert rows["targets"].shape == (9, -(-longest // 8) * 8)
    for row, (prompt, answer) in enumerate(zip(prompts, answers)):
        np.testing.assert_array_equal(rows["targets"][row][rows["targets_mask"][row]], answer.ids)
        np.testing.assert_array_equal(rows["inputs"]["tokens"][row][: len(prompt)], prompt)


@pytest.mark.parametrize("windows", [(), (5, 5), (0, 5)])
def test_the_loss_is_that_of_the_unpacked_rows(windows):
    """The loss and every gradient, with weights, for full, windowed and mixed layers."""
    model = Decoder(DecoderConfig(100, 2, 16, 2, 1, 8, 24, windows=windows))
    prompts, answers = examples(12, seed=3)
    unpacked = language_rows(prompts, answers, PAD, kind_weights=WEIGHTS)
    packed = language_rows(prompts, answers, PAD, 40, kind_weights=WEIGHTS)
    assert len(packed["targets"]) < len(unpacked["targets"]) / 2
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))
    loss = losses.combine(tokens=losses.term(losses.next_token_cross_entropy, chunk_size=64))

    @jax.jit
    @jax.value_and_grad
    def measured(variables, batch):
        return loss(model.apply(variables, **batch["inputs"]), batch)[0]

    one, other = measured(variables, unpacked), measured(variables, packed)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other)):
        np.testing.assert_allclose(b, a, atol=1e-5, rtol=1e-5, err_msg=jax.tree_util.keystr(path))

"""Batches: exactly once over any number of processes, exactly resumable, padded to what they hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data.batches.loader import Groups, batches, bucket_length, bucket_of, group_by_query, rows, shuffled
from jax_rele.data.batches.sampler import Stream, shuffle_streams
from jax_rele.data.tokens.token_cache import RaggedSpec, load_or_build

ROWS = {"x": np.arange(23), "inputs": {"y": np.arange(46).reshape(23, 2)}}


def all_of(data):
    return list(data)


def make_groups(count, size, length=16, lengths=1, root=None):
    """Pairs with as many tokens as their number says, in groups of one to `size`."""
    rng = np.random.default_rng(count)
    tokens = [rng.integers(1, 60, 1 + n % length) for n in range(count)]
    padded = np.stack([np.pad(row, (0, length - len(row))) for row in tokens]).astype(np.int32)
    arrays = {"inputs": {"tokens": padded, "valid": padded > 0}, "row": np.arange(count)}
    rows = {"tokens": [row.tolist() for row in tokens], "valid": [[1] * len(row) for row in tokens]}
    specs = {"inputs.tokens": RaggedSpec(0, length, np.int32), "inputs.valid": RaggedSpec(0, length, bool)}
    columns = load_or_build(root, "t", [count, length], lambda: [{**arrays, "inputs": rows}], specs)
    queries = rng.integers(0, max(1, count // 3), count)
    members = group_by_query(queries, np.ones(count, bool), size)
    sizes = np.where(members >= 0, bucket_of(1 + np.maximum(members, 0) % length, length, lengths), 1).max(axis=1)
    return Groups(columns, members, sizes, lengths), arrays


def test_an_endless_iterator_drops_and_repeats_nothing():
    data = batches(rows({"x": np.arange(10)}), shuffled(10, 4, seed=0))
    seen = np.concatenate([next(data)["x"] for _ in range(10)])
    for epoch in range(4):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))


@pytest.mark.parametrize("processes", [1, 2, 7])
@settings(max_examples=15, deadline=None)
@given(
    pairs=st.integers(1, 50),
    size=st.integers(1, 3),
    batch_size=st.integers(7, 20),
    window=st.sampled_from([1, 4]),
    epochs=st.integers(1, 2),
)
def test_every_pair_once_per_epoch_over_the_processes(
    tmp_path_factory, processes, pairs, size, batch_size, window, epochs
):
    groups, _ = make_groups(pairs, size, lengths=2, root=tmp_path_factory.getbasetemp() / "columns")
    stream = [Stream(np.arange(len(groups.members)), (batch_size,))]
    parts = np.array_split(np.arange(batch_size), processes)
    seen, shapes = [], []
    for indices in parts:
        examples = shuffle_streams(stream, 1, sizes=groups.buckets, window=window, epochs=epochs)
        epoch_batches = all_of(batches(groups, examples, indices))
        assert len(epoch_batches) == examples.steps
        seen += [batch["row"][batch["mask"]] for batch in epoch_batches]
        assert all(len(batch["mask"]) == len(indices) * size for batch in epoch_batches)
        shapes.append([batch["inputs"]["tokens"].shape[1] for batch in epoch_batches])
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.repeat(np.arange(pairs), epochs))
    # Every process pads a step to the same length, or they would wait for each other for ever.
    assert all(lengths == shapes[0] for lengths in shapes)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    stops=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    before=st.sampled_from([1, 2, 7]),
    after=st.sampled_from([1, 2, 7]),
    window=st.sampled_from([1, 4]),
)
def test_a_run_stopped_and_resumed_sees_the_batches_of_an_unbroken_one(tmp_path_factory, stops, before, after, window):
    """Also with another number of processes: each reads its part, and the state is the same in all of them."""
    groups, _ = make_groups(29, 3, lengths=2, root=tmp_path_factory.getbasetemp() / "columns")

    def iterators(processes):
        streams = [Stream(np.arange(5), (3,)), Stream(np.arange(5, len(groups.members)), (6,))]
        return [
            batches(groups, shuffle_streams(streams, 4, sizes=groups.buckets, window=window), indices)
            for indices in np.array_split(np.arange(9), processes)
        ]

    def step(running):
        parts = [next(one) for one in running]
        return {name: np.concatenate([part[name] for part in parts]) for name in ("row", "mask", "segments")}

    whole = iterators(1)
    expected = [step(whole) for _ in range(sum(stops) + 2)]
    done, running = 0, iterators(before)
    for stop in stops:
        for _ in range(stop):
            got = step(running)
            for name, value in expected[done].items():
                np.testing.assert_array_equal(got[name], value)
            done += 1
        states = [one.get_state() for one in running]
        assert all(state == states[0] for state in states)
        running = iterators(after)
        for one in running:
            one.set_state(states[0])
    got = step(running)
    for name, value in expected[done].items():
        np.testing.assert_array_equal(got[name], value)


def test_each_process_reads_its_own_rows_alone():
    read = []

    class Spy:
        def __len__(self):
            return 23

        def __getitem__(self, numbers):
            read.extend(np.ravel(numbers))
            return np.asarray(numbers)

    data = batches(rows({"x": Spy()}), shuffled(23, 6, seed=0, epochs=1), indices=np.array([0, 1]))
    first = next(data)
    del data
    assert len(first["x"]) == 2
    assert len(read) <= 4 * 2  # those of the batches that were prefetched


def test_the_rows_of_a_batch_are_padded_to_what_it_holds_and_are_otherwise_the_same(tmp_path):
    groups, arrays = make_groups(60, 3, length=32, lengths=4, root=tmp_path)
    examples = shuffle_streams(
        [Stream(np.arange(len(groups.members)), (4,))], 0, sizes=groups.buckets, window=8, epochs=1
    )
    lengths = set()
    for batch in batches(groups, examples):
        tokens = batch["inputs"]["tokens"]
        lengths.add(tokens.shape[1])
        mask = batch["mask"]
        expected = arrays["inputs"]["tokens"][batch["row"][mask]]
        np.testing.assert_array_equal(tokens[mask], expected[:, : tokens.shape[1]])
        assert not expected[:, tokens.shape[1] :].any()
        np.testing.assert_array_equal(batch["inputs"]["valid"][mask], tokens[mask] > 0)
        assert tokens.dtype == np.int32
        assert batch["inputs"]["valid"].dtype == bool
    assert lengths <= {8, 16, 24, 32}
    assert len(lengths) > 1


@given(full=st.integers(1, 600), lengths=st.integers(1, 8), tokens=st.integers(0, 600))
def test_a_bucket_is_the_first_that_fits(full, lengths, tokens):
    tokens = min(tokens, full)
    (bucket,) = bucket_of(np.array([tokens]), full, lengths)
    assert 1 <= bucket <= lengths
    assert tokens <= bucket_length(full, bucket, lengths) <= full
    assert bucket == 1 or tokens > bucket_length(full, bucket - 1, lengths)
    assert bucket_length(full, lengths, lengths) == full


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30), st.integers(1, 5))
def test_groups_hold_every_row_once_and_one_query_each(pairs, size):
    queries, labelled = zip(*pairs)
    groups = group_by_query(queries, labelled, size)
    assert sorted(groups[groups >= 0]) == list(range(len(pairs)))
    for group in groups:
        members = group[group >= 0]
        assert len({queries[row] for row in members}) == 1
    firsts = [queries.index(queries[group[0]]) for group in groups]
    assert firsts == sorted(firsts)
    for query in set(queries):
        counts = [
            sum(labelled[row] for row in group[group >= 0])
            for group in groups
            if queries[group[group >= 0][0]] == query
        ]
        assert max(counts) - min(counts) <= 1


def test_flat_groups_know_their_company():
    groups = np.array([[0, 1, -1], [2, -1, -1]])
    columns = {"x": np.array([5, 6, 7]), "inputs": {"y": np.arange(6).reshape(3, 2)}}
    flat = Groups(columns, groups)(np.arange(2), np.arange(2))
    np.testing.assert_array_equal(flat["mask"], [1, 1, 0, 1, 0, 0])
    np.testing.assert_array_equal(flat["segments"], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(flat["segments_mask"], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(flat["x"][flat["mask"]], [5, 6, 7])
    assert flat["inputs"]["y"].shape == (6, 2)

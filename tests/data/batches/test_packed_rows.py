"""Packing a batch: every token once, in one row, the same for any number of processes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data.batches.loader import bucket_length
from jax_rele.data.batches.packed_rows import PackedInputs, Parts, choose_rows, pack_rows, round_rows, row_length

from .test_loader import make_groups

PATH = ("inputs", "valid")


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=24, max_size=24),
    shards=st.sampled_from([1, 2]),
    micro_batches=st.sampled_from([1, 2, 3]),
    group_size=st.sampled_from([1, 2]),
    length=st.integers(12, 30),
)
def test_every_token_is_packed_once_beside_its_neighbours(lengths, shards, micro_batches, group_size, length):
    lengths, parts = np.array(lengths), Parts(shards, micro_batches, group_size)
    assert parts.fits(24)
    per_part = 24 // parts.count
    packing = pack_rows(lengths, 12, per_part, length, parts)
    assert packing is not None
    source, target = packing["source"], packing["target"]
    assert (source.shape, target.shape) == ((parts.count, per_part, length), (24, 12))
    assert (source.dtype, target.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(target >= 0, np.arange(12) < lengths[:, None])
    by_part = parts.split(target).reshape(parts.count, -1)
    for flat, own in zip(source.reshape(parts.count, -1), by_part):
        # Each is the other's inverse.
        np.testing.assert_array_equal(flat[own[own >= 0]], np.flatnonzero(own >= 0))
        np.testing.assert_array_equal(own[flat[flat >= 0]], np.flatnonzero(flat >= 0))
    for row in target:
        row = row[row >= 0]
        assert (np.diff(row) == 1).all()
        assert len({*(row // length)}) <= 1
    np.testing.assert_array_equal(parts.join(parts.split(target)), target)


def test_parts_are_those_of_the_step_and_of_the_devices():
    """A device's rows are one after the other; a micro batch takes every second of its groups."""
    rows = np.arange(16)
    assert Parts(2, 1, 2).split(rows).tolist() == [list(range(8)), list(range(8, 16))]
    assert Parts(2, 2, 2).split(rows).tolist() == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]
    ]  # fmt: skip
    assert not Parts(2, 2, 3).fits(16)
    assert Parts(2, 1, 3).fits(16)


def test_a_batch_that_needs_more_rows_is_not_packed():
    lengths, parts = np.array([9, 9, 9, 1]), Parts(2, 1, 1)
    assert pack_rows(lengths, 12, 1, 12, parts) is None
    assert pack_rows(lengths, 12, 2, 12, parts) is not None


def test_rows_are_chosen_so_that_nearly_every_batch_fits():
    rng, parts = np.random.default_rng(0), Parts(2, 1, 1)
    batches = [rng.integers(4, 40, 64) for _ in range(40)]
    rows = choose_rows(batches, 80, 128, parts)
    assert rows * 128 < 0.5 * 32 * 80
    assert all(pack_rows(lengths, 80, rows, 128, parts) is not None for lengths in batches)
    later = [rng.integers(4, 40, 64) for _ in range(200)]
    assert sum(pack_rows(lengths, 80, rows, 128, parts) is None for lengths in later) <= 2
    # Other batches like these give the same number, so that they share a program.
    assert choose_rows(later[:40], 80, 128, parts) == rows
    # Rows that are nearly full stay as they are.
    assert choose_rows([rng.integers(70, 81, 64)], 80, 128, parts) == 0


@pytest.mark.parametrize(("rows", "padded", "expected"), [(12, 2880, 12), (13, 2880, 14), (19, 2880, 0), (1, 240, 1)])
def test_rows_are_rounded_up_to_a_sixteenth_of_the_padded_tokens(rows, padded, expected):
    assert round_rows(rows, padded, 128) == expected


@pytest.mark.parametrize("lengths", [1, 2])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_processes_pack_their_part_of_what_one_would_pack(tmp_path, lengths, micro_batches):
    groups, _ = make_groups(64, 2, length=16, lengths=lengths, root=tmp_path)
    width, size = 16, groups.members.shape[1]
    packed = PackedInputs(Parts(4, micro_batches, size), 24, {PATH: [8] * lengths})
    groups = dataclasses.replace(groups, packed=packed)
    order = np.random.default_rng(0).permutation(len(groups.members))[:width]
    order[-1] = -1
    whole = groups(order, np.arange(width))["inputs"]
    full = bucket_length(16, groups.bucket(order), lengths)
    assert whole["packing"]["source"].shape == (4 * micro_batches, 8, row_length(16, 24))
    assert whole["packing"]["target"].shape == (width * size, full) == whole["valid"].shape
    # Pairs that fill up a group, and padding groups, are not packed.
    members = groups.members_of(order).reshape(-1)
    np.testing.assert_array_equal(whole["packing"]["target"] >= 0, whole["valid"] & (members >= 0)[:, None])
    for processes in (2, 4):
        parts = [groups(order, indices)["inputs"] for indices in np.split(np.arange(width), processes)]
        for name in ("source", "target"):
            joined = np.concatenate([part["packing"][name] for part in parts])
            np.testing.assert_array_equal(joined, whole["packing"][name])
    # Where one part of one process does not fit, all processes pad.
    tight = dataclasses.replace(groups, packed=dataclasses.replace(packed, rows={PATH: [1] * lengths}))
    assert all("packing" not in tight(order, indices)["inputs"] for indices in np.split(np.arange(width), 4))

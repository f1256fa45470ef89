"""Topologies by name, and what the links between their chips give."""

import pytest

from jax_rele.errors import UserError
from jax_rele.plan.topology import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("text", "chip", "shape", "devices"),
    [
        ("v5e:4x4", "v5e", (4, 4), 16),
        ("v6e:2x4", "v6e", (2, 4), 8),
        ("v5p:2x2x2", "v5p", (2, 2, 2), 8),
        ("16xv5e:16x16", "v5e", (16, 16), 4096),
        ("gpu:8xH100", "H100", (8,), 8),
        ("gpu:256xA100", "A100", (256,), 256),
        ("gpu:1xH200", "H200", (1,), 1),
    ],
)
def test_a_topology_is_a_chip_and_a_shape(text, chip, shape, devices):
    topology = parse_topology(text)
    assert (topology.name, topology.chip.name, topology.shape, topology.devices) == (text, chip, shape, devices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v7:4x4", "unknown accelerator; known are v5e, v5p, v6e and A100, H100, H200"),
        ("H100", "unknown accelerator"),
        ("", "unknown accelerator"),
        ("v5e", "v5e has 2 axes; write for example v5e:4x4"),
        ("v5e:4x4x4", "v5e has 2 axes"),
        ("v5p:4x4", "v5p has 3 axes; write for example v5p:4x4x4"),
        ("v5e:0x4", "v5e has 2 axes"),
        ("v5e:4x-4", "v5e has 2 axes"),
        ("v5e:4x4 ", "v5e has 2 axes"),
        ("0xv5e:4x4", "unknown accelerator"),
        ("4v5e:4x4", "unknown accelerator"),
        ("2xgpu:8xH100", "unknown accelerator"),
        ("gpu:8xV100", "write gpu:COUNTxMODEL, e.g. gpu:8xH100, with A100, H100, H200"),
        ("gpu:H100", "write gpu:COUNTxMODEL"),
        ("gpu:0xH100", "write gpu:COUNTxMODEL"),
        ("gpu:8xv5e", "write gpu:COUNTxMODEL"),
    ],
)
def test_a_bad_topology_is_refused_with_what_there_is(text, message):
    with pytest.raises(UserError) as error:
        parse_topology(text)
    assert str(error.value).startswith(f"--topology {text}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_several_slices_are_of_one_shape():
    topology = parse_topology("4xv6e:16x16")
    assert (topology.slices, topology.slice_name) == (4, "v6e:16x16")
    assert parse_topology("v6e:16x16").slices == 1
    # The links are those of a slice.
    assert topology.bandwidth(16) == parse_topology("v6e:16x16").bandwidth(16)


def test_the_network_of_a_pod_is_that_of_its_chips():
    # Terabits a second of a pod of 256 chips; of v5p gigabits a second and chip.
    assert {name: 256 * 8 * CHIPS[name].network / 1e12 for name in ("v5e", "v6e")} == {"v5e": 6.4, "v6e": 25.6}
    assert 8 * CHIPS["v5p"].network / 1e9 == 50


@pytest.mark.parametrize(
    ("text", "group", "gigabytes"),
    [
        # v5e: 50 GB/s a link and direction; an axis of 4 does not close to a ring, one of 16 does.
        ("v5e:4x4", 2, 50),
        ("v5e:4x4", 4, 50),
        ("v5e:4x4", 5, 100),
        ("v5e:4x4", 16, 100),
        ("v5e:16x16", 16, 100),
        ("v5e:16x16", 256, 200),
        ("v6e:2x4", 4, 100),
        ("v6e:2x4", 8, 200),
        # v5p: an axis of 4 closes.
        ("v5p:2x2x2", 8, 300),
        ("v5p:4x4x4", 4, 200),
        ("gpu:8xH100", 8, 450),
        ("gpu:16xH100", 8, 450),
        ("gpu:16xH100", 16, 50),
        ("gpu:8xA100", 8, 300),
    ],
)
def test_a_group_sends_over_the_links_of_the_axes_that_it_spans(text, group, gigabytes):
    assert parse_topology(text).bandwidth(group) == gigabytes * 1e9


def test_a_chip_holds_no_more_than_its_data_sheet_says():
    sheet = {"v5e": 16, "v5p": 96, "v6e": 32}
    for name, gibibytes in sheet.items():
        assert 0.97 * gibibytes * 2**30 < CHIPS[name].memory <= gibibytes * 2**30
    assert {name: chip.memory / 1e9 for name, chip in CHIPS.items() if chip.kind == "gpu"} == {
        "A100": 80,
        "H100": 80,
        "H200": 141,
    }

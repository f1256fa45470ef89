"""What a step takes on more slices, against times reckoned by hand."""

import dataclasses
import sys
from pathlib import Path

import pytest

from jax_rele.plan.hlo import Collective
from jax_rele.plan.scaling import network_seconds, scale
from jax_rele.plan.topology import CHIPS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))
import plan_scaling

MB = 10**6
REDUCED = Collective("all-reduce", 100 * MB, 4, 2, "gradient", network=True)
"""Of each chip 100 MB, twice a step, over 4 slices."""
GATHERED = Collective("all-gather", 4 * 10 * MB, 4, 1, "embeddings", network=True)
"""Of each chip 10 MB."""
WITHIN = Collective("all-gather", 800 * MB, 256, 1, "weights")


def plan(*collectives, **seconds):
    """A step of 4 slices of 256 chips v5e that reads a million tokens, and the plan that it is of."""
    times = {"compute": 0.1, "memory": 0.05, "links": 0.06, "network": 0.09, **seconds}
    step = {
        "tokens": MB,
        "fits": True,
        "collectives": [dataclasses.asdict(one) for one in collectives],
        "seconds": times,
        "step_seconds": max(times.values()),
        "mfu": 0.5,
    }
    return {"topology": "4xv5e:16x16", "devices": 1024, "chip": {"network": CHIPS["v5e"].network}}, step


@pytest.mark.parametrize(
    ("slices", "megabytes"),
    [
        (1, 0),
        (2, 2 * 1 / 2 * 200 + 10),
        (4, 2 * 3 / 4 * 200 + 30),
        (16, 2 * 15 / 16 * 200 + 150),
    ],
)
def test_a_ring_over_more_slices_sends_more(slices, megabytes):
    """An all-reduce of b bytes over n slices sends 2 (n - 1) / n b of each chip, an all-gather (n - 1) of its parts."""
    _, step = plan(REDUCED, GATHERED, WITHIN)
    assert network_seconds(step["collectives"], slices, 1e6) == pytest.approx(megabytes)


def test_a_permutation_sends_the_same_over_any_number_of_slices():
    permuted = Collective("collective-permute", 3 * MB, 2, 1, "", network=True)
    _, step = plan(permuted)
    assert [network_seconds(step["collectives"], slices, 1e6) for slices in (1, 2, 16)] == [0, 3, 3]


def test_each_slice_adds_its_tokens_until_the_network_limits():
    compiled, step = plan(REDUCED)
    one, four, many = (scale(compiled, step, slices) for slices in (1, 4, 16))
    assert [x.chips for x in (one, four, many)] == [256, 1024, 4096]
    # 3.125 GB/s a chip: 200 MB take 0, 96 and 120 ms, beside 100 ms of compute.
    assert [x.seconds["network"] for x in (one, four, many)] == pytest.approx([0, 0.096, 0.12])
    assert [x.bound_by for x in (one, four, many)] == ["compute", "compute", "network"]
    assert [x.mfu for x in (one, four, many)] == pytest.approx([0.5, 0.5, 0.5 / 1.2])
    assert [x.tokens_per_second for x in (one, four, many)] == pytest.approx([2.5e6, 10e6, 40e6 / 1.2])
    for x in (one, four, many):
        assert {name: x.seconds[name] for name in ("compute", "memory", "links")} == {
            "compute": 0.1,
            "memory": 0.05,
            "links": 0.06,
        }


def test_a_slices_links_may_limit():
    compiled, step = plan(REDUCED, links=0.2)
    assert scale(compiled, step, 16).bound_by == "links"


def test_a_batch_grows_with_the_chips_and_slices_are_replicas():
    values = {}
    for name, (file, chips) in plan_scaling.CONFIGS.items():
        arguments = plan_scaling.options(plan_scaling.ROOT / "configs" / file, chips, 16)
        values[name] = dict(zip(arguments[::2], arguments[1::2]))
    # The configs have 32 rows on 16 chips and 16 rows on 8: two a chip.
    assert [x["--finetune.optimization.batch_size"] for x in values.values()] == ["8192", "8192"]
    assert [x["--distill.optimization.batch_size"] for x in values.values()] == ["65536", "131072"]
    assert [x["--mesh.data"] for x in values.values()] == ["16", "-1"]


def test_the_table_has_a_line_for_each_number_of_chips():
    compiled, step = plan(REDUCED)
    steps = [{**step, "step": "finetune"}, {"fits": False}]
    compiled = {**compiled, "chip": {"name": "v5e", **compiled["chip"]}, "steps": steps}
    assert plan_scaling.table([compiled]).splitlines()[2:] == [
        "| v5e 256 | finetune | 100.0 ms | 50.0 ms | 60.0 ms | 0 us | compute | 50% | 2,500,000 |",
        "| v5e 1,024 | finetune | 100.0 ms | 50.0 ms | 60.0 ms | 96.0 ms | compute | 50% | 10,000,000 |",
        "| v5e 4,096 | finetune | 100.0 ms | 50.0 ms | 60.0 ms | 120.0 ms | DCN | 42% | 33,333,333 |",
    ]

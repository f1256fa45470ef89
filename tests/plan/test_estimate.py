"""What an estimate makes of a compiled program, on one that is small enough to reckon by hand."""

import jax
import jax.numpy as jnp
import pytest

from jax_rele.config import MeshConfig
from jax_rele.errors import UserError
from jax_rele.plan.abstract import array, bytes_per_chip, rows
from jax_rele.plan.estimate import RESERVE, estimate
from jax_rele.plan.steps import Step
from jax_rele.plan.topology import CHIPS, parse_topology
from jax_rele.training import make_mesh

ROWS, WIDTH = 64, 128


@pytest.fixture(scope="module")
def step():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8, tensor=1))
    x = array(mesh, (ROWS, WIDTH), jnp.float32, ("batch", None))
    w = array(mesh, (WIDTH, WIDTH), jnp.float32, ("embed", None))

    def lower():
        with jax.set_mesh(mesh):
            return jax.jit(lambda x, w: jnp.tanh(x @ w), out_shardings=x.sharding).lower(x, w)

    operations = 2 * ROWS * WIDTH * WIDTH
    return Step(
        name="toy",
        shape="64 rows",
        tokens=ROWS,
        resident={"batch": x, "base": w},
        lower={"xla": lower, "cudnn": lower},
        executed=operations,
        required=operations // 2,
        unseen={"cudnn": 1000},
    )


def test_memory_and_time_add_up(step):
    result = estimate(step, parse_topology("gpu:8xH100"))
    chip = CHIPS["H100"]
    assert result.resident == {"batch": ROWS * WIDTH * 4 // 8, "base": WIDTH * WIDTH * 4 // 8}
    # The weights are gathered and the result is written.
    assert result.allocated >= WIDTH * WIDTH * 4 + ROWS * WIDTH * 4 // 8
    assert result.total == sum(result.resident.values()) + result.allocated
    assert result.attention == {"xla": result.total, "cudnn": result.total + 1000}
    assert result.limit == round(80e9 * (1 - RESERVE["gpu"]))
    assert result.fits
    (gather,) = result.collectives
    assert (gather.kind, gather.bytes, gather.group) == ("all-gather", WIDTH * WIDTH * 4, 8)
    assert result.seconds == pytest.approx(
        {
            "compute": 2 * ROWS * WIDTH * WIDTH / 8 / chip.flops,
            "memory": (sum(result.resident.values()) + ROWS * WIDTH * 4 // 8) / chip.bandwidth,
            "links": WIDTH * WIDTH * 4 * 7 / 8 / chip.link,
        }
    )
    assert (result.bound_by, result.step_seconds) == ("links", result.seconds["links"])
    assert result.mfu == pytest.approx(ROWS * WIDTH * WIDTH / (8 * chip.flops * result.step_seconds))
    assert result.tokens_per_second == pytest.approx(ROWS / result.step_seconds)


def test_what_was_widened_sends_half(step):
    topology = parse_topology("gpu:8xH100")
    whole, half = estimate(step, topology), estimate(step, topology, widened=True)
    assert half.seconds["links"] == whole.seconds["links"] / 2
    assert half.total == whole.total


@pytest.mark.parametrize(
    ("message", "allocated"),
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.", int(20.5 * 2**30)),
        ("the total memory required for HLO temporaries (120.00G) exceeds available HBM (15.75G).", 120 * 2**30),
        ("something else", None),
    ],
)
def test_a_compiler_that_runs_out_of_memory_says_how_much_it_needs(step, monkeypatch, message, allocated):
    def fail(self, *_, **__):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    result = estimate(step, parse_topology("v5e:2x4"))
    resident = bytes_per_chip(step.resident)
    if allocated is not None and "Used" in message:
        allocated -= resident  # it counts what is held
    assert result.allocated == allocated
    assert not result.fits
    assert result.step_seconds is result.mfu is result.tokens_per_second is None
    plain = result.to_dict()
    assert (plain["fits"], plain["bytes_per_chip"]["made"]) == (False, allocated)


def test_another_error_of_the_compiler_is_not_hidden(step, monkeypatch):
    def fail(self, *_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        estimate(step, parse_topology("v5e:2x4"))


def test_an_implementation_that_cannot_do_the_model_is_left_out_unless_it_was_chosen(step):
    def refuse():
        raise ValueError("splash attention cannot do this")

    lower = step.lower["xla"]
    other = estimate(Step(**{**vars(step), "lower": {"xla": lower, "splash": refuse}}), parse_topology("v5e:2x4"))
    assert list(other.attention) == ["xla"]
    with pytest.raises(ValueError, match="cannot do this"):
        estimate(Step(**{**vars(step), "lower": {"splash": refuse, "xla": lower}}), parse_topology("v5e:2x4"))


def test_rows_that_do_not_divide_over_the_chips_are_one_line():
    mesh = jax.sharding.AbstractMesh((3, 1, 1), ("data", "fsdp", "tensor"))
    with pytest.raises(UserError, match=r"^mesh: 16 rows do not divide over data x fsdp = 3 devices; .*batch_size"):
        rows(mesh, 16, "int32", 8)

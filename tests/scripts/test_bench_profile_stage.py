"""The profiler of stages: its reading of compiled programs against counts by hand, and a stage of a tiny run."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def profile():
    sys.path.insert(0, str(BENCH))
    import profile_stage

    sys.path.remove(str(BENCH))
    return profile_stage


def test_products_are_counted_and_loops_are_not(profile, tmp_path):
    def step(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x).sum()

    compiled = jax.jit(step).lower(jnp.ones((24, 40)), jnp.ones((40, 40))).compile()
    (tmp_path / "module_0001.jit_step.cpu_after_optimizations.txt").write_text(compiled.as_text())
    operations = profile.operations(tmp_path)
    assert {program for program, _ in operations} == {"jit_step"}
    products = [each for each in operations.values() if each.kind == "matmul" and each.opcode != "fusion"]
    assert {each.flops for each in products} == {2.0 * 24 * 40 * 40}
    assert any(each.opcode == "while" and each.kind == "" for each in operations.values())
    assert {each.kind for each in operations.values()} <= {"", *profile.KINDS}


@pytest.mark.parametrize(
    ("source", "flops", "kind"),
    [
        ("jit(decode)/while/body/be,ve->bv/dot_general", 1.0, "logits"),
        ("layers/attention/bkgqd,bkds->bkgqs/dot_general", 1.0, "attention"),
        ("transpose(jvp())/layers/attention/checkpoint/exp", 0.0, "attention"),
        ("layers/attention/q_proj/dot_general", 1.0, "matmul"),
        ("layers/attention/cond/branch_2_fun/slice", 0.0, "moves in attention"),
        ("layers/mlp/mul", 0.0, "elementwise"),
    ],
)
def test_kinds_follow_from_where_an_operation_was_traced(profile, source, flops, kind):
    assert profile.Operation("fusion", source, flops).kind == kind


@pytest.mark.slow
@pytest.mark.long
def test_a_stage_is_profiled_and_the_run_stays_as_it_is(profile, tiny):
    folder = tiny[1]
    before = sorted(path for path in folder.rglob("*"))
    command = [sys.executable, BENCH / "profile_stage.py", "adapt", folder, "--set", "adapt.optimization.steps=3"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "| matmul |" in done.stdout
    assert "programs compiled" in done.stdout
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_stage_before_which_something_is_missing_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("name: tiny")
    for wrong, message in ((tmp_path / "none", "is no run"), (tmp_path, "run the stages before score first")):
        command = [sys.executable, BENCH / "profile_stage.py", "score", wrong]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode
        assert message in done.stderr

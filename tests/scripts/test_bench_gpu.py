"""The benchmark of a GPU: whole on a CPU at tiny shapes, what it says without a GPU, and that nothing holds it up."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts" / "bench"
PAGE = ROOT / "docs" / "benchmarks" / "gpu.md"


@pytest.fixture(scope="module")
def bench():
    """The modules of the benchmark by name."""
    sys.path.insert(0, str(BENCH))
    names = ("cases", "gpu_device", "gpu_page", "teacher", "worker")
    modules = {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(BENCH))
    return modules


def gpu(folder, timeout=560, **variables):
    command = [BENCH / "gpu.sh", folder]
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
@pytest.mark.long
def test_it_runs_whole_on_a_cpu_and_says_what_is_not_installed(tmp_path):
    before = PAGE.read_text("utf-8")
    done = gpu(tmp_path / "out", SHAPES="tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "gpu.md").read_text("utf-8") == done.stdout
    assert PAGE.read_text("utf-8") == before
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:2] == "| "]
    names = [row[0] for row in rows if len(row) in (6, 8)]
    for name in (
        "matrix product, 128², float32",
        "array scaled in place, bytes read and written",
        "LoRA SFT step, remat none",
        "label scoring, every prompt whole",
        "shared prefix over whole prompts, 100 items a query",
        "greedy decoding, 2 rows",
        "attention of the layers, forward and backward, xla",
        "matrix product, 128², float8_e4m3fn",
        "greedy decoding, 2 rows, projections in int8 over greedy decoding, 2 rows",
        "cross-encoder, from texts to logits",
        "two-tower, training step",
    ):
        assert name in names
    assert "none of these figures says anything about a GPU" in done.stdout
    assert "cudnn: not measured (ours): cuDNN's attention runs on NVIDIA GPUs alone" in done.stdout
    absent = [name for name in ("torch", "peft", "sentence_transformers") if not importlib.util.find_spec(name)]
    lines = [line for line in done.stdout.splitlines() if line.startswith("- Not installed: ")]
    assert len(lines) == bool(absent)
    assert all(name.replace("_", "-") in lines[0] for name in absent)
    for name in ("teacher", "students"):
        cases = json.loads((tmp_path / "out" / f"{name}.json").read_text())["cases"]
        assert all(case["seconds"].get("ours") or case["missing"] for case in cases)


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path):
    before = PAGE.read_text("utf-8")
    done = gpu(tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 1
    assert "no GPU: JAX has cpu" in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]
    assert PAGE.read_text("utf-8") == before


@pytest.mark.parametrize("variables", [{"SHAPES": "large"}, {"ENDS": "1 2 3"}, {"PYTHON": "no-such-python"}])
def test_wrong_settings_are_refused(tmp_path, variables):
    done = gpu(tmp_path / "out", **variables)
    assert done.returncode == 2
    assert next(iter(variables.values())) in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_part_that_hangs_is_ended_and_the_next_one_runs(tmp_path):
    """The teacher's part never ends, with a child that ignores being asked to; the students' part fails."""
    program = tmp_path / "python"
    program.write_text(
        """#!/usr/bin/env bash
        case $1 in
          *gpu_device.py) echo "teacher students" ;;
          *teacher.py) trap '' TERM; sleep 600 & echo $! > "$FOLDER/child"; while :; do sleep 1; done ;;
          *students.py) echo "${@:2}" > "$FOLDER/students"; exit 3 ;;
          *gpu_page.py) printf '%s\\n' "${@:2}" ;;
        esac
        """
    )
    program.chmod(0o755)
    start = time.monotonic()
    done = gpu(tmp_path / "out", SHAPES="tiny", PYTHON=str(program), FOLDER=str(tmp_path), ENDS="3 5 90 99", timeout=90)
    assert time.monotonic() - start < 60
    assert done.returncode == 1
    assert "The part teacher was ended at its time limit." in done.stdout
    assert "The part students ended with status 3; its log says more." in done.stdout
    assert "--apart" in (tmp_path / "students").read_text()
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


SIDE = """
import os, time
from contextlib import contextmanager

@contextmanager
def case(kind):
    def run():
        if kind == "hang":
            time.sleep(600)
        if kind == "die":
            os._exit(7)
        if kind == "wrong":
            raise ValueError("two\\nlines")
        return kind
    yield run

def open_side(kind):
    if kind == "broken":
        raise ModuleNotFoundError("No module named 'x'")
    return f"side {kind}", {"run": case}
"""


@pytest.fixture
def timed(bench, tmp_path, monkeypatch):
    """Times cases of the given kinds, one side after the other."""
    (tmp_path / "fake_side.py").write_text(SIDE)
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.syspath_prepend(tmp_path)
    cases = bench["cases"]

    def prepare(case, name, side, results):
        case.compile[name], results[name] = side.prepare(*getattr(case, name))
        return case

    def run(kinds, seconds, theirs="good", case_seconds=60.0):
        saved = []
        both = [cases.Case(kind, "runs", ("run", kind), ("run", "good"), 1) for kind in kinds]
        names = {"ours": "good", "theirs": theirs}

        def open_side(name, deadline):
            return bench["worker"].Side("fake_side", {}, names[name], deadline=deadline)

        abouts = cases.time_apart(both, seconds, open_side, prepare, 2, saved.append, case_seconds)
        assert saved[-1] == abouts
        return both, abouts

    return run


def test_a_case_that_fails_hangs_or_ends_its_process_is_named_and_the_others_are_timed(bench, timed):
    cases, abouts = timed(["good", "wrong", "die", "hang", "good"], {"ours": 300, "theirs": 300}, case_seconds=10)
    assert abouts == {"ours": "side good", "theirs": "side good"}
    assert [case.missing.get("ours", "") for case in cases] == [
        "",
        "lines",
        "the process was ended by the system",
        "given up, it did not end in time",
        "",
    ]
    assert [case.failed for case in cases] == [False, True, True, True, False]
    assert [len(case.seconds.get("ours", ())) for case in cases] == [2, 0, 0, 0, 2]
    assert all((len(case.seconds["theirs"]) == 2 and case.ratio() != "–") or case.failed for case in cases)
    text = bench["cases"].format_notes(cases, abouts)
    assert "hang: first run longer by" in text
    assert "not measured (ours): given up, it did not end in time" in text


def test_a_side_that_does_not_open_or_has_no_time_leaves_its_reason(timed):
    cases, abouts = timed(["good", "good"], {"ours": 0, "theirs": 120}, theirs="broken")
    assert abouts == {}
    for case in cases:
        assert case.missing == {
            "ours": "not run, the time was up",
            "theirs": "ModuleNotFoundError: No module named 'x'",
        }
    assert [case.failed for case in cases] == [True, False]


def test_fractions_are_of_measured_rates_and_of_the_datasheet_of_a_known_device(bench):
    teacher, cases = bench["teacher"], bench["cases"]

    def case(name, kind, seconds, **amounts):
        return cases.Case(name, "FLOP", (kind,), (kind,), 800e12, seconds={"ours": [seconds]}, **amounts)

    measured = [
        case("product", "matmul", 1.0, flops=(800e12, 0)),
        case("stream", "stream", 200.0, read=(800e12, 0)),
        case("step", "sft", 2.0, flops=(800e12, 0)),
        case("decoding", "plain", 400.0, read=(800e12, 0)),
        case("empty", "guided", 1.0),
    ]
    rows = teacher.table(measured, "gpu", "jax 1, NVIDIA H200").splitlines()[2:]
    reached = [row.split("|")[6].strip() for row in rows]
    assert reached == [
        "100% of matmul (81% of datasheet)",
        "100% of bandwidth (83% of datasheet)",
        "50% of matmul (40% of datasheet)",
        "50% of bandwidth (42% of datasheet)",
        "",
    ]
    unknown = teacher.table(measured, "gpu", "jax 1, NVIDIA H200 NVL").splitlines()[4]
    assert unknown.split("|")[6].strip() == "50% of matmul"
    # Without the measured rate there is no fraction.
    assert teacher.table(measured[2:3], "gpu", "jax 1, NVIDIA H200").splitlines()[2].split("|")[6].strip() == ""


@pytest.mark.slow
def test_what_the_benchmarks_import_is_looked_for(bench):
    """Its list of packages is that of the modules that both sides of ours load, as far as they are dependencies."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in dependencies}
    program = "import sys, ours, students_ours, students_inputs; print(*{name.split('.')[0] for name in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": f"{BENCH}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    packages = importlib.metadata.packages_distributions()
    loaded = {package.lower() for module in done.stdout.split() for package in packages.get(module, ())}
    assert {package.lower() for package in bench["gpu_device"].OWN} >= names & loaded


def test_a_small_gpu_is_named(bench):
    lines = bench["gpu_device"].missing_lines
    assert any("24 GiB; the teacher needs 44 GiB" in line for line in lines("gpu", 24 << 30, "full"))
    for platform, memory, shapes in (("gpu", 80 << 30, "full"), ("gpu", 0, "full"), ("cpu", 0, "tiny")):
        assert not any("GiB" in line for line in lines(platform, memory, shapes))


def test_the_page_without_figures_is_the_documented_one(bench):
    if "has not been run on a GPU yet" in PAGE.read_text("utf-8"):
        assert PAGE.read_text("utf-8") == bench["gpu_page"].render()

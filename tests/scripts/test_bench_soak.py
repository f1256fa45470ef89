"""The soak of the service, for some seconds; and that it sees what it is there to see."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def soak():
    sys.path.insert(0, str(BENCH))
    import soak

    sys.path.remove(str(BENCH))
    return soak


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    path = Path(__file__).parents[1] / "deployment" / "conftest.py"
    spec = importlib.util.spec_from_file_location("deployment_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = tmp_path_factory.mktemp("bundles")
    return [module.write_bundle(base / kind, kind) for kind in ("cross_encoder", "two_tower")]


@pytest.mark.slow
@pytest.mark.long
def test_a_short_soak_passes(bundles):
    command = [sys.executable, str(BENCH / "soak.py"), *map(str, bundles), "--minutes", "0.25", "--rate", "10"]
    done = subprocess.run([*command, "--connections", "300"], capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "| 5xx | 0 | 0 |" in done.stdout
    assert "| not as expected | 0 | 0 |" in done.stdout
    for row in ("| huge body | ", "| UTF-16 | ", "| 300 open connections | 3 × 200 |", "| slow body, never whole | "):
        assert row in done.stdout


def test_growth_and_answers_that_are_not_allowed_are_seen(soak, capsys):
    record = soak.Record()
    record.samples = [(second, (100 + 3 * second) << 20, 20 + second) for second in range(61)]
    assert [message.split()[0] for message in soak.flat(record.samples, 60)] == ["memory", "open"]
    assert not soak.flat([(second, 100 << 20, 20) for second in range(61)], 60)
    record.add("/rerank", 503, (200,), "busy")
    record.add("cut", None, (None,))
    record.add("huge", None, (413,))
    assert record.unexpected == ["/rerank: 503 busy", "huge: None"]
    soak.print_tables(record, 60)
    assert "| 5xx | 1 | 0 |" in capsys.readouterr().out

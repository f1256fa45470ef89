"""A cache of programs that cannot be written costs one line and no result."""

import os

import jax
import pytest

from jax_rele import cli
from jax_rele.cli.compile_cache import VARIABLE, check_compile_cache


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Sets the variable; jax's own setting is as before afterwards."""
    before = jax.config.jax_compilation_cache_dir

    def use(path):
        monkeypatch.setenv(VARIABLE, str(path))
        jax.config.update("jax_compilation_cache_dir", str(path))

    yield use
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_that_cannot_be_written_is_one_line(folder, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    folder(tmp_path / "file" / "cache")
    assert cli.main(["run", "no.yaml"]) == 2
    err, _, refusal = capfd.readouterr().err.partition("\n")
    assert "no.yaml" in refusal
    err += "\n"
    assert err.count("\n") == 1
    assert err.startswith(f"warning: {VARIABLE}: {tmp_path}/file/cache cannot be written (Not a directory)")
    assert VARIABLE not in os.environ
    assert jax.config.jax_compilation_cache_dir is None
    check_compile_cache()
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_can_be_written_is_used(folder, tmp_path, capfd):
    folder(tmp_path / "new" / "cache")
    check_compile_cache()
    assert capfd.readouterr() == ("", "")
    assert os.environ[VARIABLE] == str(tmp_path / "new" / "cache")
    assert list((tmp_path / "new" / "cache").iterdir()) == []


@pytest.mark.parametrize("value", ["", "gs://bucket/cache"])
def test_no_folder_is_no_matter(monkeypatch, value, capfd):
    monkeypatch.setenv(VARIABLE, value)
    check_compile_cache()
    assert capfd.readouterr() == ("", "")
    assert os.environ[VARIABLE] == value

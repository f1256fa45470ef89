"""Errors of the operating system are one line, and what cannot be written is known before the work."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from jax_rele import cli, io
from jax_rele.errors import UserError
from jax_rele.io import (
    atomic_folder,
    atomic_path,
    check_output_file,
    check_output_folder,
    refuse_placeholder,
    system_error,
)

CODES = ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ENFILE", "ENAMETOOLONG", "ENOTDIR", "EISDIR"]
CODES += ["ENOENT", "EEXIST", "ENOTEMPTY", "ESTALE", "ELOOP", "EBUSY", "EFBIG", "ENODEV", "ETIMEDOUT", "ECONNREFUSED"]


def make(name, filename="/some/file"):
    code = getattr(errno, name)
    return OSError(code, os.strerror(code), filename)


@pytest.mark.parametrize("name", CODES)
def test_every_error_of_the_system_is_a_line(name, capsys, monkeypatch):
    def fails(_):
        raise make(name)

    monkeypatch.setattr(cli, "_dispatch", fails)
    assert cli.main(["run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jax-rele: /some/file: ")
    assert err.count("\n") == 1
    expected = "the disk is full" if name in ("ENOSPC", "EDQUOT") else os.strerror(getattr(errno, name))
    assert expected in err


def test_an_error_that_a_library_wraps_is_a_line_too():
    wrapped = RuntimeError("cannot save the checkpoint")
    wrapped.__cause__ = make("EROFS", None)
    assert "Read-only file system; give a folder elsewhere" in str(system_error(wrapped))
    message = "INTERNAL: write failed\n [OS error 28: ENOSPC No space left on device]"
    line = "the disk is full; make room, then run the same command again (INTERNAL: write failed [OS error 28"
    assert str(system_error(ValueError(message))).startswith(line)
    assert system_error(ValueError("no error of the system")) is None
    assert str(system_error(OSError("Couldn't read\n the footer"))) == "Couldn't read the footer"


def test_a_full_disk_that_a_library_names_in_its_own_error_names_the_file(tmp_path):
    """tokenizers, written in Rust, raises a plain Exception."""
    message = "No space left on device (os error 28)"
    with pytest.raises(UserError, match=r"one\.json: the disk is full; make room"), atomic_path(tmp_path / "one.json"):
        raise Exception(message)
    with pytest.raises(OSError, match="No space left") as caught, atomic_folder(tmp_path / "folder"):
        raise Exception(message)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "folder"))
    with pytest.raises(KeyError), atomic_folder(tmp_path / "folder"):
        raise KeyError("no error of the system")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_keep_their_traceback(monkeypatch):
    def fails(_):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(cli, "_dispatch", fails)
    with pytest.raises(KeyError):
        cli.main(["run"])


def refused(check, path):
    with pytest.raises(UserError) as error:
        check(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_output_file_is_tried(tmp_path):
    (tmp_path / "old").write_text("old")
    check_output_file(tmp_path / "old")
    check_output_file(tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["old"]
    assert (tmp_path / "old").read_text() == "old"
    assert "is a folder" in refused(check_output_file, tmp_path)
    assert "no such folder to write to; create it first" in refused(check_output_file, tmp_path / "none" / "x")
    assert "no such folder to write to" in refused(check_output_file, tmp_path / "old" / "x")
    assert "cannot be written" in refused(check_output_file, "/proc/x.parquet")
    assert "File name too long; give a shorter name" in refused(check_output_file, tmp_path / ("x" * 250))


def test_an_output_folder_is_tried(tmp_path):
    (tmp_path / "file").write_text("old")
    check_output_folder(tmp_path)
    check_output_folder(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path) == ["file"]
    assert "is a file; give another folder" in refused(check_output_folder, tmp_path / "file")
    assert "cannot be made" in refused(check_output_folder, tmp_path / "file" / "deep")
    assert "cannot be written" in refused(check_output_folder, "/proc/x/y")
    assert "File name too long" in refused(check_output_folder, tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", ["EROFS", "EACCES", "ENOSPC", "EMFILE", "EIO"])
def test_what_the_trial_meets_is_the_line(tmp_path, monkeypatch, name):
    def fails(*_):
        raise make(name)

    monkeypatch.setattr(Path, "write_bytes", fails)
    for check, path in ((check_output_file, tmp_path / "x"), (check_output_folder, tmp_path / "x")):
        message = refused(check, path)
        assert message.startswith(f"{path}: ")
        words = ("the disk is full", "too many files are open", os.strerror(getattr(errno, name)))
        assert any(each in message for each in words)


def test_a_temporary_file_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise make("EROFS")

    monkeypatch.setattr(Path, "unlink", fails)
    with (
        pytest.raises(UserError, match="cannot be written: Read-only file system"),
        atomic_path(tmp_path / "x") as path,
    ):
        raise make("EROFS", str(path))


COMMANDS = [
    ("predict", "RUN", "--model", "teacher", "--input", "sample", "--output", "/proc/x.parquet"),
    ("predict", "RUN", "--model", "cross_encoder", "--input", "sample", "--output", "{long}.parquet"),
    ("export", "RUN", "--output", "/proc/x/y"),
    ("export", "RUN", "--model", "cross_encoder", "--output", "{file}"),
    ("export", "RUN", "--output", "{file}/deeper"),
    ("index", "BUNDLE", "sample", "--output", "/proc/x"),
    ("index", "BUNDLE", "sample", "--output", "{new}", "--export", "/proc/x.parquet"),
    ("drift", "BUNDLE", "--input", "a", "--reference", "b", "--output", "/proc/x.html"),
    ("plan", "{config}", "--topology", "v5e:2x2", "--json", "/proc/x.json"),
    ("annotate", "batch", "write", "{config}", "a", "/proc/x/r.jsonl"),
    ("compare", "{config}", "--run_root", "/proc/x"),
    ("run", "{config}", "--run_root", "/proc/x"),
    ("run", "{config}", "--run_root", "{file}"),
    ("run", "{config}", "--cache_dir", "{file}"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_commands_output_is_tried_before_the_work(tmp_path, capsys, monkeypatch, words):
    file, settings, run = tmp_path / "file", tmp_path / "c.yaml", tmp_path / "run"
    file.write_text("")
    settings.write_text(f"run_root: {tmp_path / 'runs'}\n")
    run.mkdir()
    (run / "config.yaml").write_text("name: run\n")
    names = {
        "long": str(tmp_path / ("x" * 250)),
        "file": str(file),
        "new": str(tmp_path / "new"),
        "config": str(settings),
    }
    names |= {"RUN": str(run), "BUNDLE": str(tmp_path)}
    arguments = [names.get(word, word.format(**names)) for word in words]
    for module, name in (("jax_rele.models.weights", "weights_folder"), ("jax_rele.runs.preflight", "preflight")):
        monkeypatch.setattr(f"{module}.{name}", lambda *_, **__: pytest.fail("the work has begun"))
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert any(word in line for word in ("cannot be written", "cannot be made", "is a file", "File name too long"))


@pytest.mark.parametrize("words", [("--help",), ("completion", "bash")])
def test_a_full_disk_behind_standard_output_is_a_line(words):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    code = f"import sys; sys.argv[1:] = {list(words)}; from jax_rele.cli import command; command()"
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("jax-rele: ")
    assert line.endswith("the disk is full; make room, then run the same command again")


def test_too_many_open_files_are_a_line(tmp_path):
    settings = tmp_path / "c.yaml"
    settings.write_text("name: x\n")
    code = (
        "import resource, os, sys; from jax_rele import cli; from jax_rele import config\n"
        "files = []\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "try:\n    while True: files.append(open(os.devnull))\nexcept OSError: pass\n"
        f"sys.exit(cli.main(['prepare', {str(settings)!r}]))"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 40
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert "Too many open files" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert io.system_error(make("EMFILE")) is not None


def test_a_closed_standard_output_is_no_error():
    code = "import sys; sys.argv[1:] = ['--version']; from jax_rele.cli import command; command()"
    words = f'{sys.executable} -c "{code}" >&-'
    result = subprocess.run(words, shell=True, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_link_to_nothing_or_itself_is_named(tmp_path, monkeypatch, capsys):
    for name, target in (("none", tmp_path / "missing"), ("loop", tmp_path / "loop")):
        (tmp_path / name).symlink_to(target)
        for check in (check_output_file, check_output_folder):
            assert f"{name}: is a link to {target}, which is not there" in refused(check, tmp_path / name)
        assert "is not there" in refused(check_output_folder, tmp_path / name / "deep")
    monkeypatch.setattr(cli, "_dispatch", lambda _: Path(tmp_path / "loop").resolve(strict=True))
    assert cli.main(["run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "loop") in line


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied; change its permissions" in refused(refuse_placeholder, tmp_path / "config.json")

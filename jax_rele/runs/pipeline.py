"""The stages in order: finished ones are skipped, interrupted ones resume, those of another config are refused."""

from __future__ import annotations

import errno
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from jax_rele.config import Config, flatten, is_input, load, local_name, resolve_paths
from jax_rele.errors import UserError
from jax_rele.io import check_output_folder, hash_values, lock, refuse_placeholder, write_error, write_json, write_text
from jax_rele.runs import selected_pairs
from jax_rele.runs.compiles import count_compiles
from jax_rele.runs.preflight import preflight
from jax_rele.runs.stages import STAGES, UNHASHED, Stage
from jax_rele.runs.texts import check_student_tokenizer, check_teacher_tokenizer
from jax_rele.training import distributed

PACKAGES = ("jax_rele", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "numpy")
FORMAT = 5
"""Version of what a run's folder holds. Raise it when a stage's files change their form or meaning."""
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
LOCK = ".lock"
_UNSET = object()
Manifest = dict[str, Any]
"""What `manifest.json` holds."""

SHARED_SECONDS = 10.0
"""How long what process 0 writes may take to be seen by the others: network file systems keep listings for a while."""


def run(config: Config, names: Sequence[str] = tuple(STAGES), *, say=print, whole: bool = True) -> None:
    """Runs stages in order under `config.run_dir`, in as many processes as `distributed.join_processes` has joined.

    Process 0 alone keeps the lock and the manifests and decides what is left to do; the others follow. They all see
    the same run folder.

    Args:
      config: the run.
      names: which stages; by default all.
      say: receives one line per stage, in process 0.
      whole: True checks the config against all finished stages and writes it to config.yaml; False checks the named
        stages alone.

    Raises:
      UserError: a stage's folder belongs to another config or other inputs, an earlier stage is missing, another
        process is at work on the run, the processes differ in config or folder, or a stage was given bad input. What
        finished stages wrote is never touched.
    """
    run_dir = config.run_dir
    if set(names) <= {*_disabled(config)}:
        raise UserError(f"{names[0]}.enabled is false: set it to true in the config to run this stage")
    _refuse_differing(config, names)
    checked = tuple(STAGES) if whole else names
    if distributed.process_count() == 1 and _is_read_only(run_dir) and _says_finished(config, checked, names, say):
        return
    with _lock(run_dir) if distributed.is_main() else nullcontext():
        _refuse_unshared(run_dir)
        distributed.on_main(partial(_begin, config, run_dir, checked, names))
        if (unread := _unread(config)) and distributed.is_main():
            say(f"{', '.join(unread)}: not read, since the signals are those of score.signals")
        for name in names:
            if name in _disabled(config):
                continue
            if name in _skipped(config):
                if distributed.is_main():
                    say(f"{name:9} skipped: score.signals takes the teacher's place")
            else:
                _run_stage(config, run_dir, name, say)
            if name == "prepare":
                distributed.on_main(partial(_check_pairs, config, run_dir))


def _check_pairs(config: Config, run_dir: Path) -> None:
    """What of the pairs a later stage would refuse is refused before the stages between."""
    for stage, check in (
        ("finetune", check_teacher_tokenizer),
        ("finetune", selected_pairs.check),
        ("distill", check_student_tokenizer),
    ):
        manifest = _read_manifest(run_dir, stage)
        if manifest is None or manifest["status"] != "finished":
            check(config, run_dir)


def require(config: Config, name: str) -> None:
    """Raises UserError unless a stage has finished, with this config and what it reads now."""
    manifest = _read_manifest(config.run_dir, name)
    if manifest is None or manifest["status"] != "finished":
        raise UserError(f"{config.run_dir}: the stage {name} has not finished; run `jax-rele {name} CONFIG` first")
    _refuse_other(config, config.run_dir, name)


def _skipped(config: Config) -> Sequence[str]:
    """The stages whose folders are not read: those that `score.signals` replaces, and those that are not enabled."""
    replaced = [name for name, stage in STAGES.items() if stage.makes_teacher and config.score.signals]
    return [*replaced, *_disabled(config)]


def _disabled(config: Config) -> list[str]:
    return [name for name, stage in STAGES.items() if stage.optional and not getattr(config, name).enabled]


def _unread(config: Config) -> list[str]:
    """Sections about our own teacher that say something where `score.signals` replaces it."""
    if not config.score.signals:
        return []
    sections = [*(name for name, stage in STAGES.items() if stage.makes_teacher), "teacher"]
    return [name for name in sections if getattr(config, name) != type(getattr(config, name))()]


def read_config(run_dir: Path) -> Config:
    """The config of a run's folder. Raises UserError where it is not a run's, or not that of its stages."""
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{run_dir}: not a run folder ({CONFIG} is missing); give the folder that `jax-rele run` wrote")
    # First, as the config of another version may have other keys.
    manifests = {name: _read_manifest(run_dir, name) for name in STAGES}
    config = load(run_dir / CONFIG)
    for name, stage in STAGES.items():
        manifest = manifests[name]
        if (
            manifest is not None
            and name not in _skipped(config)
            and _recorded(manifest["config"]) != sections(config, stage)
        ):
            raise UserError(f"{run_dir / CONFIG}: is not the config that the stage {name} ran with; set it back")
    return config


def read_finished(run_dir: Path, name: str, where: str) -> Config:
    """The config of another run, a stage of which is read.

    Args:
      run_dir: its folder.
      name: the stage, which must have finished.
      where: the config path that names the folder, for errors.

    Raises:
      UserError: it is not a run's folder, or as `read_config`, or the stage has not finished.
    """
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{where}: {run_dir} is not the folder of a run; give one that `jax-rele run` wrote")
    config, manifest = read_config(run_dir), _read_manifest(run_dir, name)
    if manifest is None or manifest["status"] != "finished":
        raise UserError(
            f"{where}: the run {run_dir} has not finished its stage {name}; finish it with `jax-rele run "
            f"{run_dir / CONFIG}` first"
        )
    return config


def _refuse_differing(config: Config, names: Sequence[str]) -> None:
    configs = distributed.gather(hash_values([config.model_dump(mode="json"), list(names)]))
    for process, other in enumerate(configs):
        if other != configs[0]:
            raise UserError(
                f"process {process} was given another config or command than process 0; start all with the same one"
            )


def _refuse_unshared(run_dir: Path) -> None:
    """Raises UserError where a process does not see what process 0 writes into the run's folder."""
    if distributed.process_count() == 1:
        return
    token, until = distributed.on_main(partial(_write_token, run_dir / LOCK)), time.monotonic() + SHARED_SECONDS
    while not (seen := _holds(run_dir / LOCK, token)) and time.monotonic() < until:
        time.sleep(0.2)
    for process, sees in enumerate(distributed.gather(seen)):
        if not sees:
            raise UserError(
                f"{run_dir}: process {process} does not see what process 0 writes there; run_root must be a folder on "
                "a file system that all processes share"
            )


def _write_token(path: Path) -> str:
    token = secrets.token_hex(8)
    path.write_text(token, "utf-8")
    return token


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text("utf-8") == text
    except OSError:
        return False


def _begin(config: Config, run_dir: Path, checked: Sequence[str], names: Sequence[str]) -> None:
    for name in checked:
        _refuse_other(config, run_dir, name)
    manifests = {name: _read_manifest(run_dir, name) for name in names if name not in _skipped(config)}
    unfinished = [name for name, manifest in manifests.items() if not manifest or manifest["status"] != "finished"]
    if unfinished:
        check_output_folder(config.cache)
        if "annotate" in unfinished and config.annotate.annotator == "llm":
            check_output_folder(config.answers)
    preflight(config, unfinished)
    for name in unfinished:
        _external_inputs(config, STAGES[name])  # what a later stage reads from outside is missed before the first runs
    if len(checked) < len(STAGES) and (run_dir / CONFIG).exists():
        return  # it is that of other stages too
    write_text(run_dir / CONFIG, _config_text(config))


def _config_text(config: Config) -> str:
    """The config as YAML, with absolute paths, so that it means the same wherever it is read."""
    values = config.model_dump(mode="json")
    resolve_paths(values, Path.cwd())
    return yaml.safe_dump(values, sort_keys=False)


def _run_stage(config: Config, run_dir: Path, name: str, say) -> None:
    stage, directory = STAGES[name], run_dir / name
    manifest = distributed.on_main(partial(_begin_stage, config, run_dir, name, say))
    if manifest is None:
        return
    start, before = time.perf_counter(), manifest["wall_seconds"]
    try:
        with count_compiles() as compiles:
            work = partial(stage.module.run, config, run_dir)
            counts = work() if stage.all_processes else distributed.on_main(work)
            distributed.barrier(name)
    except BaseException as error:
        if distributed.is_main():
            with suppress(UserError):  # on a full disk the manifest stays as it is, which does as well
                _give_up(directory, {**manifest, "wall_seconds": before + time.perf_counter() - start})
        if isinstance(error, OSError):
            raise write_error(error.filename or directory, error) from error
        raise
    if not distributed.is_main():
        return
    seconds = before + time.perf_counter() - start
    finished = {"status": "finished", "counts": counts, "wall_seconds": seconds, "compiled": asdict(compiles)}
    _write_manifest(directory, {**manifest, **finished})
    summary = ", ".join(f"{key} {value}" for key, value in flatten(counts).items())
    compiling = f", {compiles.seconds:.0f} s of it compiling" if compiles.seconds >= 1 else ""
    say(f"{name:9} finished in {seconds:.0f} s{compiling}" + (f": {summary}" if summary else ""))


def _begin_stage(config: Config, run_dir: Path, name: str, say) -> Manifest | None:
    """The manifest of a stage that starts or resumes, as it was written; None where nothing is left to do."""
    stage, directory = STAGES[name], run_dir / name
    manifest = _read_manifest(run_dir, name)
    if manifest and manifest["status"] == "finished":
        say(f"{name:9} {_finished_before(manifest)}")
        return None
    for needed in stage.needs(config):
        if (earlier := _read_manifest(run_dir, needed)) is None or earlier["status"] != "finished":
            raise UserError(f"{name} needs the stage {needed}, which has not finished in {run_dir}; run it first")
    say(f"{name:9} {'resumes' if manifest else 'starts'}")
    manifest = {
        "format": FORMAT,
        "stage": name,
        "status": "running",
        "config_hash": hash_values(sections(config, stage)),
        "config": sections(config, stage),
        "inputs": _inputs(config, run_dir, stage),
        "packages": {package: metadata.version(package) for package in PACKAGES},
        # Time of earlier, interrupted attempts counts.
        "wall_seconds": manifest["wall_seconds"] if manifest else 0.0,
    }
    directory.mkdir(parents=True, exist_ok=True)
    _write_manifest(directory, manifest)
    return manifest


def _give_up(directory: Path, manifest: Manifest) -> None:
    """Leaves an interrupted stage so that it can resume."""
    if [path.name for path in directory.iterdir()] == [MANIFEST]:
        # Nothing was written yet, so nothing binds the folder to this config.
        (directory / MANIFEST).unlink()
        directory.rmdir()
    else:
        _write_manifest(directory, manifest)


def _refuse_other(config: Config, run_dir: Path, name: str) -> None:
    """Raises UserError where the stage's folder was written, or begun, with another config or other inputs."""
    stage, directory = STAGES[name], run_dir / name
    manifest = _read_manifest(run_dir, name)
    if manifest is None or name in _skipped(config):
        return
    old, new = (
        {path: repr(value) for path, value in flatten(read).items()}
        for read in (_recorded(manifest["config"]), sections(config, stage))
    )
    changed = [
        f"{path} is {new.get(path, 'not read')}, was {old.get(path, 'not read')}"
        # Which paths are read depends on the values of others, which are named first.
        for path in sorted({*old, *new}, key=lambda path: (path not in old or path not in new, path))
        if old.get(path) != new.get(path)
    ]
    inputs = _inputs(config, run_dir, stage)
    changed += [
        f"its input {key} has changed" for key in inputs if inputs[key] != manifest["inputs"].get(key, inputs[key])
    ]
    if changed:
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        raise UserError(
            f"{directory} belongs to another config: {'; '.join(changed[:2])}{more}. Choose another `name`, or delete "
            "that folder and those of the stages after it"
        )


def sections(config: Config, stage: Stage) -> Manifest:
    """What the stage reads of the config and its results depend on: path -> value."""
    values: Manifest = {}
    whole = config.model_dump(mode="json")
    for path in stage.reads(config):
        value: Any = whole
        for part in path.split("."):
            value = value.get(part, _UNSET)
        # Some fields are left out of the dump where they are not set.
        if path not in UNHASHED and value is not _UNSET:
            values[path] = _hashed(value, path)
    return _recorded(values)


def _recorded(values: Any, path: str = "") -> Any:
    """The values of a stage's config; of an input on this machine the last part of its path, as its content counts."""
    if isinstance(values, dict):
        return {key: _recorded(value, f"{path}.{key}" if path else key) for key, value in values.items()}
    return local_name(values) if is_input(path) else values


def _hashed(value: Any, path: str) -> Any:
    """The value at a path without what is in `UNHASHED`."""
    if isinstance(value, dict):
        return {key: _hashed(each, f"{path}.{key}") for key, each in value.items() if f"{path}.{key}" not in UNHASHED}
    return [_hashed(each, f"{path}.*") for each in value] if isinstance(value, list) else value


def _inputs(config: Config, run_dir: Path, stage: Stage) -> dict[str, str]:
    """Hashes of what a stage reads: its external files, and the lineage of each earlier stage that is there."""
    inputs = _external_inputs(config, stage)
    for needed in stage.needs(config):
        if (manifest := _read_manifest(run_dir, needed)) is not None:
            inputs[needed] = hash_values([manifest["config_hash"], manifest["inputs"]])
    return inputs


def _external_inputs(config: Config, stage: Stage) -> dict[str, str]:
    return dict(stage.module.external_inputs(config))


def _read_manifest(run_dir: Path, name: str) -> Manifest | None:
    path = run_dir / name / MANIFEST
    refuse_placeholder(path)
    try:
        manifest = json.loads(path.read_text("utf-8"))
        kinds = {"status": str, "config": dict, "config_hash": str, "inputs": dict, "wall_seconds": int | float}
        version = manifest.get("format", 1)
        if type(version) is int and version != FORMAT:
            raise UserError(
                f"{run_dir}: was written by another version of jax_rele (run format {version}, this one has {FORMAT}); "
                "run it again under another `name`, or use the version that wrote it"
            )
        if type(version) is int and all(isinstance(manifest.get(key), kind) for key, kind in kinds.items()):
            return manifest
    except FileNotFoundError:
        return None
    except (PermissionError, NotADirectoryError) as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UserError(f"{path}: cannot be read: {error.strerror}; choose another `name` or run_root") from None
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: damaged; delete the folder {path.parent} to run its stage again")


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    write_json(directory / MANIFEST, manifest)


def _is_read_only(run_dir: Path) -> bool:
    """Whether a run's folder is there and cannot be written."""
    try:
        if run_dir.is_dir():
            (run_dir / LOCK).touch()
    except OSError:
        return True
    return False


def _says_finished(config: Config, checked: Sequence[str], names: Sequence[str], say) -> bool:
    """Whether nothing is left to do, which is then reported."""
    for name in checked:
        _refuse_other(config, config.run_dir, name)
    manifests = {name: _read_manifest(config.run_dir, name) for name in names if name not in _skipped(config)}
    if any(manifest is None or manifest["status"] != "finished" for manifest in manifests.values()):
        return False
    for name, manifest in manifests.items():
        assert manifest is not None
        say(f"{name:9} {_finished_before(manifest)}")
    return True


def _finished_before(manifest: Manifest) -> str:
    return f"finished before in {manifest['wall_seconds']:.0f} s, nothing to do"


@contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """Lets one process at a time work on a run's folder."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOCK).touch()
    except OSError as error:
        raise write_error(run_dir, error) from None
    busy = f"{run_dir}: another process is at work on this run; wait for it or choose another name"
    with lock(run_dir / LOCK, on_busy=lambda: UserError(busy)):
        yield

"""The table of stages tells the truth: what a stage reads of config and run is what its hash covers, and no more."""

import ctypes
import json
import os
import shutil
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import linen as nn

sys.path.insert(0, str(Path(__file__).parents[1] / "annotation"))

from server import Plan, running

from jax_rele import cli, config
from jax_rele.config.base import Section
from jax_rele.data import read_signals, read_table
from jax_rele.models import Encoder, EncoderConfig, to_hf
from jax_rele.runs import layout, pipeline
from jax_rele.runs.stages import STAGES, UNHASHED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="opened files are seen through inotify"),
]

PASSED_ON = {
    # A label schema is made of them, of which the names are read; `test_gains_do_not_change_the_signals`.
    "score": {"labels.gains", "labels.positive"},
    # It loads the teacher that `finetune` trained, as `score` would, and has it draw rationales by its own settings.
    **{
        name: {
            *("labels.gains", "labels.positive", "score.signals"),
            *("score.samples", "score.temperature", "score.rationale"),
        }
        for name in ("prefer", "reinforce")
    },
    # The terms' schedules are made of it, of which evaluate reads whether there is a verdict term.
    "evaluate": {"distill.optimization.steps"},
}
"""Read by a stage, without any effect on what it writes."""

OPTIONAL = {"prefer.enabled", "reinforce.enabled", "teacher.perspectives"}
OPTIONAL |= {f"finetune.selection.{name}" for name in ("wrong_by", "right_by", "undisputed_by")}
"""Declared only where there is such a thing: a run without it has the hashes of before."""

NOT_IN_THESE_RUNS = {
    # They are of other sources of data, and of rows that leak.
    "prepare": {
        *(f"data.hugging_face.{name}" for name in config.HuggingFaceConfig.model_fields),
        "data.splits.leakage",
    },
}
"""Declared, and read where the data are others than here."""

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}judge:"

IN_OPEN, IS_DIRECTORY, OVERFLOW = 0x20, 0x40000000, 0x4000


def leaves(section: Section, prefix: str = "") -> set[str]:
    """The paths of all fields that are no sections themselves."""
    paths = set()
    for name in type(section).model_fields:
        value = getattr(section, name)
        paths |= leaves(value, f"{prefix}{name}.") if isinstance(value, Section) else {prefix + name}
    return paths


def within(path: str, names) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def sections_of(value: object, path: str) -> dict[int, str]:
    """{id of a section: its path}; `*` stands for an entry of a list or mapping."""
    paths = {}
    if isinstance(value, Section):
        paths[id(value)] = path
        for name in type(value).model_fields:
            paths |= sections_of(getattr(value, name), f"{path}.{name}".lstrip("."))
    elif isinstance(value, tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            paths |= sections_of(each, f"{path}.*")
    return paths


@contextmanager
def recorded_fields(settings: config.Config):
    """The paths of the fields that are read of a config, whoever reads them."""
    paths, read = sections_of(settings, ""), set()

    def get(section, name):
        value = object.__getattribute__(section, name)
        if (path := paths.get(id(section))) is not None:
            # A dump or a copy reads them all.
            fields = value if name == "__dict__" else {name: value} if name in type(section).model_fields else {}
            read.update(f"{path}.{key}".lstrip(".") for key, each in fields.items() if not isinstance(each, Section))
        return value

    Section.__getattribute__ = get
    try:
        yield read
    finally:
        del Section.__getattribute__


@contextmanager
def recorded_files(run_dir: Path):
    """The files below a folder, of those that are there before, that this process opens by whatever library."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor, opened = libc.inotify_init1(os.O_NONBLOCK), set()
    assert descriptor >= 0
    folders = {}
    for folder in [run_dir, *(path for path in run_dir.rglob("*") if path.is_dir())]:
        watch_id = libc.inotify_add_watch(descriptor, os.fsencode(folder), IN_OPEN)
        assert watch_id >= 0, os.strerror(ctypes.get_errno())
        folders[watch_id] = folder
    try:
        yield opened
        while True:
            try:
                events = os.read(descriptor, 1 << 20)
            except BlockingIOError:
                break
            while events:
                watch_id, mask, _, length = struct.unpack_from("iIII", events)
                assert not mask & OVERFLOW
                if not mask & IS_DIRECTORY and watch_id in folders:
                    name = events[16 : 16 + length].rstrip(b"\0").decode()
                    opened.add(str((folders[watch_id] / name).relative_to(run_dir)))
                events = events[16 + length :]
    finally:
        os.close(descriptor)


def record(settings: config.Config, names=tuple(STAGES)):
    """{stage: (config, fields read, folders of other stages read)} of a run, all of whose stages are new."""
    run_dir, results = settings.run_dir, {}
    for name in names:
        if name in pipeline._skipped(settings):
            continue
        (run_dir / name).mkdir(parents=True)
        with recorded_fields(settings) as fields, recorded_files(run_dir) as files:
            STAGES[name].module.external_inputs(settings)
            STAGES[name].module.run(settings, run_dir)
        folders = {Path(file).parts[0] for file in files} - {name}
        results[name] = settings, set(fields), folders
    return results


def merged(old: dict, new: dict) -> dict:
    return old | {
        key: merged(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
        for key, value in new.items()
    }


def settings_of(file: Path, folder: Path, name: str, **changes) -> config.Config:
    values = yaml.safe_load(file.read_text())
    return config.from_dict(merged(values, {"name": name, "run_root": str(folder), **changes}))


def answer(messages, model, sample):
    dimensions = config.RationaleConfig().dimensions
    values, verdicts = {name: [] for name in dimensions}, dict.fromkeys(dimensions, "absent")
    return json.dumps({"query_attributes": values, "item_attributes": values, "verdicts": verdicts, "label": "Exact"})


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """{name: what `record` returns} of runs that differ in what is read: every declared path is read by one of them."""
    file, run_dir = tiny
    folder = tmp_path_factory.mktemp("recorded")
    # A few pairs: what a stage reads does not depend on how many there are.
    lines = (file.parent / "pairs.jsonl").read_text("utf-8").splitlines()
    (folder / "pairs.jsonl").write_text("\n".join([*lines[:40], *lines[-3:]]), "utf-8")
    few = {"data": {"path": str(folder / "pairs.jsonl")}}
    assert cli.main(["export", str(run_dir), "--output", str(folder / "decoder")]) == 0
    (folder / "decoder" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    encoder = Encoder(EncoderConfig(640, 40, layers=1, width=32, heads=2, mlp_width=32))
    ids = jnp.zeros((1, 4), jnp.int32)
    variables = nn.unbox(encoder.init(jax.random.key(5), ids, ids, ids == 0))
    to_hf(encoder, variables, folder / "encoder", source=run_dir / layout.STUDENT_TOKENIZER)

    settings = pipeline.read_config(run_dir)
    signals = read_signals(run_dir / layout.SIGNALS, settings.labels.names, settings.rationale.dimensions)
    texts = dict(zip(signals.pair_ids, signals.rationales))
    pairs = read_table(run_dir / layout.PAIRS).to_pylist()
    rows = [{"pair_id": name, "rationale": text} for name, text in list(texts.items())[1:]]
    rows += [{"pair_id": row["pair_id"], "rationale": rows[0]["rationale"]} for row in pairs if row["split"] != "train"]
    sides = {"chosen": "label: Exact", "rejected": "label: Irrelevant"}
    train = [row["pair_id"] for row in pairs if row["split"] == "train"]
    few_ids = {json.loads(line)["pair_id"] for line in (*lines[:40], *lines[-3:])}
    preferences = [{"pair_id": name, **sides} for name in train if name in few_ids]
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preferences))
    (folder / "signals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def of(name, names=tuple(STAGES), **changes):
        return record(settings_of(file, folder, name, **merged(few, changes)), names)

    results = {
        # Candidates of other items make queries whose groups are unlabelled alone, which `labelled_fraction` is about.
        "random": of(
            "random",
            finetune={"evaluate_every": 2},
            data={"candidates": {"per_query": 6}},
            distill={"students": ["cross_encoder"], "recipes": ["mkd"]},
        ),
        "weights": of(
            "weights",
            teacher={"init": str(folder / "decoder")},
            adapt={"enabled": False},
            student={"init": str(folder / "encoder")},
            prefer={"source": "file", "path": str(folder / "preferences.jsonl"), "label_smoothing": 0.1},
            reinforce={
                **{"enabled": True, "iterations": 1, "pairs": 4, "samples": 2},
                "optimization": {"steps": 2, "batch_size": 8, "checkpoint_every": 2, "log_every": 2},
            },
            distill={"students": ["two_tower"], "recipes": ["label_only"]},
        ),
        "annotated": of(
            "annotated",
            prefer={"enabled": False},
            score={"rationale": "annotated"},
            teacher={"perspectives": {"rules": {"dimensions": [], "rules": True}}},
            distill={"students": ["two_tower"], "recipes": ["mkd"]},
        ),
        "chat": of("chat", ("prepare", "adapt"), teacher={"init": str(folder / "decoder")}),
        "signals": of(
            "signals",
            score={"signals": str(folder / "signals.jsonl"), "allow_missing": True},
            distill={"students": ["two_tower"], "recipes": ["label_only"]},
        ),
        "teacher": of(
            "teacher",
            ("prepare", "annotate"),
            annotate={
                **{"annotator": "teacher", "teacher_run": str(run_dir), "gold_filter": "keep"},
                **{"min_vote_fraction": 0.0, "unlabelled": True, "teacher_samples": 2, "reuse_labelled": True},
            },
        ),
    }
    with running(Plan(), answer) as server:
        endpoint = {"base_url": server.url, "name": "one", "model": "one", "samples": 1}
        llm = {"annotator": "llm", "endpoints": [endpoint], "injection_pairs": 1, "gold_filter": "keep"}
        results["llm"] = of("llm", ("prepare", "annotate"), annotate=llm)
    return results


def declared(settings: config.Config, name: str) -> set[str]:
    names = STAGES[name].reads(settings)
    return {path for path in leaves(settings) if within(path, names) and not within(path, UNHASHED)}


def test_a_stage_reads_no_other_fields_than_it_declares(runs):
    """A manifest that did not name a field would not notice its change."""
    for run, stages in runs.items():
        for name, (settings, read, _) in stages.items():
            allowed = {*STAGES[name].reads(settings), *UNHASHED, *OPTIONAL, *PASSED_ON.get(name, ())}
            assert not sorted(path for path in read if not within(path, allowed)), f"{name} of {run}"


def test_every_field_that_a_stage_declares_is_read(runs):
    """A manifest that named a field too many would throw away work for its change."""
    for name in STAGES:
        records = [stages[name] for stages in runs.values() if name in stages]
        stated = set().union(*(declared(settings, name) for settings, _, _ in records))
        read = set().union(*(fields for _, fields, _ in records))
        assert stated - read == NOT_IN_THESE_RUNS.get(name, set()), name


def test_fields_that_are_not_hashed_exist_and_are_read(runs):
    read = {path for stages in runs.values() for _, fields, _ in stages.values() for path in fields}
    unread = {path for path in UNHASHED if not any(within(each, [path]) for each in read)}
    assert unread == {"annotate.allow_pending"}  # read where answers are missing, which these runs have all


def test_a_stage_opens_the_folders_of_the_stages_that_it_needs_and_no_others(runs):
    for run, stages in runs.items():
        for name, (settings, _, folders) in stages.items():
            assert folders == set(STAGES[name].needs(settings)), f"{name} of {run}"


def test_what_is_passed_on_is_not_declared(runs):
    settings = runs["random"]["score"][0]
    for name, paths in PASSED_ON.items():
        assert not paths & declared(settings, name)


# ---- what is not hashed changes nothing


def copy_without(tiny, tmp_path, *names) -> tuple[config.Config, Path]:
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(tiny[1], copy, ignore=shutil.ignore_patterns(*names))
    return settings_of(tiny[0], tmp_path / "runs", "tiny"), copy


def test_gains_do_not_change_the_signals(tiny, tmp_path):
    settings, copy = copy_without(tiny, tmp_path, "score", "distill", "evaluate")
    labels = {"gains": [1.0, 0.5, 0.2, 0.0], "positive": ["Exact", "Substitute"]}
    changed = settings_of(tiny[0], tmp_path / "runs", "tiny", labels=labels)
    assert pipeline.sections(changed, STAGES["score"]) == pipeline.sections(settings, STAGES["score"])
    STAGES["score"].module.run(changed, copy)
    assert read_table(copy / layout.SIGNALS).equals(read_table(tiny[1] / layout.SIGNALS))


UNHASHED_OPTIONS = {
    "teacher": {"remat": "full"},
    "adapt": {"optimization": {"checkpoint_every": 4, "log_every": 1}},
    "finetune": {"evaluate_every": 1, "optimization": {"checkpoint_every": 3, "log_every": 1}},
    "prefer": {"optimization": {"checkpoint_every": 3, "log_every": 1}},
    "score": {"batch_size": 24},
    "distill": {"term_gradients": True, "optimization": {"checkpoint_every": 3, "log_every": 3}},
    "annotate": {"budget": 3.0, "max_attempts": 2, "store": "elsewhere", "allow_pending": True},
}


def test_what_is_not_hashed_is_no_other_run(tiny, tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    changed = settings_of(tiny[0], tiny[1].parent, "tiny", **UNHASHED_OPTIONS)
    file.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    shutil.copytree(tiny[1], tmp_path / "runs" / "tiny")
    assert cli.main(["run", str(file), "--run_root", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("nothing to do") == len(STAGES) - len(pipeline._skipped(changed))


def test_what_is_not_hashed_changes_no_result_but_by_rounding(tiny, tmp_path):
    _, copy = copy_without(tiny, tmp_path, "adapt", "finetune", "prefer", "score", "distill", "evaluate")
    pipeline.run(settings_of(tiny[0], tmp_path / "runs", "tiny", **UNHASHED_OPTIONS), say=lambda line: None)
    one, other = (read_table(folder / "evaluate" / "predictions.parquet").to_pydict() for folder in (copy, tiny[1]))
    assert one.keys() == other.keys()
    for name in one:
        if name not in ("pair_id", "label"):
            np.testing.assert_allclose(one[name], other[name], atol=1e-4)


@pytest.mark.parametrize(
    ("section", "change", "first"),
    [
        ("teacher", {"prompt_length": 40}, "adapt"),
        ("teacher", {"order": "rationale_first"}, "finetune"),
        ("teacher", {"lora": {"rank": 2}}, "adapt"),
        ("labels", {"gains": [1.0, 0.5, 0.2, 0.0]}, "distill"),
        ("labels", {"gain_maps": {"mine": [1.0, 0.5, 0.2, 0.0]}}, "evaluate"),
        ("student", {"item_length": 21}, "distill"),
        ("data", {"tail_max_frequency": 2}, "evaluate"),
        ("data", {"item_fields": ["title"]}, "adapt"),
        ("evaluate", {"report_pairs": 3}, "evaluate"),
    ],
)
def test_work_that_a_change_does_not_touch_stays(tiny, tmp_path, section, change, first):
    """Every stage before the first one that reads it is another is still that of the config."""
    settings = settings_of(tiny[0], tiny[1].parent, "tiny", **{section: change})
    old = pipeline.read_config(tiny[1])
    differing = [
        name for name, stage in STAGES.items() if pipeline.sections(settings, stage) != pipeline.sections(old, stage)
    ]
    assert differing[0] == first

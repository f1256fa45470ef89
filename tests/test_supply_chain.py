"""Weights, runs, bundles and configs are data: reading them runs no code and stays within their folder."""

import ast
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import jax_rele
from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.models.files import open_tensors
from jax_rele.runs import pipeline

PACKAGE = Path(jax_rele.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
RUN_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile", "zipfile"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("torch", "load"),
    ("os", "system"),
    ("shutil", "unpack_archive"),
}
OPTIONS = {"trust_remote_code", "allow_pickle", "shell"}


def faults(tree: ast.AST) -> list[str]:
    """What in a module could run code that a file holds."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            lines += [f"imports {name}" for name in names if name.split(".")[0] in RUN_CODE]
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in CALLS:
                lines.append(f"calls {function.id}")
            elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                lines += [f"calls {function.value.id}.{function.attr}"] * (
                    (function.value.id, function.attr) in ATTRIBUTES
                )
            for option in node.keywords:
                is_off = isinstance(option.value, ast.Constant) and option.value.value is False
                if option.arg in OPTIONS and not is_off:
                    lines.append(f"sets {option.arg}")
    return lines


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_check_finds_what_it_looks_for(source):
    assert faults(ast.parse(source))


def test_nothing_in_the_package_runs_code_from_a_file():
    assert len(FILES) > 100
    by_file = {str(file.relative_to(PACKAGE)): faults(ast.parse(file.read_text("utf-8"))) for file in FILES}
    assert {file: lines for file, lines in by_file.items() if lines} == {
        # Its loader is a SafeLoader that refuses a key that stands twice.
        "config/load.py": ["calls yaml.load"],
        # Over the pipes between a process and those that it has started, never from a file.
        "data/pairs/workers.py": ["imports pickle"],
    }
    loader = importlib.import_module("jax_rele.config.load")._Loader
    assert issubclass(loader, yaml.SafeLoader)


def test_yaml_makes_no_objects(tmp_path):
    marker = tmp_path / "ran"
    file = tmp_path / "config.yaml"
    file.write_text(f"name: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(UserError, match=r"config\.yaml") as error:
        config.load(file)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        pipeline.read_config(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{root}/outside.safetensors", "sub/../../outside.safetensors"]
)
def test_weights_stay_within_their_folder(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "outside.safetensors")
    name = name.format("outside.safetensors", root=tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match="outside of its folder") as error:
        open_tensors(folder)
    assert "\n" not in str(error.value)


def test_weights_in_an_executable_form_are_not_read(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    import pickle

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError):
        open_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()

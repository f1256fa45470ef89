"""The package as a whole: its examples run, and it imports nothing but arrays and types."""

import ast
import doctest
import importlib
import pkgutil

import pytest

from jax_rele import losses

MODULES = [f"{losses.__name__}.{module.name}" for module in pkgutil.iter_modules(losses.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("name", [losses.__name__, *MODULES])
def test_imports_only_itself_and_types(name):
    module = importlib.import_module(name)
    with open(module.__file__) as file:
        nodes = list(ast.walk(ast.parse(file.read())))
    paths = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            paths += [f"{node.module}.{alias.name}" for alias in node.names]
    own = [path for path in paths if path.split(".")[0] == "jax_rele"]
    assert all(path.startswith(("jax_rele.losses.", "jax_rele.types.")) for path in own)
    assert not {path.split(".")[0] for path in paths} & {"flax", "optax", "orbax", "grain", "transformers"}

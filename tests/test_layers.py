"""The layers: a package imports from its own layer, without circles, or from lower ones."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import jax_rele

ROOT = Path(jax_rele.__file__).parent
LAYERS = (
    ("types", "names", "errors", "extras", "progress", "io", "text"),
    ("config",),
    ("data", "rationale", "losses", "models"),
    ("training", "teacher", "students", "evaluation", "annotation"),
    ("distillation",),
    ("runs",),
    ("stages",),
    ("plan", "compare", "tune", "rounds", "deployment"),
    ("serving",),
    ("cli",),
    ("__main__",),
)
LAYER = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def packages_that_it_imports(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        packages |= {name.split(".")[1] for name in names if name.startswith("jax_rele.")}
    return packages - {"__version__"}


def graph() -> dict[str, set[str]]:
    packages: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        if path != ROOT / "__init__.py":
            packages.setdefault(package_of(path), set()).update(packages_that_it_imports(path) - {package_of(path)})
    return packages


def test_no_package_imports_from_a_higher_layer():
    for package, imports in graph().items():
        assert package in LAYER, f"{package} is in no layer; add it to LAYERS"
        for other in imports:
            assert LAYER[other] <= LAYER[package], f"{package} imports {other} from a higher layer"


def test_there_are_no_circles():
    TopologicalSorter(graph()).prepare()


def test_losses_know_types_alone():
    assert graph()["losses"] <= {"types"}


def test_models_do_not_know_training():
    assert "training" not in graph()["models"]

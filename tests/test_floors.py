"""The import floors: a room imports from its own floor, without circles, or from lower ones."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import jax_rele

ROOT = Path(jax_rele.__file__).parent
FLOORS = (
    ("types", "errors", "config", "progress", "io"),
    ("data", "rationale", "losses", "models"),
    ("training", "teacher", "students", "evaluation", "annotation", "deploy"),
    ("stages",),
    ("pipeline", "plan"),
    ("commands", "compare"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("jax_rele.")}
    return rooms - {"__version__"}


def graph() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        if path != ROOT / "__init__.py":
            rooms.setdefault(room_of(path), set()).update(imported_rooms(path) - {room_of(path)})
    return rooms


def test_no_room_imports_from_a_higher_floor():
    for room, imports in graph().items():
        assert room in FLOOR, f"{room} is on no floor; add it to FLOORS"
        for other in imports:
            assert FLOOR[other] <= FLOOR[room], f"{room} imports {other} from a higher floor"


def test_there_are_no_circles():
    TopologicalSorter(graph()).prepare()


def test_losses_know_types_alone():
    assert graph()["losses"] <= {"types"}


def test_models_do_not_know_training():
    assert "training" not in graph()["models"]

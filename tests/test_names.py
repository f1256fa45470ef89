"""Names: no identifier outside the field's vocabulary."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = ("jax_rele", "scripts", "tests")
"""The folders whose names are checked."""

ANYWHERE = {
    "found",
    "said",
    "told",
    "taken",
    "wanted",
    "kept",
    "born",
    "mend",
    "mended",
    "purse",
    "fates",
    "place",
    "places",
    "placed",
    "foreign",
    "imported",
    "prepared",
    "worth",
}
"""Refused as a word of a snake_case or CamelCase name: they say that something exists, not what it is."""

WHOLE = {
    "made",
    "held",
    "given",
    "share",
    "shares",
    "room",
    "rooms",
    "floor",
    "floors",
    "face",
    "house",
    "lead",
    "leads",
    "tails",
    "lane",
    "lanes",
    "watch",
    "together",
    "behind",
    "judgements",
    "words_of",
    "labels_of",
}
"""Refused as a whole name."""

ALLOWED = {"not_found", "placeholder", "replace"}


def words(name: str) -> list[str]:
    """The words of a snake_case or CamelCase name, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def is_refused(name: str) -> bool:
    bare = name.strip("_").lower()
    return bare not in ALLOWED and (bare in WHOLE or not ANYWHERE.isdisjoint(words(name)) or "alarm" in words(name))


def defined_names(tree: ast.AST) -> list[tuple[str, int]]:
    """(name, line) of everything that a module defines: functions, classes, parameters, variables, attributes."""
    names = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.append((node.name, node.lineno))
            case ast.arg():
                names.append((node.arg, node.lineno))
            case ast.Name(ctx=ast.Store()):
                names.append((node.id, node.lineno))
            case ast.Attribute(ctx=ast.Store()):
                names.append((node.attr, node.lineno))
            case ast.alias(asname=str() as name):
                names.append((name, node.lineno))
    return names


@pytest.mark.parametrize("folder", CHECKED)
def test_no_refused_name_is_defined(folder):
    refused = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        if is_refused(path.stem.removeprefix("test_")):
            refused.append(f"{path.relative_to(ROOT)}: the file's name")
        for name, line in defined_names(ast.parse(path.read_text("utf-8"))):
            if is_refused(name) and not name.startswith("test_"):
                refused.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not refused, "\n".join(refused)


def test_the_check_knows_a_refused_name():
    names = ["found", "label_places", "_kept", "TrainingFound", "made", "alarm"]
    assert all(map(is_refused, names))
    assert not any(map(is_refused, ["held_out", "shared", "replace", "foundation", "label_words", "made_up_queries"]))


def test_no_public_class_stands_twice():
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / "jax_rele").rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in files.items() if len(paths) > 1}
    assert not twice, twice

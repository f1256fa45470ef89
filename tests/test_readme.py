"""What the documents show runs as it stands."""

import re
from pathlib import Path

import numpy as np

from jax_rele import config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DEMO = (ROOT / "docs" / "demo.md").read_text("utf-8")
LIBRARY = (ROOT / "docs" / "library.md").read_text("utf-8")


def test_the_library_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL)
    names: dict = {}
    exec(compile(code, "library.md", "exec"), names)
    assert set(names["metrics"]["terms"]) == {"label", "score", "verdict", "brier"}
    assert np.isfinite(float(names["metrics"]["loss"]))
    assert int(names["state"].step) == 1


def test_the_commands_and_files_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"`((?:docs|tests|configs|jax_rele)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`([a-z]+\.[a-z_]+)`", (ROOT / "docs" / "method.md").read_text("utf-8")):
        section, field = path.split(".")
        if section in config.Config.model_fields:
            assert field in config.Config.model_fields[section].annotation.model_fields, path


def table(page: str) -> str:
    return page.partition("<!-- demo table -->")[2].partition("<!-- end of demo table -->")[0]


def test_the_tables_name_every_model_and_agree():
    for name in ("majority", "token_overlap", "bm25", "teacher", "cross_encoder:mkd", "two_tower:label_only"):
        assert f"| {name} " in table(README)
        assert f"| {name} " in table(DEMO)
    cells = set(re.findall(r"-?\d\.\d{3} \[[^]]*\]", table(README)))
    assert cells
    assert cells <= set(re.findall(r"-?\d\.\d{3} \[[^]]*\]", table(DEMO)))


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_the_demo_shows_three_rationales():
    shown = DEMO.partition("<!-- rationales -->")[2].partition("<!-- end of rationales -->")[0]
    assert shown.count("    query: ") == shown.count("    human label: ") == shown.count("    label: ") == 3

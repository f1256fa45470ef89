"""The base template: every report extends it, and what is written is whole."""

from importlib.resources import files

import pytest
from markupsafe import Markup

from jax_rele.errors import UserError
from jax_rele.evaluation.page import write_html


def test_only_the_base_template_has_a_head():
    folders = [files(f"jax_rele.{package}") for package in ("annotation", "evaluation")]
    texts = {(folder, file.name): file.read_text("utf-8") for folder in folders for file in folder.iterdir()
             if file.name.endswith(".html.j2")}  # fmt: skip
    assert [name for (_, name), text in texts.items() if "<!doctype" in text] == ["page.html.j2"]
    reports = [text for (_, name), text in texts.items() if name in ("report.html.j2", "comparison.html.j2")]
    assert len(reports) == 3
    assert all(text.startswith('{% extends "page.html.j2" %}') for text in reports)


def test_values_are_escaped_and_a_page_that_cannot_be_written_is_one_line(tmp_path):
    write_html(tmp_path / "page.html", "page.html.j2", run_name="<b>\ud800")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert '<h1 dir="auto">&lt;b&gt;?</h1>' in text
    write_html(tmp_path / "page.html", "page.html.j2", run_name=Markup("<b>x</b>"))
    assert '<h1 dir="auto"><b>x</b></h1>' in (tmp_path / "page.html").read_text("utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        write_html(tmp_path / "missing" / "page.html", "page.html.j2", run_name="x")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]

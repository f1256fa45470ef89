"""The page: one small file that asks nobody else, and shows sellers' texts as texts."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from importlib import resources

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "red shoes <img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def page():
    return resources.files("jax_rele.serving").joinpath("page.html").read_text("utf-8")


def test_it_is_small_and_asks_nobody_else(page):
    assert len(page.encode()) < 100_000
    assert not re.findall(r"""(?:https?:)?//[a-z]|@import|url\(|src=|<link(?! rel="icon" href="data:,")""", page)


def test_texts_never_become_markup(page):
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|eval\(", page
    )
    assert " on" not in "".join(re.findall(r"<[a-z][^>]*>", page.partition("<script>")[0]))


def test_its_policy_lets_its_own_script_and_style_run_and_no_other(serving, page):
    client, _ = serving()
    answer = client.get("/")
    assert answer.text == page
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


def test_what_it_starts_from(serving):
    values = serving()[0].get("/page").json()
    assert values["rankers"] == ["two_tower", "cross_encoder", "bm25"]
    assert values["queries"][0] == "red running shoes 0 cheap"
    assert values["keeps_grades"] is True


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_shows_three_columns_and_runs_nothing_of_a_title(tmp_path, cross_bundle, tower_bundle, serve_process):
    items = tmp_path / "items.jsonl"
    titles = [EVIL, "red running shoes", "blue shirt", "garden hose"]
    items.write_text("".join(json.dumps({"id": str(n), "title": t}) + "\n" for n, t in enumerate(titles)))
    server = serve_process(cross_bundle, tower_bundle, "--items", items, "--judgements", tmp_path / "j.jsonl")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", f"{server.url}/#q=red%20shoes"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>Relevance</title>" in dom
    assert "owned" in dom  # as text
    assert "<img" not in dom
    assert dom.count("&lt;img src=x") == 3  # once in each column
    assert re.findall(r'<section aria-label="([^"]+)"', dom) == ["Two-tower", "Cross-encoder", "BM25"]
    assert "1 Exact" in dom
    assert 'class="item current"' in dom

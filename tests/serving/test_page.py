"""The page: one small file that asks nobody else, and shows sellers' texts as texts."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from importlib import resources

import pytest
import tree_sitter_html
import tree_sitter_javascript
from tree_sitter import Language, Node, Parser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "red shoes <img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def page():
    return resources.files("jax_rele.serving").joinpath("page.html").read_text("utf-8")


def errors(node: Node, text: bytes) -> list[str]:
    """What a parser could not read, by line."""
    if not node.has_error:
        return []
    own = [f"line {node.start_point.row + 1}: {text[node.start_byte : node.end_byte][:60]!r}"]
    return (
        own if node.is_error or node.is_missing else [each for child in node.children for each in errors(child, text)]
    )


def parsed(grammar, text):
    tree = Parser(Language(grammar.language())).parse(text.encode())
    assert errors(tree.root_node, text.encode()) == []
    return tree.root_node


def nodes(node, kind):
    return ([node] if node.type == kind else []) + [each for child in node.children for each in nodes(child, kind)]


@pytest.fixture(scope="module")
def script(page):
    (inside,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return inside


def test_its_html_and_its_script_can_be_parsed(page, script):
    html = parsed(tree_sitter_html, page)
    assert page.startswith("<!doctype html>")
    assert len(nodes(html, "script_element")) == len(nodes(html, "style_element")) == 1
    assert not nodes(html, "erroneous_end_tag")
    names = re.findall(r'\bid="([^"]*)"', page.partition("<script>")[0])
    assert len(set(names)) == len(names)
    parsed(tree_sitter_javascript, script)
    # What it looks up exists.
    assert set(re.findall(r'\$\("([^"]+)"\)', script)) <= set(names)


def test_a_broken_script_would_be_seen(script):
    for broken in (script.replace("{", "", 1), script + "\nconst;", script.replace(");", ";", 1)):
        with pytest.raises(AssertionError):
            parsed(tree_sitter_javascript, broken)


def test_the_routes_that_it_asks_exist_and_take_what_it_sends(serving, script):
    client, _ = serving()
    calls = [
        call.child_by_field_name("arguments")
        for call in nodes(parsed(tree_sitter_javascript, script), "call_expression")
        if call.child_by_field_name("function").text == b"call"
    ]
    # `call` itself passes on its own arguments.
    asked = {json.loads(each.named_children[0].text): each for each in calls if each.named_children[0].type == "string"}
    assert asked.keys() == {"/page", "/compare", "/judgements"}
    item = {"id": "a", "title": "red shoes"}
    values = {"query": "red shoes", "k": 10, "judge": "ann", "item": item, "label": "Exact"}
    for path, arguments in asked.items():
        fields = [
            field.text.decode().partition(":")[0]
            for each in nodes(arguments, "object")
            for field in each.named_children
        ]
        body = {field: values[field] for field in fields}
        answer = client.post(path, json=body) if fields else client.get(path)
        assert answer.status_code == 200, answer.text


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
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH: `apt-get install chromium` lets this test run")
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

"""Without the packages of the extra `annotate`: the rule annotator works, chat models get one line."""

import json
import subprocess
import sys

import pytest

from jax_rele.annotation import extra
from jax_rele.annotation.answers import Failure, read_answer
from jax_rele.errors import UserError

PAIRS = [
    {"pair_id": f"p{n}", "query": f"red shoe {n}", "item": {"id": f"i{n}", "title": f"red shoe {n}"}, "label": label}
    for n, label in enumerate(["Exact", "Substitute", "Irrelevant"] * 8)
]
BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(["openai", "json_repair", "crowdkit"]))
from jax_rele.cli import main
for line in sys.stdin:
    print(main(line.split()), flush=True)
"""


def test_without_the_packages_rules_annotate_and_chat_models_are_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), "utf-8")
    values = {
        "name": "run",
        "run_root": str(tmp_path / "runs"),
        "labels": {"names": ["Exact", "Substitute", "Irrelevant"], "gains": [1.0, 0.1, 0.0]},
        "data": {"path": str(tmp_path / "pairs.jsonl"), "candidates": {"per_query": 1}},
        "rationale": {"dimensions": ["category", "color"], "tag_map": {}},
        "teacher": {"random": {"vocab_size": 320}},
        "student": {"random": {"vocab_size": 320}},
    }
    rules, chat = tmp_path / "rules.json", tmp_path / "chat.json"
    rules.write_text(json.dumps(values), "utf-8")
    endpoint = {"name": "one", "base_url": "http://localhost:9/v1", "model": "m"}
    values |= {"name": "chat", "annotate": {"annotator": "llm", "endpoints": [endpoint]}}
    chat.write_text(json.dumps(values), "utf-8")
    commands = [f"prepare {rules}", f"annotate {rules}", f"prepare {chat}", f"annotate {chat}", f"annotate work {chat}"]
    commands += [f"annotate batch write {chat} one {tmp_path}/requests.jsonl"]
    process = subprocess.run([sys.executable, "-c", BLOCKED], input="\n".join(commands), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    codes = [line for line in process.stdout.splitlines() if line.isdigit()]
    assert codes == ["0", "0", "0", "2", "2", "0"], process.stderr
    errors = [line for line in process.stderr.splitlines() if "pip install" in line]
    assert len(errors) == 2
    for line in errors:
        assert line.endswith("need openai, json_repair: pip install 'jax_rele[annotate]'")
    assert "Traceback" not in process.stderr
    assert (tmp_path / "requests-001.jsonl").is_file()


def test_only_what_is_missing_is_named(monkeypatch):
    extra.require(*extra.PACKAGES)
    monkeypatch.setitem(sys.modules, "json_repair", None)
    with pytest.raises(UserError, match="need json_repair: pip install"):
        extra.require(*extra.PACKAGES)
    # An answer that is JSON needs no repair.
    answer = '{"query_attributes": {}, "item_attributes": {}, "verdicts": {}, "label": "Exact"}'
    assert not isinstance(read_answer(answer, ["brand"], ["Exact"]), Failure)
    with pytest.raises(UserError, match="json_repair"):
        read_answer(answer.replace('"Exact"', "'Exact',"), ["brand"], ["Exact"])

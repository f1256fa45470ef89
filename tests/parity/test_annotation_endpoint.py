"""annotate asks a server that is not ours: `transformers serve` with a random model, whose answers nobody can read."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from jax_rele import config as configs
from jax_rele.annotation.completions import prompt_hash, sample_keys
from jax_rele.annotation.review import decisions_from_arrow
from jax_rele.annotation.store import Store
from jax_rele.cli import main
from jax_rele.data import read_table
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.runs import chat_annotators as chat
from jax_rele.runs import layout
from jax_rele.stages import annotate

MAX_TOKENS = 24
START_SECONDS = 40
LABELS = ("Exact", "Substitute", "Irrelevant")
PAIRS = [
    {
        "pair_id": f"p{n}",
        "query": f"red shoe {n}",
        "item": {"id": f"i{n}", "title": f"red shoe number {n}", "color": "red", "category": "shoe"},
        "label": LABELS[n % 3],
        "split": split,
    }
    for n, split in enumerate(("train", "train", "train", "train", "validation", "test"))
]
# As Qwen's models are told: by it the server knows where the answer of a Qwen3 begins.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tmp_path):
    """Folder of a model and a tokenizer that know nothing but how a chat is written."""
    folder = tmp_path / "model"
    tokenizer = train_tokenizer([json.dumps(pair) for pair in PAIRS], 320)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 8192}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = Qwen3ForCausalLM(Qwen3Config(**shape, **heads, **ends, vocab_size=len(tokenizer)))
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    return folder


@contextmanager
def serving(model, folder):
    """URL of `transformers serve` in a process of its own, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    with (folder / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=os.environ | offline, stdout=log, stderr=log)
    try:
        limit = time.monotonic() + START_SECONDS
        while not healthy(port):
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"no server: {(folder / 'server.log').read_text('utf-8')[-2000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def write(folder, url, model):
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), "utf-8")
    endpoint = {"name": "random", "base_url": url, "model": str(model), "structured": "none", "max_tokens": MAX_TOKENS}
    values = {
        "name": "run",
        "run_root": str(folder / "runs"),
        "labels": {"names": LABELS, "gains": [1.0, 0.1, 0.0]},
        "data": {"path": str(folder / "pairs.jsonl"), "candidates": {"per_query": 1}},
        "rationale": {"dimensions": ("category", "color"), "tag_map": {}},
        "teacher": {"random": {"vocab_size": 320}},
        "student": {"random": {"vocab_size": 320}},
        "annotate": {"annotator": "llm", "endpoints": [{**endpoint, "samples": 1}]},
    }
    file = folder / "config.json"  # JSON is YAML
    file.write_text(json.dumps(values), "utf-8")
    return file


def test_a_foreign_server_is_asked_once_about_each_pair_and_unreadable_answers_end_in_one_line(model, tmp_path, capsys):
    def end():
        capsys.readouterr()
        status = main(["annotate", str(file)])
        return status, capsys.readouterr().err

    with serving(model, tmp_path) as url:
        file = write(tmp_path, url, model)
        assert main(["prepare", str(file)]) == 0
        first = end()
    settings = configs.load(file)
    pairs = annotate.pairs_of(settings, settings.run_dir)
    assert len(pairs) == 5
    status, error = first
    assert status == 2
    assert error.count("\n") == 1
    assert f"none of {len(pairs)} pairs has an accepted rationale" in error

    decisions = decisions_from_arrow(read_table(settings.run_dir / layout.DECISIONS))
    assert sorted(one.pair_id for one in decisions) == sorted(pair.pair_id for pair in pairs)
    assert {one.status for one in decisions} == {"rejected"}
    assert all(one.reason.startswith("no readable answer: 1 ") for one in decisions)

    tasks = chat.tasks_of(chat.prompts_of(settings), pairs)
    endpoint = chat.endpoints_of(settings)[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    with Store(settings.answers) as store:
        assert len(store) == len(tasks)
        for number, sample, key in sample_keys(map(prompt_hash, tasks), endpoint):
            answer, task = store.get(key), tasks[number]
            assert (answer.pair_id, answer.endpoint, answer.sample) == (task.pair_id, "random", sample)
            assert answer.failure in ("", "length", "empty")
            assert "query_attributes" not in answer.text  # the answer alone, not the prompt before it
            prompt = tokenizer.apply_chat_template(list(task.messages), add_generation_prompt=True)
            assert answer.input_tokens == len(prompt["input_ids"])
            assert 0 < answer.output_tokens <= MAX_TOKENS
            assert (answer.output_tokens == MAX_TOKENS) == (answer.failure == "length")

    # Nothing answers at the address any more; what was asked is not asked again.
    stored = {path: path.read_bytes() for path in (settings.answers / "segments").iterdir()}
    assert end() == first
    assert {path: path.read_bytes() for path in (settings.answers / "segments").iterdir()} == stored

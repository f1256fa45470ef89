"""The command that builds the bundled decoder, on a slice of data made from the sample."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_rele.config import RationaleConfig
from jax_rele.errors import UserError
from jax_rele.models import from_hf
from jax_rele.models.bundled import verify
from jax_rele.rationale.words import key, words
from jax_rele.types import Item, Pair

SCRIPTS = Path(__file__).parents[2] / "scripts" / "build_bundled"
LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")
TINY = (
    *("--layers", "2", "--width", "32", "--heads", "2", "--kv-heads", "1", "--mlp-width", "64", "--vocab-size", "600"),
    *("--examples", "300", "--steps", "20", "--checkpoint-every", "10", "--evaluate-every", "10", "--batch-size", "4"),
)


sys.path.insert(0, str(Path(__file__).parent))
from build_bundled_data import write_data  # noqa: E402

pytestmark = pytest.mark.slow

sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), rows=160)


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    import corpus
    import examples

    sys.path.remove(str(SCRIPTS))
    return {"corpus": corpus, "examples": examples}


@pytest.fixture(scope="module")
def divided(scripts, data):
    return scripts["corpus"].load(data)


def command(data, folder, *more):
    folders = ("--work", str(folder / "work"), "--output", str(folder / "decoder"))
    return [sys.executable, str(SCRIPTS / "decoder.py"), str(data), *folders, *TINY, *more]


def run(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    result = run(data, folder)
    assert result.returncode == 0, result.stderr[-2000:]
    return folder, result.stdout


# ---- what may be learnt from


def test_nothing_set_apart_is_learnt_from(scripts, divided):
    counts = scripts["corpus"].check(divided)
    assert not any(value for name, value in counts.items() if name.endswith("_learnt"))
    learnt = {key(pair.query) for pair in (*divided.judged, *divided.queries)}
    assert divided.demo
    assert divided.held_out
    assert learnt.isdisjoint(key(pair.query) for pair in (*divided.demo, *divided.held_out, *divided.held_out_queries))


def test_the_check_finds_a_leak(scripts, divided):
    leaky = type(divided)(**{**vars(divided), "queries": [*divided.queries, divided.demo[0]]})
    with pytest.raises(UserError, match="demo_queries_learnt': 1"):
        scripts["corpus"].check(leaky)
    of_demo = Pair("new", "another query", divided.demo[0].item)
    with pytest.raises(UserError, match="demo_products_learnt': 1"):
        scripts["corpus"].check(type(divided)(**{**vars(divided), "judged": [*divided.judged, of_demo]}))


def test_made_up_pairs_ask_nothing_that_is_set_apart(scripts, divided):
    examples = scripts["examples"]
    for pairs in (examples.made_up(divided, 600, 0), examples.dense(divided, 200, 0)):
        assert pairs
        assert divided.apart.isdisjoint(key(pair.query) for pair in pairs)
    allowed = divided.allowed([divided.demo[0], divided.judged[0]])
    assert allowed == [divided.judged[0]]


def test_another_case_plural_or_space_is_the_same_query(scripts, divided):
    query = divided.demo[0].query
    assert not divided.allowed([Pair("", query.upper() + "s", Item("", "")), Pair("", f" {query}  ", Item("", ""))])


# ---- examples


def test_the_word_task_says_which_words_the_item_has(scripts, divided, built):
    folder, _ = built
    from jax_rele.data.tokens.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(folder / "decoder", ("eos",))
    writer = scripts["examples"].Writer(tokenizer, 128, 16)
    pair = Pair("1", "red Shoes for dogs", Item("1", "Dog shoe", color="Blue"))
    prompts, answers = writer.words([pair])
    assert tokenizer.decode(prompts[0]).endswith("words:\n")
    text = tokenizer.decode(answers[0].ids[:-1])
    assert text == " red absent shoes match for absent dogs match"
    for short in scripts["examples"].dense(divided, 50, 1):
        has = {word.norm for word in words(short.item.title)}
        assert scripts["examples"].occurs(short) == [word.norm in has for word in words(short.query)]


def test_grades_of_rules_are_distributions_that_prefer_pairs_that_share_words(scripts, divided):
    rationale = RationaleConfig()
    rules = scripts["examples"].fit_rules(divided, LABELS, rationale.dimensions, rationale.tag_map, 0)
    title = divided.judged[0].item.title
    pairs = [Pair("1", " ".join(title.split()[:3]), Item("1", title)), Pair("2", "zzz qqq", Item("2", title))]
    probs = rules.probs(pairs, rules.annotator.annotate(pairs))
    np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-6)
    assert probs[0, 0] > probs[1, 0]


# ---- the command


def test_builds_a_folder_that_loads(built):
    folder, result = built
    output = folder / "decoder"
    verify(output)
    model, variables = from_hf(output, dtype=jnp.float32)
    assert model.config.family == "qwen3"
    raw = json.loads((output / "config.json").read_text("utf-8"))
    assert [raw[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [0, 1, 2]
    assert {str(array.dtype) for array in load_file(output / "model.safetensors").values()} == {"float16"}
    assert np.isfinite(np.asarray(model.apply(variables, jnp.ones((1, 4), jnp.int32)).hidden)).all()
    assert '"demo_queries_learnt": 0' in result
    lines = [json.loads(line) for line in (folder / "work" / "metrics.jsonl").read_text().splitlines()]
    assert {"eval/words", "eval/asked", "eval/auc"} <= lines[-1].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.long
def test_killed_and_resumed_equals_unbroken(built, data, tmp_path):
    with subprocess.Popen(command(data, tmp_path), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 10 "):
                # Saved right after it is measured.
                while not list((tmp_path / "work" / "checkpoints").glob("10*")):
                    assert process.poll() is None
                process.send_signal(signal.SIGKILL)
                break
    assert not (tmp_path / "decoder").exists()
    result = run(data, tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    resumed, unbroken = (load_file(root / "decoder" / "model.safetensors") for root in (tmp_path, built[0]))
    for name, array in unbroken.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda data: (data / "queryner" / "queryner.jsonl").unlink(), "queryner.jsonl: no such file"),
        (lambda data: (data / "queryner" / "queryner.jsonl").write_text("{"), "line 1 is not JSON"),
        (lambda data: (data / "queryner" / "queryner.jsonl").write_text('{"query": "a"}\n'), "line 1"),
        (lambda data: (data / "queryner" / "queryner.jsonl").write_text("[1, 2]\n"), "line 1 is not a JSON object"),
        (lambda data: (data / "queryner" / "queryner.jsonl").write_bytes(b"\xff\xfe\n"), "line 1 is not JSON"),
        (lambda data: (data / "esci" / "esci_pairs.jsonl").write_text('{"pair_id": "1"}\n'), "esci_pairs.jsonl"),
    ],
)
def test_bad_input_is_one_line(tmp_path, broken, message):
    data = write_data(tmp_path / "data", rows=20)
    broken(data)
    result = run(data, tmp_path)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr
    assert not (tmp_path / "decoder").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "-1"), "--steps -1: give a positive number"),
        (("--heads", "0"), "--heads 0: give a positive number"),
        (("--kv-heads", "2", "--heads", "3"), "--kv-heads 2: does not divide --heads 3"),
        (("--width", "33"), "--heads 2: does not divide --width 33"),
    ],
)
def test_a_bad_flag_is_one_line_and_leaves_nothing(data, tmp_path, flags, message):
    result = run(data, tmp_path, *flags)
    assert result.returncode == 1
    assert result.stderr.strip() == f"error: {message}"
    assert not (tmp_path / "work").exists()


def test_other_settings_or_a_full_folder_are_refused(built, data):
    folder, _ = built
    result = run(data, folder)
    assert result.returncode == 1
    assert "exists already" in result.stderr
    work = ("--work", str(folder / "work"), "--output", str(folder / "other"), "--seed", "5")
    result = run(data, folder, *work)
    assert result.returncode == 1
    assert "other settings" in result.stderr
    assert not (folder / "other").exists()

"""adapt and finetune on a tiny run: what is packed, accumulated, measured, and in which precision it is kept."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.models.decoder import init_decoder
from jax_rele.models.weights import to_hf
from jax_rele.runs import layout, load, selected_pairs
from jax_rele.stages import adapt, annotate, finetune, prepare
from jax_rele.teacher import language_model, make_verbalizers
from jax_rele.training import init_state, make_mesh, make_optimizer
from jax_rele.training.checkpoint import save_variables

pytestmark = pytest.mark.slow

OPTIMIZATION = {"steps": 2, "batch_size": 8, "checkpoint_every": 1, "log_every": 1}
VALUES = {
    "name": "tiny",
    "labels": {"aliases": {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}},
    "data": {"fields": {"item": "product", "query_tags": "queryner"}},
    "teacher": {
        "random": {"vocab_size": 400, "layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "mlp_width": 32},
        "prompt_length": 40,
    },
    "adapt": {"crossed_per_query": 1, "optimization": OPTIMIZATION},
    "finetune": {"evaluate_every": 2, "optimization": OPTIMIZATION},
}


def settings_of(**changes):
    """The config with fields of its sections changed."""
    return config.from_dict({**VALUES, **{name: {**VALUES[name], **fields} for name, fields in changes.items()}})


@pytest.fixture(scope="module")
def finished_prepare(tmp_path_factory):
    """A run folder after prepare and annotate, with a random base."""
    run_dir, settings = tmp_path_factory.mktemp("run"), settings_of()
    for stage in (prepare, annotate):
        (run_dir / stage.__name__.rpartition(".")[2]).mkdir()
        stage.run(settings, run_dir)
    adapt.make_tokenizer(settings, run_dir)
    model, _ = load.teacher_model(settings, run_dir)
    tx, mesh = make_optimizer(settings.adapt.optimization), make_mesh(settings.mesh)
    state = init_state(init_decoder(model), "params", {}, tx, mesh, 0)
    save_variables(run_dir / layout.BASE, state.trainable)
    return run_dir


def stopped(stage, settings, run_dir, monkeypatch):
    """What a stage gives to `train`: (state, first batch, its other arguments); nothing is trained or written."""
    seen = {}

    def train(step, state, data, **options):
        seen["given"] = state, next(data), options
        return state

    monkeypatch.setattr(language_model, "train", train)
    monkeypatch.setattr(stage, "save_variables", lambda path, variables: None)
    stage.run(settings, run_dir)
    return seen.get("given")


def dtypes(tree):
    return {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def test_a_base_of_bfloat16_learns_and_is_kept_in_float32(finished_prepare, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_prepare, run_dir, ignore=shutil.ignore_patterns("adapt"))
    shutil.copytree(finished_prepare / layout.TEACHER_TOKENIZER, run_dir / layout.TEACHER_TOKENIZER)
    teacher = {"dtype": "bfloat16"}
    state, batch, _ = stopped(adapt, settings_of(teacher=teacher, adapt={"pack_to": 256}), run_dir, monkeypatch)
    assert dtypes((state.trainable, state.opt_state)) == {"float32"}
    assert batch["inputs"]["tokens"].shape == (8, 256)
    state, _, _ = stopped(finetune, settings_of(teacher=teacher), finished_prepare, monkeypatch)
    assert dtypes((state.trainable, state.opt_state)) == {"float32"}
    assert dtypes(state.frozen) == {"bfloat16"}


def test_without_adapt_the_base_is_used_as_it_is(tmp_path):
    settings = settings_of(adapt={"enabled": False}, teacher={"init": "bundled:decoder"})
    assert adapt.run(settings, tmp_path) == {"steps": 0, "base": "bundled:decoder"}
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()] == [
        "adapt",
        layout.TEACHER_TOKENIZER,
    ]


def test_adapt_goes_on_from_the_weights_that_it_is_given(finished_prepare, tmp_path, monkeypatch):
    model, _ = load.teacher_model(settings_of(), finished_prepare)
    params = nn.unbox(jax.jit(init_decoder(model))(jax.random.key(9)))["params"]
    to_hf(model, {"params": params}, tmp_path / "weights")
    run_dir = tmp_path / "run"
    shutil.copytree(finished_prepare, run_dir, ignore=shutil.ignore_patterns("adapt"))
    shutil.copytree(finished_prepare / layout.TEACHER_TOKENIZER, run_dir / layout.TEACHER_TOKENIZER)
    settings = settings_of(teacher={"init": str(tmp_path / "weights"), "dtype": "bfloat16"})
    state, _, _ = stopped(adapt, settings, run_dir, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, state.trainable["params"], params)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(
        make_optimizer(settings.adapt.optimization).init({"params": params})
    )


@pytest.mark.parametrize("stage", [adapt, finetune])
def test_an_example_longer_than_a_row_is_named(finished_prepare, tmp_path, monkeypatch, stage):
    name = stage.__name__.rpartition(".")[2]
    with pytest.raises(UserError) as error:
        stopped(stage, settings_of(**{name: {"pack_to": 64}}), finished_prepare, monkeypatch)
    hits = str(error.value)
    assert hits.startswith(f"{name}.pack_to: prompt and rationale of the pair '")
    longest = int(hits.split("take ")[1].split()[0])
    assert f"take {longest} tokens, a row has 64; make it {longest} or more, or 0 for one example a row" in hits
    stopped(stage, settings_of(**{name: {"pack_to": longest}}), finished_prepare, monkeypatch)


def test_a_packed_and_accumulated_run_is_measured_as_an_unpacked_one(finished_prepare, tmp_path, monkeypatch):
    """All pairs in each step, so that both take the same steps."""
    load_pairs = layout.load_pairs
    monkeypatch.setattr(layout, "load_pairs", lambda *arguments: load_pairs(*arguments)[:48])
    monkeypatch.setattr(finetune, "make_mesh", lambda sizes: make_mesh(sizes, jax.devices()[:1]))

    def trained(pack_to, rows, parts):
        run_dir = tmp_path / str(pack_to)
        shutil.copytree(finished_prepare, run_dir)
        options = {**OPTIMIZATION, "batch_size": rows, "micro_batches": parts}
        counts = finetune.run(settings_of(finetune={"pack_to": pack_to, "optimization": options}), run_dir)
        assert counts.items() >= {"pairs": 48, "rows": rows, "steps": 2}.items()
        return [json.loads(line) for line in (run_dir / "finetune" / "metrics.jsonl").read_text().splitlines()]

    settings = settings_of(finetune={"pack_to": 512})
    _, tokenizer = load.teacher_model(settings, finished_prepare)
    pairs = layout.load_pairs(finished_prepare, "train")
    _, prompts, answers = finetune.encode(settings, finished_prepare, tokenizer, pairs)
    rows = len(finetune.language_rows(prompts, answers, tokenizer.pad_token_id, 512)["targets"])
    assert rows < 48 / 3
    whole, packed = trained(0, 48, 1), trained(512, rows, rows)
    assert [line["step"] for line in whole] == [line["step"] for line in packed] == [1, 2]
    for one, other in zip(whole, packed):
        for name in set(one) - {"pairs_per_second", "input_wait"}:
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    assert {"eval/loss", "eval/label_accuracy"} <= whole[-1].keys()


@pytest.mark.parametrize("order", ["rationale_first", "label_first", "label_only"])
def test_the_label_is_read_where_it_is_predicted(finished_prepare, monkeypatch, order):
    settings, seen = settings_of(teacher={"order": order}), {}
    model, tokenizer = load.teacher_model(settings, finished_prepare)
    monkeypatch.setattr(finetune, "make_evaluate", lambda apply, loss, rows, *_: seen.update(rows))
    finetune.held_out(settings, finished_prepare, model, tokenizer, make_mesh(settings.mesh))
    pairs = layout.load_pairs(finished_prepare, "validation")
    verbalizers = make_verbalizers(tokenizer, settings.labels.names)
    message = np.array([rest[0] for rest in verbalizers.rests])
    positions = seen["label_positions"]
    np.testing.assert_array_equal(seen["targets"][np.arange(len(pairs)), positions], message[seen["labels"]])
    assert [settings.labels.names[label] for label in seen["labels"]] == [pair.label for pair in pairs]
    # What stands before the place is what the teacher has read when it decides.
    text = tokenizer.decode(seen["inputs"]["tokens"][0][: positions[0] + 1])
    assert text.endswith("label:")
    assert ("category:" in text) == (order == "rationale_first")


def test_labels_that_one_token_does_not_tell_have_no_accuracy(finished_prepare, monkeypatch):
    settings = settings_of(labels={"names": ["Exact", "Exactly", "Complement", "Irrelevant"], "aliases": {}})
    monkeypatch.setattr(layout, "load_pairs", lambda *_: [])
    monkeypatch.setattr(finetune, "make_evaluate", lambda apply, loss, rows, *_: rows)
    model, tokenizer = load.teacher_model(settings, finished_prepare)
    rows = finetune.held_out(settings, finished_prepare, model, tokenizer, make_mesh(settings.mesh))
    assert "label_positions" not in rows


def test_label_hits_are_those_of_the_whole_vocabulary_cut_to_the_labels():
    rng = np.random.default_rng(0)
    hidden, embedding = rng.normal(size=(40, 5, 8)).astype(np.float32), rng.normal(size=(30, 8)).astype(np.float32)
    positions, labels, label_tokens = rng.integers(0, 5, 40), rng.integers(0, 3, 40), np.array([7, 2, 29])
    logits = (hidden @ embedding.T)[np.arange(40), positions][:, label_tokens]
    hits = finetune.label_hits(hidden, embedding, positions, labels, label_tokens)
    np.testing.assert_array_equal(hits, logits.argmax(-1) == labels)
    assert 0 < hits.sum() < 40


@pytest.mark.parametrize("stage", [adapt, finetune])
def test_texts_that_are_cut_are_said_and_refused_before_the_training(finished_prepare, stage, monkeypatch, capsys):
    monkeypatch.setattr(stage, "train_language_model", lambda *_, **__: pytest.fail("the training has begun"))
    name = stage.__name__.rpartition(".")[2]
    strict = settings_of(data={"text_loss": {"max_cut": 0.01}})
    with pytest.raises(UserError, match=rf"^{name}: teacher: .* of the pairs lose the end .*max_cut 0\.01"):
        stage.run(strict, finished_prepare)
    monkeypatch.setattr(stage, "check_packing", lambda *_: (_ for _ in ()).throw(RuntimeError("far enough")))
    with pytest.raises(RuntimeError, match="far enough"):
        stage.run(settings_of(), finished_prepare)
    assert f"warning: {name}: teacher: " in capsys.readouterr().out


def predictions(file, pairs, right):
    """A file of predictions that are right for the pairs with a number in `right`."""
    names = VALUES["labels"]["aliases"].values()
    wrong = dict(zip(names, [*list(names)[1:], next(iter(names))]))
    rows = [
        {"pair_id": pair.pair_id, "label": pair.label if number in right else wrong[pair.label]}
        for number, pair in enumerate(pairs)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


def test_it_learns_from_hard_and_clean_pairs_alone(finished_prepare, tmp_path, monkeypatch, capsys):
    pairs = layout.load_pairs(finished_prepare, "train")
    everyone = set(range(len(pairs)))
    files = {
        "wrong_by": predictions(tmp_path / "first.jsonl", pairs, everyone - {1, 3, 5, 7}),
        "right_by": predictions(tmp_path / "second.jsonl", pairs, everyone - {5}),
        "undisputed_by": predictions(tmp_path / "third.jsonl", pairs[:7], everyone - {1}),
    }
    settings, seen = settings_of(finetune={"selection": files}), {}
    assert {name.split(" ")[1] for name in finetune.external_inputs(settings)} == {
        "first.jsonl",
        "second.jsonl",
        "third.jsonl",
    }

    def encoded(config, run_dir, tokenizer, pairs, losses):
        seen["pairs"] = pairs
        raise RuntimeError("far enough")

    monkeypatch.setattr(finetune, "encode", encoded)
    with pytest.raises(RuntimeError, match="far enough"):
        finetune.run(settings, finished_prepare)
    assert [pair.pair_id for pair in seen["pairs"]] == [pairs[3].pair_id]
    selection = selected_pairs.select(settings, finished_prepare)
    assert selection["rows"] == [3]
    # Of the last file the pairs from the eighth on are missing.
    numbers = {"unpredicted": len(pairs) - 7, "easy": 4, "not_learnt": 1, "disputed": 1}
    assert selection["counts"] == {f"left_out.{reason}": number for reason, number in numbers.items()}
    missing = {pair.label for pair in pairs} - {pairs[3].label}
    assert capsys.readouterr().out.count("warning: finetune.selection: no pair with the label ") == 2 * len(missing)


def test_a_selection_of_nothing_and_a_missing_file_are_one_line(finished_prepare, tmp_path):
    pairs = layout.load_pairs(finished_prepare, "train")
    file = predictions(tmp_path / "first.jsonl", pairs, set(range(len(pairs))))
    settings = settings_of(finetune={"selection": {"wrong_by": file}})
    with pytest.raises(UserError, match=r"^finetune\.selection: none of the \d+ labelled training pairs .*easy \d+"):
        finetune.run(settings, finished_prepare)
    settings = settings_of(finetune={"selection": {"right_by": str(tmp_path / "none.jsonl")}})
    with pytest.raises(UserError, match=r"^finetune\.selection\.right_by: .*none\.jsonl cannot be read: No such file"):
        finetune.external_inputs(settings)
    (tmp_path / "odd.txt").touch()
    settings = settings_of(finetune={"selection": {"undisputed_by": str(tmp_path / "odd.txt")}})
    with pytest.raises(UserError, match=r"^finetune\.selection\.undisputed_by: .*odd\.txt: unknown suffix"):
        selected_pairs.check(settings, finished_prepare)


def test_a_probability_of_just_the_limit_disputes(finished_prepare, tmp_path):
    pairs, names = layout.load_pairs(finished_prepare, "train"), list(VALUES["labels"]["aliases"].values())

    def row(pair, probability):
        other = next(name for name in names if name != pair.label)
        return json.dumps({"pair_id": pair.pair_id, "label_probs": {pair.label: 1 - probability, other: probability}})

    for limit in (0.3, 0.6, 0.7, 0.9):
        file = tmp_path / "third.jsonl"
        file.write_text("\n".join([row(pairs[0], limit), *(row(pair, limit - 0.01) for pair in pairs[1:])]), "utf-8")
        settings = settings_of(finetune={"selection": {"undisputed_by": str(file), "dispute": limit}})
        assert selected_pairs.select(settings, finished_prepare)["counts"]["left_out.disputed"] == 1

"""What a student is taught: each pair's own signals, and no label that nobody gave."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jax_rele.config import Config
from jax_rele.data import take_signals, write_pairs, write_signals
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.distillation import dataset
from jax_rele.distillation.dataset import targets
from jax_rele.distillation.objectives import student_terms
from jax_rele.distillation.trainer import query_groups
from jax_rele.errors import UserError
from jax_rele.rationale import render
from jax_rele.runs import layout
from jax_rele.runs.load import new_student
from jax_rele.stages import distill
from jax_rele.types import Comparison, Item, Pair, Rationale, Signals, Span

pytestmark = pytest.mark.slow

CONFIG = Config.model_validate({"distill": {"group_size": 2}})
PAIRS = [
    Pair("a", "q1", Item("1", "t"), label="Substitute"),
    Pair("b", "q1", Item("2", "t")),
    Pair("c", "q2", Item("3", "t"), label="Irrelevant"),
    Pair("d", "q3", Item("4", "t")),
    Pair("e", "q1", Item("5", "t")),
]
RNG = np.random.default_rng(0)
IDS = ("e", "c", "a", "d", "b")
SIGNALS = Signals(
    IDS,
    RNG.dirichlet(np.ones(4), 5).astype(np.float32),
    RNG.dirichlet(np.ones(3), (5, 7)).astype(np.float32),
    ((),) * 5,
    ("",) * 5,
)


QUERIES, LABELLED = np.array([1, 1, 2, 3, 1], np.uint64), np.array([pair.label is not None for pair in PAIRS])


def test_labels_and_signals_become_arrays_where_they_are_there():
    signals = take_signals(SIGNALS, [IDS.index(pair.pair_id) for pair in PAIRS])
    signals.verdict_probs[2] = np.nan
    built = targets(CONFIG.labels.schema_, PAIRS, signals)
    assert built["labels_mask"].tolist() == [True, False, True, False, False]
    assert built["labels"][[0, 2]].tolist() == [1, 3]
    np.testing.assert_array_equal(built["label_probs"], signals.label_probs)
    assert built["verdict_probs_mask"].all(axis=1).tolist() == [True, True, False, True, True]


def test_without_a_teacher_the_same_groups_hold_their_labelled_pairs_alone():
    whole, labelled = (query_groups(QUERIES, LABELLED, 2, unlabelled=unlabelled) for unlabelled in (True, False))
    assert len(whole) == len(labelled)
    assert sorted(whole[whole >= 0]) == [0, 1, 2, 3, 4]
    for group, selected in zip(whole, labelled):
        assert set(selected[selected >= 0]) == {row for row in group if row >= 0 and LABELLED[row]}


# ---- training

WORDS = ["red", "blue", "shoes", "shirt", "small", "large", "cotton", "leather", "acme", "zeta"]
DRAW = np.random.default_rng(1)
MANY = [
    Pair(
        f"m{n}",
        f"{WORDS[n // 4 % 10]} {WORDS[n // 8 % 10]}",
        Item(f"i{n}", " ".join(DRAW.choice(WORDS, 4))),
        label=("Exact", "Substitute", "Irrelevant", None)[n % 4],
        split="train",
    )
    for n in range(48)
]
MANY_SIGNALS = Signals(
    tuple(pair.pair_id for pair in MANY),
    DRAW.dirichlet(np.ones(4), 48).astype(np.float32),
    DRAW.dirichlet(np.ones(3), (48, 7)).astype(np.float32),
    tuple((Span("query", 0, 3, "color"), Span("title", 0, 3, "brand")) for _ in MANY),
    tuple(render(Rationale((Comparison("color", ("red",), ("blue",), "mismatch"),), "Exact")) for _ in MANY),
)
SHAPE = {
    "random": {"vocab_size": 320, "layers": 1, "width": 16, "heads": 2, "mlp_width": 16},
    "query_length": 8,
    "item_length": 12,
    "rationale_length": 12,
    "cross_encoder": {"latent_width": 16},
    "two_tower": {"embedding_width": 16, "view_width": 4},
}


def config_of(**distill):
    optimization = {"steps": 4, "batch_size": 16, "learning_rate": 1e-2, "checkpoint_every": 4, "log_every": 2}
    fields = {"group_size": 4, "optimization": optimization, **distill}
    return Config.model_validate({"student": SHAPE, "distill": fields, "mesh": {"data": 8}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with a student's tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    texts = [f"{pair.query} {pair.item.title}" for pair in MANY]
    train_tokenizer(texts, 320).save_pretrained(folder / layout.STUDENT_TOKENIZER)
    return folder


def trainer_of(config, folder, recipe, *names, pairs=MANY, signals=MANY_SIGNALS):
    """A trainer of some students by one recipe, over what `prepare` and `score` leave of these pairs and signals."""
    ordered = sorted(range(len(pairs)), key=lambda row: pairs[row].label is None)
    write_pairs(folder / layout.PAIRS, [pair for pair in pairs if pair.label is not None])
    write_pairs(folder / layout.UNLABELLED, [pair for pair in pairs if pair.label is None])
    signals = take_signals(signals, ordered)
    write_signals(folder / layout.SIGNALS, signals, config.labels.names, config.rationale.dimensions)
    options = config.distill.model_copy(update={"students": names, "recipes": (recipe,)})
    config = config.model_copy(update={"cache_dir": str(folder / "cache"), "distill": options})
    return distill.prepare(config, folder).trainer(recipe, names)


def terms_of(config, folder, name, recipe):
    heads = new_student(config, folder / layout.STUDENT_TOKENIZER, name).model.heads
    return student_terms(config.distill, config.labels.gains, recipe, name, heads)


def trained(config, folder, recipe, *names, tmp_path):
    directory = tmp_path / "_".join([recipe, *names])
    params = trainer_of(config, folder, recipe, *names).fit(0, directory, "test")
    lines = (directory / "metrics.jsonl").read_text("utf-8").splitlines()
    return params, [json.loads(line) for line in lines]


def adds_to_scores(path) -> bool:
    """Whether a parameter is added to all scores of a softmax, which does not change them.

    Its gradient is 0 but for rounding, of which AdamW makes steps of full size.
    """
    return jax.tree_util.keystr(path).endswith(("['key']['bias']", "scores']['bias']"))


def test_students_that_are_trained_in_one_pass_become_what_they_become_alone(folder, tmp_path):
    config = config_of()
    both, rows = trained(config, folder, "cot_kd", "cross_encoder", "two_tower", tmp_path=tmp_path)
    for name in ("cross_encoder", "two_tower"):
        alone, lines = trained(config, folder, "cot_kd", name, tmp_path=tmp_path)
        jax.tree_util.tree_map_with_path(
            lambda path, a, b: adds_to_scores(path) or np.testing.assert_allclose(a, b, atol=2e-5),
            both[name],
            alone[name],
        )
        for line, row in zip(lines, rows):
            terms = {key: value for key, value in line.items() if key.startswith("term/")}
            assert terms
            assert all(value == pytest.approx(row[f"term/{name}/{key[5:]}"], abs=1e-4) for key, value in terms.items())


@pytest.mark.parametrize("recipe", ["score_kd", "lrkd", "crsd", "rationale_guided"])
def test_every_other_recipe_trains_the_cross_encoder(folder, tmp_path, recipe):
    _, rows = trained(config_of(), folder, recipe, "cross_encoder", tmp_path=tmp_path)
    terms = {key[5:] for key in rows[-1] if key.startswith("term/")}
    assert terms == set(terms_of(config_of(), folder, "cross_encoder", recipe))
    assert all(np.isfinite(list(row.values())).all() for row in rows)


LOSSES = """
import jax

def brier(logits, label_probs):
    return ((jax.nn.softmax(logits) - label_probs) ** 2).sum(axis=-1)

def wants_more(logits, unheard_of):
    return logits[:, 0]

def scalar(logits):
    return logits.mean()

def wrong(logits, labels):
    raise RuntimeError("no idea")
"""


def test_a_loss_from_outside_trains_through_the_config(folder, tmp_path):
    (tmp_path / "mine.py").write_text(LOSSES)
    terms = {
        "brier": {
            "loss": f"{tmp_path}/mine.py:brier",
            "weight": {"start": 0.0, "end": 0.5, "steps": 2},
            "confidence": "confidence",
        },
        "score": {"temperature": 3.0},
        "margin": {"weight": 0},
    }
    config = config_of(objectives={"mine": {"base": "score_kd", "terms": terms}}, recipes=["mine"], term_gradients=True)
    built = terms_of(config, folder, "two_tower", "mine")
    assert set(built) == {"label", "score", "list", "brier"}
    assert (built["score"].temperature, built["score"].weight, built["brier"].weight(1)) == (3.0, 1.0, 0.25)
    _, rows = trained(config, folder, "mine", "two_tower", tmp_path=tmp_path)
    assert rows[-1]["term/brier"] > 0
    assert rows[-1]["gradient/brier"] > 0
    assert {key[9:] for key in rows[-1] if key.startswith("gradient/")} == set(built)


def test_a_loss_gets_the_gains_of_the_config(folder):
    config = config_of(objectives={"mine": {"terms": {"rank": {"loss": "pairwise_logistic"}}}}, recipes=["mine"])
    built = terms_of(config, folder, "two_tower", "mine")
    np.testing.assert_allclose(built["rank"].bind["gains"], config.labels.gains)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"x": {"loss": "nowhere.at_all:f"}}, "distill.objectives.mine.terms.x.loss: cannot import nowhere.at_all"),
        ({"x": {"loss": "missing.py:f"}}, "distill.objectives.mine.terms.x.loss: cannot import missing.py"),
        ({"x": {"loss": "math:f"}}, "distill.objectives.mine.terms.x.loss: math has no function f"),
        ({"x": {"loss": "score_k"}}, "terms.x.loss: there is no loss 'score_k'; there are .*score_kl"),
        ({"x": {"weight": 2.0}}, "terms.x.loss: the base has no term of this name"),
        ({"label": {"temperature": 2.0}}, "terms.label: cross_entropy has no parameter temperature"),
        ({"label": {"weight": 0}}, "distill.objectives.mine: no term is left"),
        (
            {"x": {"loss": "{folder}/mine.py:wants_more"}},
            "mine reads the field 'unheard_of', which is neither a head nor",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_in_an_objective_is_named(folder, tmp_path, terms, message):
    (tmp_path / "mine.py").write_text(LOSSES)
    terms = json.loads(json.dumps(terms).replace("{folder}", str(tmp_path)))
    config = config_of(objectives={"mine": {"terms": terms}}, recipes=["mine"])
    with pytest.raises(UserError, match=message) as error:
        terms_of(config, folder, "two_tower", "mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "message"), [("scalar", "reduces to a scalar"), ("wrong", "no idea")])
def test_a_loss_that_cannot_be_computed_is_named_before_anything_is_trained(folder, tmp_path, name, message):
    (tmp_path / "mine.py").write_text(LOSSES)
    config = config_of(objectives={"mine": {"terms": {"x": {"loss": f"{tmp_path}/mine.py:{name}"}}}}, recipes=["mine"])
    with pytest.raises(UserError, match=f"distill.objectives.mine: its terms cannot be computed.*{message}"):
        trainer_of(config, folder, "mine", "two_tower")


def test_an_edited_loss_is_another_input(tmp_path):
    (tmp_path / "mine.py").write_text(LOSSES)
    config = config_of(objectives={"mine": {"terms": {"x": {"loss": f"{tmp_path}/mine.py:brier"}}}}, recipes=["mine"])
    before = distill.external_inputs(config)
    assert len(before) == 1
    (tmp_path / "mine.py").write_text(LOSSES + "# edited")
    assert distill.external_inputs(config) != before
    assert distill.external_inputs(config_of()) == {}


def test_a_head_that_a_recipe_needs_and_a_student_lacks_is_named(folder):
    with pytest.raises(UserError, match="lrkd needs the head 'latent', which two_tower lacks; take two_tower out"):
        terms_of(config_of(), folder, "two_tower", "lrkd")
    config = Config.model_validate({"student": {**SHAPE, "cross_encoder": {}}})
    with pytest.raises(UserError, match=r"needs the head 'latent'.*give student.cross_encoder.latent_width a number"):
        terms_of(config, folder, "cross_encoder", "lrkd")


def test_signals_that_a_recipe_needs_and_nobody_gave_are_named(folder):
    config, silent = (
        config_of(),
        dataclasses.replace(MANY_SIGNALS, verdict_probs=np.full_like(MANY_SIGNALS.verdict_probs, np.nan)),
    )
    with pytest.raises(UserError, match="mkd learns from verdicts, and the signals hold none"):
        trainer_of(config, folder, "mkd", "two_tower", signals=silent)
    silent = dataclasses.replace(MANY_SIGNALS, rationales=("",) * 48)
    with pytest.raises(UserError, match="crsd learns from rationales, and the signals hold none"):
        trainer_of(config, folder, "crsd", "cross_encoder", signals=silent)


def test_pairs_without_an_embedding_of_their_own_are_masked_where_others_have_one(folder, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 12)  # 36 labelled pairs, then 12 unlabelled ones: a part that has none at all
    embedding = DRAW.normal(size=(48, 16)).astype(np.float32)
    unlabelled = [pair.label is None for pair in MANY]
    embedding[unlabelled] = np.nan
    own = dataclasses.replace(MANY_SIGNALS, rationale_embedding=embedding)
    trainer_of(config_of(), folder, "lrkd", "cross_encoder", signals=own)
    options = {"students": ("cross_encoder",), "recipes": ("lrkd",)}
    config = config_of(**options).model_copy(update={"cache_dir": str(folder / "cache")})
    columns = distill.prepare(config, folder).datasets["cross_encoder"].columns
    assert columns["rationale_embedding_mask"].tolist() == [True] * 36 + [False] * 12
    np.testing.assert_array_equal(columns["rationale_embedding"][:36], embedding[~np.array(unlabelled)])


def test_a_collapse_is_reported_while_the_student_trains(folder, tmp_path, capfd):
    # A rate this high drives every score to the same end.
    optimization = {"steps": 40, "batch_size": 16, "learning_rate": 20.0, "checkpoint_every": 40, "log_every": 10}
    config = config_of(optimization=optimization)
    _, rows = trained(config, folder, "label_only", "cross_encoder", tmp_path=tmp_path)
    message = capfd.readouterr().err
    assert min(row["score_variance"] for row in rows) < 1e-6
    assert message.count("the student has collapsed") == 1
    assert "standard deviation" in message


def test_every_recipe_sees_the_same_labelled_pairs_in_the_same_steps(folder):
    seen = {}
    for recipe in ("label_only", "mkd"):
        config = config_of(labelled_fraction=0.5)
        pairs = [
            *MANY,
            *(
                dataclasses.replace(pair, pair_id=f"u{pair.pair_id}", query=f"new {pair.query}", label=None)
                for pair in MANY
            ),
        ]
        signals = dataclasses.replace(
            MANY_SIGNALS,
            **{
                field.name: np.concatenate([getattr(MANY_SIGNALS, field.name)] * 2)
                if isinstance(getattr(MANY_SIGNALS, field.name), np.ndarray)
                else getattr(MANY_SIGNALS, field.name) * 2
                for field in dataclasses.fields(MANY_SIGNALS)
                if getattr(MANY_SIGNALS, field.name) is not None
            },
        )
        signals = dataclasses.replace(signals, pair_ids=tuple(pair.pair_id for pair in pairs))
        data = trainer_of(config, folder, recipe, "two_tower", pairs=pairs, signals=signals).batches(3)
        seen[recipe] = []
        for _ in range(10):
            batch = next(data)
            selected = batch["mask"] & batch["labels_mask"]
            seen[recipe].append(sorted(map(tuple, batch["inputs"]["item_tokens"][selected].tolist())))
    assert seen["label_only"] == seen["mkd"]
    assert all(seen["mkd"])

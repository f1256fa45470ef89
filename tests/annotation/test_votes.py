"""Consensus: every pair once, in any order; what a vote is, who wins a tie, what gold labels teach and filter."""

import itertools

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.annotation import reliability as reliability_module
from jax_rele.annotation.answers import Failure
from jax_rele.annotation.reliability import (
    Reliability,
    fit_dawid_skene,
    fit_reliability,
    fold_of,
    label_posterior,
    plurality,
)
from jax_rele.annotation.votes import STATUSES, Vote, consensus, digest, fit_votes, model_shares
from jax_rele.types import VERDICTS, Comparison, LabelSchema, Rationale

LABELS = LabelSchema(("Exact", "Substitute", "Irrelevant"), (1.0, 0.1, 0.0), ("Exact",))
DIMENSIONS = ("category", "brand")


def explain(label, *verdicts):
    verdicts = verdicts or ("match", "absent")
    return Rationale(tuple(Comparison(d, ("a",), ("b",), v) for d, v in zip(DIMENSIONS, verdicts)), label)


def decide(*outcomes, **settings):
    """Outcomes as (model, label or rationale or failure[, round])."""
    votes = []
    for number, (model, outcome, *round_) in enumerate(outcomes):
        outcome = explain(outcome) if isinstance(outcome, str) else outcome
        votes.append(Vote("p", model, outcome, number, *round_))
    [decision] = consensus({"p": votes}, LABELS, DIMENSIONS, weights="equal", **settings)
    return decision


outcomes = st.builds(explain, st.sampled_from(LABELS.names), *[st.sampled_from(VERDICTS)] * 2) | st.just(
    Failure("empty")
)
one_vote = st.tuples(st.sampled_from(["a", "b", "c"]), outcomes, st.integers(0, 1))
many_votes = st.dictionaries(st.sampled_from("pqrs"), st.lists(one_vote, max_size=6), min_size=1)


def votes_of(drawn):
    return {p: [Vote(p, m, o, n, r) for n, (m, o, r) in enumerate(each)] for p, each in drawn.items()}


@settings(max_examples=150)
@given(many_votes, st.sampled_from(["keep", "drop", "ask_again"]), st.integers(0, 4), st.randoms())
def test_every_pair_ends_once_whatever_the_order(drawn, gold_filter, expected_answers, random):
    votes = votes_of(drawn)
    gold = dict.fromkeys("pq", "Exact")
    rules = {"gold": gold, "gold_filter": gold_filter, "expected_answers": expected_answers, "min_vote_fraction": 0.5}
    decisions = consensus(votes, LABELS, DIMENSIONS, **rules)
    assert [each.pair_id for each in decisions] == sorted(votes)
    for each in decisions:
        assert each.status in STATUSES
        assert (each.status == "accepted") == (each.reason == "")
        if each.status == "accepted":
            assert each.rationale.label == each.label
            assert each.label_share >= 0.5 - 1e-9
            assert gold_filter == "keep" or each.gold in (None, each.label)
        if each.label is not None:
            assert sum(each.label_shares.values()) == pytest.approx(1)
            assert each.label_share == max(each.label_shares.values())
        assert each.gold_agrees is (None if each.gold is None or each.label is None else each.label == each.gold)
    shuffled = list(votes.items())
    random.shuffle(shuffled)
    again = {p: random.sample(each, len(each)) for p, each in shuffled}
    assert consensus(again, LABELS, DIMENSIONS, **rules) == decisions
    assert digest(reversed(decisions)) == digest(decisions)


def test_the_samples_of_a_model_are_one_vote():
    # Five answers against two, but one model against two.
    decision = decide(*[("a", "Exact")] * 5, ("b", "Irrelevant"), ("c", "Irrelevant"))
    assert decision.label == "Irrelevant"
    assert decision.label_share == pytest.approx(2 / 3)
    assert (decision.n_answers, decision.n_models) == (7, 3)


def test_within_a_model_shares_count():
    decision = decide(("a", "Exact"), ("a", "Exact"), ("a", "Substitute"), ("b", "Substitute"), ("b", "Irrelevant"))
    assert decision.label_shares == pytest.approx(
        {"Exact": 1 / 3, "Substitute": (1 / 3 + 1 / 2) / 2, "Irrelevant": 1 / 4}
    )
    assert decision.label == "Substitute"
    assert decision.status == "rejected"
    assert decision.reason.startswith("disagreement: Substitute has a share of 0.42")


@pytest.mark.parametrize(
    ("labels", "winner"), [(("Exact", "Irrelevant"), "Irrelevant"), (("Exact", "Substitute"), "Substitute")]
)
def test_ties_go_to_the_lower_grade(labels, winner):
    for order in itertools.permutations(labels):
        assert decide(*zip("ab", order)).label == winner


def test_thirds_that_rounding_parts_are_a_tie():
    assert plurality(np.array([1 / 3 + 1e-16, 1 / 3, 1 / 3]), LABELS) == 2
    fractions = LabelSchema(("low", "high", "top"), (0.0, 0.5, 1.0), ("top",))
    assert plurality([0.4, 0.4, 0.2], fractions) == 0


def test_ties_of_verdicts_go_to_the_one_that_claims_the_least():
    first = ("match", "mismatch", "absent")
    winners = {
        frozenset(two): decide(("a", explain("Exact", two[0], "match")), ("b", explain("Exact", two[1], "match")))
        for two in itertools.permutations(first, 2)
    }
    assert {two: each.verdicts["category"] for two, each in winners.items()} == {
        frozenset({"match", "mismatch"}): "mismatch",
        frozenset({"match", "absent"}): "absent",
        frozenset({"mismatch", "absent"}): "absent",
    }


def test_the_rationale_kept_agrees_with_the_vote_in_most_places():
    lone, usual = explain("Exact", "match", "match"), explain("Exact", "match", "mismatch")
    wrong = explain("Irrelevant", "match", "mismatch")
    decision = decide(("a", lone), ("a", usual), ("a", usual), ("b", wrong), ("b", usual), ("b", usual))
    assert decision.rationale == usual
    assert decision.verdicts == {"category": "match", "brand": "mismatch"}
    assert decision.verdict_shares["brand"] == pytest.approx((2 / 3 + 1) / 2)
    # The label comes first, however many verdicts agree.
    halves = [explain("Exact", "match", "mismatch"), explain("Exact", "mismatch", "match")]
    decision = decide(("a", halves[0]), ("b", halves[1]), ("c", explain("Irrelevant", "match", "match")))
    assert decision.verdicts == {"category": "match", "brand": "match"}
    assert decision.rationale in halves


def test_of_rationales_that_agree_as_much_the_sound_and_the_common_one_is_kept():
    def valued(value):
        return Rationale((Comparison("category", ("a",), (value,), "match"),), "Exact")

    common, rare = valued("common"), [valued(f"rare{n}") for n in range(20)]
    votes = [("a", common), ("b", common), *(("c", rationale_) for rationale_ in rare)]
    assert decide(*votes).rationale == common
    selected = decide(*votes, flaws=lambda pair_id, rationale_: rationale_ != rare[7] and pair_id == "p").rationale
    assert selected == rare[7]


def test_failures_do_not_vote():
    decision = decide(("a", "Exact"), ("a", Failure("empty")), ("b", Failure("refusal")))
    assert (decision.status, decision.label, decision.n_answers, decision.n_models) == ("accepted", "Exact", 1, 1)
    decision = decide(("a", Failure("empty")), ("b", Failure("refusal")), ("b", Failure("empty")))
    assert (decision.status, decision.reason) == ("rejected", "no readable answer: 2 empty, 1 refusal")


def test_a_pair_is_pending_while_answers_are_wanting():
    assert decide(("a", "Exact"), expected_answers=2).status == "pending"
    assert decide(("a", "Exact"), ("b", Failure("empty")), expected_answers=2).status == "accepted"
    assert decide().status == "pending"
    assert decide(("a", Failure("empty")), expected_answers=2).reason == "1 of 2 answers"


def test_the_gold_filter():
    votes = [("a", "Exact"), ("b", "Exact")]
    gold = {"p": "Irrelevant"}
    selected = decide(*votes, gold=gold)
    assert (selected.status, selected.gold_agrees, selected.gold_dropped) == ("accepted", False, False)
    dropped = decide(*votes, gold=gold, gold_filter="drop")
    assert (dropped.status, dropped.gold_dropped, dropped.label) == ("rejected", True, "Exact")
    waiting = decide(*votes, gold=gold, gold_filter="ask_again")
    assert (waiting.status, waiting.reason[:17]) == ("pending", "to be asked again")
    moved = decide(*votes, ("a", "Irrelevant", 1), ("b", "Irrelevant", 1), gold=gold, gold_filter="ask_again")
    assert (moved.status, moved.label, moved.first_label) == ("accepted", "Irrelevant", "Exact")
    assert (moved.asked_again, moved.gold_agrees, moved.gold_dropped) == (True, True, False)
    stubborn = decide(*votes, ("a", "Exact", 1), ("b", "Exact", 1), gold=gold, gold_filter="ask_again")
    assert (stubborn.status, stubborn.asked_again, stubborn.gold_dropped) == ("rejected", True, True)
    early = decide(*votes, ("a", "Irrelevant", 1), gold=gold, gold_filter="ask_again", expected_answers=2)
    assert (early.status, early.reason) == ("pending", "1 of 2 answers")
    # Those that agree are never asked again, and answers of the second round never count for them.
    agrees = decide(*votes, ("a", "Irrelevant", 1), gold={"p": "Exact"}, gold_filter="ask_again")
    assert (agrees.status, agrees.label, agrees.asked_again, agrees.gold_agrees) == ("accepted", "Exact", False, True)


def simulated(n, accuracies, seed=0, samples=1):
    random = np.random.default_rng(seed)
    truth = random.choice(3, n, p=[0.5, 0.2, 0.3])
    votes = {}
    for number, true in enumerate(truth):
        votes[f"p{number}"] = [
            Vote(
                f"p{number}",
                model,
                explain(LABELS.names[true if random.random() < right else random.integers(3)]),
                sample,
            )
            for model, right in accuracies.items()
            for sample in range(samples)
        ]
    return votes, {f"p{number}": LABELS.names[true] for number, true in enumerate(truth)}


@pytest.fixture(scope="module")
def learnt():
    """One good model and two that mostly guess; 100 of 400 pairs have a gold label."""
    votes, truth = simulated(400, {"good": 0.85, "guess": 0.15, "guess2": 0.15})
    gold = {f"p{number}": truth[f"p{number}"] for number in range(100)}
    return votes, truth, gold, fit_votes(votes, LABELS, gold)


def right(decisions, truth):
    return np.mean([each.label == truth[each.pair_id] for each in decisions])


def test_learnt_weights_beat_equal_ones_where_models_differ(learnt):
    votes, truth, gold, fitted = learnt
    assert (fitted.kind, fitted.n_gold) == ("gold", 100)
    assert fitted.weights["good"] > 1.5 * fitted.weights["guess"]
    assert sum(fitted.weights.values()) == pytest.approx(1)
    ours = right(consensus(votes, LABELS, DIMENSIONS, gold=gold, reliability=fitted), truth)
    equal = right(consensus(votes, LABELS, DIMENSIONS, gold=gold, weights="equal"), truth)
    assert ours > equal + 0.1
    assert fitted.accuracy["good"] == pytest.approx(0.85 + 0.15 / 3, abs=0.06)


def crowd_kit_probs(votes, truth, *, prior_count):
    """[N, C] by crowd-kit; pseudo-pairs of the prior are pairs of known label on which a further annotator votes."""
    rows = [(f"{n:04}", m, label) for (n, m), label in np.ndenumerate(votes) if label >= 0]
    rows += [(f"x{label}{number}", -1, label) for label in range(3) for number in range(prior_count)]
    known = {f"{n:04}": label for n, label in enumerate(truth) if label >= 0}
    known |= {task: label for task, annotator, label in rows if annotator == -1}
    fitted = DawidSkene(n_iter=50, tol=1e-4).fit(
        pd.DataFrame(rows, columns=["task", "worker", "label"]), pd.Series(known)
    )
    return fitted.probas_.sort_index().sort_index(axis=1).to_numpy()[: len(votes)]


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("prior_count", [0, 1, 2])
@pytest.mark.parametrize("n_known", [0, 60, 200])
def test_dawid_skene_is_that_of_crowd_kit(prior_count, n_known):
    random = np.random.default_rng(n_known)
    true = random.integers(0, 3, 200)
    votes = np.where(
        random.random((200, 3)) < random.uniform(0.4, 0.9, 3), true[:, None], random.integers(0, 3, (200, 3))
    )
    votes[random.random((200, 3)) < 0.2] = -1
    votes[(votes < 0).all(axis=1), 0] = 0
    truth = np.where(np.arange(200) < n_known, true, -1)
    probs = fit_dawid_skene(votes, truth, 3, prior_count=prior_count)
    np.testing.assert_allclose(probs, crowd_kit_probs(votes, truth, prior_count=prior_count), atol=1e-9)


def expected_confusion(votes, gold, models):
    """Dawid-Skene in float64, with the same smoothing at the end: an oracle."""
    votes_by = {p: {v.model: LABELS.index(v.outcome.label) for v in each} for p, each in votes.items()}
    size = len(LABELS)
    probs = {p: np.bincount(list(each.values()), minlength=size) / len(each) for p, each in votes_by.items()}
    for _ in range(60):
        probs |= {p: np.eye(size)[LABELS.index(label)] for p, label in gold.items()}
        prior = np.mean(list(probs.values()), axis=0)
        counts = {m: np.zeros((size, size)) for m in models}
        for p, each in votes_by.items():
            for model, index in each.items():
                counts[model][:, index] += probs[p]
        errors = {m: c / c.sum(axis=1, keepdims=True) for m, c in counts.items()}
        for p, each in votes_by.items():
            like = prior * np.prod([errors[m][:, index] for m, index in each.items()], axis=0)
            probs[p] = like / like.sum()
    smooth = {m: c + 1 / size for m, c in counts.items()}
    return {m: c / c.sum(axis=1, keepdims=True) for m, c in smooth.items()}


def test_the_confusion_is_that_of_dawid_and_skene(learnt):
    votes, _, gold, fitted = learnt
    expected_answers = expected_confusion(votes, gold, fitted.confusion)
    for model, matrix in fitted.confusion.items():
        # Ours stops early, and its prior counts one pair of each label more.
        np.testing.assert_allclose(matrix, expected_answers[model], atol=0.03)
        np.testing.assert_allclose(matrix.sum(axis=1), 1)


def test_a_pair_is_decided_without_its_own_gold_label():
    votes, gold = simulated(80, {"a": 0.8, "b": 0.4})
    wrong = {**gold, "p0": next(name for name in LABELS.names if name != gold["p0"])}
    one, other = (fit_votes(votes, LABELS, fields) for fields in (gold, wrong))
    fractions = model_shares(votes["p0"], LABELS)
    np.testing.assert_array_equal(label_posterior(fractions, one, "p0"), label_posterior(fractions, other, "p0"))
    # It does tell about others.
    pair_id = next(pair_id for pair_id in gold if fold_of(pair_id) != fold_of("p0"))
    fractions = model_shares(votes[pair_id], LABELS)
    assert (label_posterior(fractions, one, pair_id) != label_posterior(fractions, other, pair_id)).any()


def test_the_posterior_is_bayes_rule():
    confusion = {"a": np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])}
    known = Reliability("gold", 9, {"a": 1.0}, {"a": 0.7}, confusion, np.array([0.5, 0.3, 0.2]))
    expected_answers = known.prior * confusion["a"][:, 1]
    one = label_posterior({"a": np.array([0.0, 1.0, 0.0])}, known)
    np.testing.assert_allclose(one, expected_answers / expected_answers.sum())
    # Samples of one model are one answer, however many there are.
    half = known.prior * np.sqrt(confusion["a"][:, 0] * confusion["a"][:, 1])
    np.testing.assert_allclose(label_posterior({"a": np.array([0.5, 0.5, 0.0])}, known), half / half.sum())


def test_what_was_said_after_the_gold_label_was_told_teaches_nothing():
    votes, gold = simulated(60, {"a": 0.9, "b": 0.4})
    fields = {p: [*each, Vote(p, "b", explain(gold[p]), 0, 1)] for p, each in votes.items()}
    assert fit_votes(fields, LABELS, gold).accuracy == fit_votes(votes, LABELS, gold).accuracy


def test_too_little_gold_gives_equal_weights():
    votes, truth = simulated(60, {"a": 0.9, "b": 0.2})
    few = dict(list(truth.items())[: reliability_module.MIN_GOLD - 1])
    assert fit_votes(votes, LABELS, few).kind == "equal"
    assert fit_votes(votes, LABELS, truth, weights="equal").weights == {"a": 0.5, "b": 0.5}
    assert fit_votes(votes, LABELS, truth).kind == "gold"


def test_a_label_that_nobody_says_and_a_model_that_says_little(monkeypatch):
    monkeypatch.setattr(reliability_module, "MAX_FITTED", 50)
    votes, truth = simulated(120, {"a": 0.9, "b": 0.5})
    # Nobody says Substitute; b answers two pairs.
    fractions = {}
    for number, (pair_id, each) in enumerate(votes.items()):
        fields = {
            v.model: np.eye(3)[0 if v.outcome.label == "Exact" else 2] for v in each if v.model == "a" or number < 2
        }
        fractions[pair_id] = fields
    fitted = fit_reliability(fractions, ["a", "b"], LABELS, truth)
    for matrix in fitted.confusion.values():
        assert np.isfinite(np.log(matrix)).all()
    decided = label_posterior(fractions["p0"], fitted, "p0")
    assert np.isfinite(decided).all()
    assert decided.sum() == pytest.approx(1)


def test_a_vote_for_what_no_rationale_concludes_is_rejected():
    # A model that says Exact where the truth is Substitute, as gold labels show.
    confusion = {"a": np.array([[0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.1, 0.1, 0.8]])}
    known = Reliability("gold", 9, {"a": 1.0}, {"a": 0.3}, confusion, np.full(3, 1 / 3))
    [decision] = consensus({"p": [Vote("p", "a", explain("Exact"))]}, LABELS, DIMENSIONS, reliability=known)
    assert decision.label == "Substitute"
    assert (decision.status, decision.reason) == ("rejected", "no rationale concludes Substitute, as the vote does")


@pytest.mark.parametrize(
    ("max_flaws", "status"), [(None, "accepted"), (2, "accepted"), (1, "rejected"), (0, "rejected")]
)
def test_a_rationale_with_too_many_flaws_is_rejected(max_flaws, status):
    decision = decide(("a", "Exact"), flaws=lambda pair_id, rationale: 2, max_flaws=max_flaws)
    assert decision.status == status
    assert decision.reason == ("" if status == "accepted" else "flaws: the best rationale has 2")

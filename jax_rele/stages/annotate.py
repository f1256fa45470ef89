"""annotate: rationales for the pairs that the teacher learns from, and how far to trust those who wrote them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jax_rele.annotation.answers import Failure
from jax_rele.annotation.injection import attack, effect
from jax_rele.annotation.quality import Annotations, build_quality
from jax_rele.annotation.report import find_examples, write_report
from jax_rele.annotation.review import apply_reviews, decisions_to_arrow, read_reviews, to_review, write_reviews
from jax_rele.annotation.votes import Decision, consensus, digest, fit_votes
from jax_rele.config import Config, local_name
from jax_rele.data import RATIONALES, PairTable, read_table, write_table
from jax_rele.errors import Preempted, UserError
from jax_rele.io import hash_file, write_text
from jax_rele.names import PROMPT_LANGUAGES
from jax_rele.rationale import RuleAnnotator, query_quality, render
from jax_rele.rationale.rules import broken_rules
from jax_rele.runs import chat_annotators as chat
from jax_rele.runs import layout
from jax_rele.runs.other_runs import hash_teacher
from jax_rele.types import Pair, Rationale


def external_inputs(config: Config) -> dict[str, str]:
    """Hashes of the files that the config names: a prompt of its own, reviews, the teacher of another run."""
    annotate = config.annotate
    hashes = {}
    if annotate.annotator == "llm" and annotate.prompt not in PROMPT_LANGUAGES:
        hashes[f"annotate.prompt {local_name(annotate.prompt)}"] = chat.prompts_of(config).version
    if annotate.annotator != "rules" and annotate.reviews:
        hashes[f"annotate.reviews {local_name(annotate.reviews)}"] = _file_hash(annotate.reviews, "annotate.reviews")
    if annotate.annotator == "teacher":
        other = chat.read_teacher_run(config)
        folder = Path(annotate.teacher_run)
        hashes[f"annotate.teacher_run {folder.name}"] = hash_teacher(other, folder)
        if annotate.reuse_labelled:
            if not (folder / layout.RATIONALES).is_file():
                raise UserError(
                    f"annotate.reuse_labelled: the run {folder} has no rationales of its own; set it to false"
                )
            hashes[f"annotate.reuse_labelled {folder.name}"] = hash_file(folder / layout.RATIONALES)
    return hashes


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the rationales that are accepted, and the annotators' quality."""
    pairs = pairs_of(config, run_dir)
    return (_by_rules if config.annotate.annotator == "rules" else _by_models)(config, run_dir, pairs)


def pairs_of(config: Config, run_dir: Path) -> list[Pair]:
    """The pairs to explain: labelled ones of training and validation, and the unlabelled ones where they are asked."""
    pairs = [pair for split in ("train", "validation") for pair in layout.load_pairs(run_dir, split)]
    return [*pairs, *PairTable(run_dir / layout.UNLABELLED)] if config.annotate.unlabelled else pairs


def _by_rules(config: Config, run_dir: Path, pairs: Sequence[Pair]) -> Mapping[str, object]:
    """Rules give no label: an unlabelled pair has none in its rationale, and `finetune` passes it over."""
    train = [pair for pair in pairs if pair.split == "train" and pair.label is not None]
    annotator = RuleAnnotator.fit(train, config.rationale.dimensions, config.rationale.tag_map)
    rationales = annotator.annotate(pairs)
    _write_rationales(run_dir, zip(pairs, rationales, ["rules"] * len(pairs)))
    everyone = PairTable(run_dir / layout.PAIRS)
    fitted = {pair.pair_id for pair in train}
    held_out = query_quality(
        annotator,
        [pair for pair in everyone if pair.label is not None and pair.pair_id not in fitted],
        config.rationale.tag_map,
    )
    write_text(run_dir / layout.QUALITY, json.dumps(held_out, indent=2) + "\n")
    counts: dict[str, object] = {"rationales": len(pairs)}
    if held_out["n_queries"]:
        for unit in ("values", "words"):
            figures = held_out[unit]["overall"]
            counts[f"query {unit} on {held_out['n_queries']} held-out queries"] = (
                f"precision {figures['precision']:.2f} recall {figures['recall']:.2f}"
            )
    return counts


def _by_models(config: Config, run_dir: Path, pairs: Sequence[Pair]) -> Mapping[str, object]:
    annotate, schema, folder = config.annotate, config.labels.schema_, run_dir / "annotate"
    reuses = annotate.annotator == "teacher" and annotate.reuse_labelled
    reused = _reused(config, pairs) if reuses else []
    if reuses:
        pairs = [pair for pair in pairs if pair.label is None]
    by_id = {pair.pair_id: pair for pair in pairs}
    gold = {pair.pair_id: pair.label for pair in pairs if pair.label is not None}
    ask, prompts = None, None
    if annotate.annotator == "llm":
        prompts = chat.prompts_of(config)
        ask = chat.asking(config, prompts)
        responses = ask(chat.tasks_of(prompts, pairs))
    else:
        responses = chat.ask_teacher(config, run_dir, pairs)
    decisions = chat.decide(config, responses, by_id, gold)
    if ask is not None and prompts is not None and chat.ask_again(ask, prompts, responses, decisions, by_id):
        decisions = chat.decide(config, responses, by_id, gold)
    if annotate.reviews:
        reviews = read_reviews(annotate.reviews, schema.names, by_id)
        print(f"{annotate.reviews}: {len(reviews)} decisions are applied")
        decisions = apply_reviews(decisions, reviews, responses.votes)

    injected = _injection(config, ask, prompts, pairs, decisions) if ask is not None else None
    reliability = fit_votes(responses.votes, schema, gold, weights=annotate.weights)
    fields, cut_values = chat.verification_of(config)
    annotations = Annotations(
        by_id, responses.votes, decisions, schema, config.rationale.dimensions, fields, config.rules_, cut_values
    )
    quality = build_quality(annotations, reliability=reliability, injection=injected, seed=config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(run_dir / layout.DECISIONS, *_columns(decisions))
    write_text(run_dir / layout.QUALITY, json.dumps(quality, indent=1) + "\n")
    write_report(folder / "report.html", quality, find_examples(annotations, responses.texts), run_name=config.name)
    (folder / "review.csv").unlink(missing_ok=True)  # a person's edits live in a copy, `annotate.reviews`
    to_see = write_reviews(folder / "review.csv", to_review(decisions), by_id)

    states = Counter(decision.status for decision in decisions)
    if states["pending"] and "SIGTERM" in responses.stopped:
        raise Preempted(
            f"annotate: stopped by SIGTERM; the answers so far are in {config.answers}; the same command resumes"
        )
    if states["pending"] and not annotate.allow_pending:
        raise UserError(
            f"annotate: {states['pending']} of {len(pairs)} pairs have not all of their answers "
            f"({responses.stopped or 'calls failed'}); the same command resumes; the answers so far are in "
            f"{config.answers}; raise annotate.budget where it has ended, or set annotate.allow_pending: true"
        )
    accepted = [decision for decision in decisions if decision.status == "accepted"]
    if not accepted and annotate.annotator == "teacher":
        raise UserError(
            f"annotate: none of the teacher's explanations of {len(pairs)} pairs is accepted, see "
            f"{folder / 'report.html'}; lower min_vote_fraction or raise max_flaws, of annotate or of rounds, delete "
            f"{folder} and run again"
        )
    if not any(decision.pair_id in gold or reuses for decision in accepted):
        raise UserError(
            f"annotate: none of {len(pairs)} pairs has an accepted rationale{_common_failures(responses)}; "
            f"{folder / 'report.html'} says why; answers are stored and not asked for again, refusals too: another "
            "annotate.store, model or parameter of an endpoint asks anew"
        )
    written = [(by_id[one.pair_id], one.rationale, one.model) for one in accepted]
    _write_rationales(run_dir, [*reused, *written])
    readable = (vote for votes in responses.votes.values() for vote in votes if isinstance(vote.outcome, Rationale))
    _write_table(run_dir / layout.VOTES, ((by_id[vote.pair_id], vote.outcome, vote.model) for vote in readable))
    shutil.rmtree(run_dir / chat.DRAWN, ignore_errors=True)
    return {
        "pairs": len(pairs),
        **({"reused": len(reused)} if reuses else {}),
        "accepted": states["accepted"],
        "rejected": states["rejected"],
        "pending": states["pending"],
        "to review": to_see,
        **_rule_counts(config, [rationale for _, rationale, _ in [*reused, *written] if rationale is not None]),
        "cost": round(responses.cost, 6),
        "consensus": digest(decisions)[:16],
    }


def _reused(config: Config, pairs: Sequence[Pair]) -> list[tuple[Pair, Rationale, str]]:
    """The labelled pairs with the rationales that another run's `annotate` accepted for them, and their annotators."""
    folder = Path(config.annotate.teacher_run)
    rows = {row["pair_id"]: row for row in read_table(folder / layout.RATIONALES, RATIONALES).to_pylist()}
    rationales = layout.load_rationales(folder)
    known = [pair for pair in pairs if pair.label is not None and pair.pair_id in rows]
    if not known:
        raise UserError(
            f"annotate.reuse_labelled: the run {folder} has no rationale of a labelled pair of this run; give a "
            "teacher_run on the same data, or set it to false"
        )
    return [(pair, rationales[pair.pair_id], rows[pair.pair_id]["annotator"]) for pair in known]


def _rule_counts(config: Config, rationales: Sequence[Rationale]) -> dict[str, object]:
    """To how many rationales the business rules apply, and how many labels break them; says where one never applies."""
    counts: dict[str, object] = {}
    for number, rule in enumerate(config.rules_):
        if not rule.conditions:
            continue
        applying = [rationale for rationale in rationales if rule.applies(rationale)]
        broken = sum(bool(broken_rules([rule], rationale)) for rationale in applying)
        counts[f"rules.{number}"] = {"applies": len(applying), "broken": broken}
        if not applying:
            print(f"warning: rules.{number} applies to none of {len(rationales)} rationales; check rules.{number}.when")
    return counts


def _common_failures(responses: chat.Responses) -> str:
    """Why answers could not be read, the most frequent reasons first."""
    failures = Counter(
        f"{vote.outcome.kind}: {vote.outcome.detail}" if vote.outcome.detail else vote.outcome.kind
        for votes in responses.votes.values()
        for vote in votes
        if isinstance(vote.outcome, Failure)
    )
    listed = "; ".join(f"{count} {reason}" for reason, count in failures.most_common(2))
    return f" ({listed})" if listed else ""


def _injection(
    config: Config, ask: chat.Ask, prompts, pairs: Sequence[Pair], decisions: Sequence[Decision]
) -> Mapping[str, object] | None:
    """What adversarial titles do to the vote: each attack demands the best grade."""
    target = config.labels.names[0]
    others = {one.pair_id for one in decisions if one.label not in (None, target)}
    chosen = [pair for pair in pairs if pair.pair_id in others][: config.annotate.injection_pairs]
    attacks = [one for pair in chosen for one in attack(pair, target, list(prompts.dimensions))]
    if not attacks:
        return None
    responses = ask(chat.tasks_of(prompts, [one.pair for one in attacks]))
    schema = config.labels.schema_
    attacked = consensus(
        responses.votes,
        schema,
        config.rationale.dimensions,
        weights="equal",
        min_vote_fraction=0.0,
        expected_answers=responses.expected_answers,
    )
    after = {decision.pair_id: decision for decision in attacked if decision.status != "pending"}
    return effect(attacks, {one.pair_id: one for one in decisions}, after, schema, seed=config.seed)


def _columns(decisions: Sequence[Decision]):
    table = decisions_to_arrow(decisions)
    return table.to_pylist(), table.schema


def _write_rationales(run_dir: Path, rows: Iterable) -> None:
    _write_table(run_dir / layout.RATIONALES, rows)


def _write_table(path: Path, rows: Iterable) -> None:
    write_table(
        path,
        [
            {"pair_id": pair.pair_id, "text": render(rationale), "annotator": annotator}
            for pair, rationale, annotator in rows
        ],
        RATIONALES,
    )


def _file_hash(path: str, where: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {error.strerror}") from None

"""prefer: the teacher's adapters trained on which of two rationales for a pair is better."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.config import Config, PreferConfig, ReinforceConfig, local_name
from jax_rele.data import RATIONALES, REFERENCES, PairTable, by_query, read_table, write_table
from jax_rele.data.preferences import Preference, make_preferences, read_preferences, write_preferences
from jax_rele.data.tokens.preference_rows import preference_rows, with_references
from jax_rele.data.tokens.prompts import Answer, AnswerEncoder, encode_prompts
from jax_rele.data.tokens.text_loss import TextLoss, summarize
from jax_rele.errors import UserError
from jax_rele.io import hash_file, write_text
from jax_rele.models import Decoder
from jax_rele.models.decoder import init_decoder
from jax_rele.progress import every, pairs_bar
from jax_rele.rationale import ParseFailure, parse
from jax_rele.runs import layout
from jax_rele.runs.load import load_base, load_lora, load_teacher, teacher_inputs, teacher_model
from jax_rele.runs.questions import teacher_question
from jax_rele.runs.texts import check_teacher_texts
from jax_rele.teacher import Sampling, Teacher, sample
from jax_rele.teacher.language_model import train_language_model
from jax_rele.teacher.preferences import compute_log_probs, preference_objective
from jax_rele.training import distributed, init_state, make_mesh, make_optimizer
from jax_rele.training.checkpoint import clear, save_variables
from jax_rele.types import Pair, Params, PyTree, Rationale

SHARD = 1024
"""Pairs per shard of samples; an interrupted run resumes after the last whole shard."""


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the weights that the teacher starts from, and of the file of preferences."""
    hashes = teacher_inputs(config)
    if config.prefer.source == "file":
        path = config.prefer.path
        try:
            hashes[f"prefer.path {local_name(path)}"] = hash_file(path)
        except OSError as error:
            raise UserError(f"prefer.path: {path} cannot be read: {error.strerror}") from None
    return hashes


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the preferences, the log-probabilities of their texts by the reference, and the adapters.

    The reference is the teacher that `finetune` trained, where this training starts too.
    """
    prefer, optimization, directory = config.prefer, config.prefer.optimization, run_dir / "prefer"
    counts = collect(config, run_dir)
    model, tokenizer = teacher_model(config, run_dir)
    preferences = _read(config, run_dir, run_dir / layout.PREFERENCES)
    texts = encode(config, tokenizer, _pairs(run_dir, {each.pair_id for each in preferences}), preferences)
    distributed.on_main(partial(check_teacher_texts, config, "prefer", texts.loss))
    counts |= {"preferences": len(texts.prompts), "equal_as_tokens": len(preferences) - len(texts.prompts)}
    rows = preference_rows(texts.prompts, texts.chosen, texts.rejected, tokenizer.pad_token_id, prefer.pack_to)
    counts |= {"rows": len(rows["preferences"]), "steps": optimization.steps, **texts.loss.counts()}
    if distributed.on_main((run_dir / layout.PREFERRED_LORA).exists):
        clear(directory / "checkpoints")
        return counts  # an earlier attempt ended after the adapters were written and before the manifest was

    mesh, tx = make_mesh(config.mesh), make_optimizer(optimization)
    base, reference = load_base(config, model, run_dir, mesh), load_lora(_before(config), model, run_dir, mesh)
    references = _references(config, run_dir, model, {**base, **reference}, rows, texts, mesh)
    state = init_state(init_decoder(model), "lora", base, tx, mesh, config.seed)
    state = train_language_model(
        model,
        dataclasses.replace(state, trainable=reference),
        with_references(rows, references),
        make_objective=preference_objective(prefer.loss, prefer.beta, prefer.label_smoothing, prefer.sft_weight),
        optimization=optimization,
        mesh=mesh,
        seed=config.seed,
        directory=directory,
        title="prefer",
    )
    save_variables(run_dir / layout.PREFERRED_LORA, state.trainable)
    clear(directory / "checkpoints")
    return counts


# ---- preferences


def collect(config: Config, run_dir: Path) -> dict[str, object]:
    """Writes the file of preferences, the same in every process; returns counts.

    Raises:
      UserError: there is none, or the file that the config names has a row that is none.
    """
    source = config.prefer.source
    if source == "samples":
        _write_shards(config, run_dir)
    make = {"samples": _from_samples, "annotators": _from_annotators, "file": _from_file}[source]
    return distributed.on_main(partial(make, config, run_dir))


def _write_shards(config: Config, run_dir: Path) -> None:
    """Samples rationales of the training pairs; each process those of its own shards, on its own devices."""
    pairs = _sampled(config, run_dir)
    shards = [pairs[start : start + SHARD] for start in range(0, len(pairs), SHARD)]
    numbers = range(len(shards))[jax.process_index() :: jax.process_count()]
    left = [number for number in numbers if not _shard(run_dir, number).with_suffix(".json").exists()]
    # All processes take part in loading weights, those without a shard too.
    if any(distributed.gather(bool(left))):
        references = layout.load_rationales(run_dir)
        teacher = load_teacher(run_dir, config=_before(config))
        with pairs_bar("prefer (samples)", sum(len(shards[number]) for number in left)) as advance:
            for number in left:
                part = shards[number]
                rationales = draw(config, teacher, part, advance)
                preferences, counts = make_preferences(
                    part, rationales, [references.get(pair.pair_id) for pair in part], config.rules_
                )
                path = _shard(run_dir, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_preferences(path, preferences)
                write_text(path.with_suffix(".json"), json.dumps(counts))
    distributed.barrier("prefer: every shard is written")


def draw(
    config: Config, teacher: Teacher, pairs: Sequence[Pair], progress: Callable[[int], None] = lambda pairs: None
) -> list[list[Rationale | ParseFailure]]:
    """Several rationales for each pair, as `prefer` has the teacher draw them.

    Args:
      config: of the run.
      teacher: the decoder and its settings.
      pairs: the pairs.
      progress: called with the number of pairs after each batch.
    """
    count = config.prefer.samples
    sampling = Sampling(temperature=config.prefer.temperature, seed=config.seed)
    samples = sample(teacher, pairs, count, sampling, progress=every(count, progress))
    return [list(of_pair) for of_pair in zip(*(one.rationales for one in samples))]


def _sampled(config: Config, run_dir: Path) -> list[Pair]:
    """The pairs that rationales are drawn for; those of a query follow each other."""
    pairs = layout.load_pairs(run_dir, "train")
    count = min(len(pairs), config.prefer.max_pairs or len(pairs))
    chosen = [pairs[index * len(pairs) // count] for index in range(count)]
    return [chosen[index] for index in by_query(chosen)]


def _from_samples(config: Config, run_dir: Path) -> dict[str, object]:
    pairs = _sampled(config, run_dir)
    paths = [_shard(run_dir, number) for number in range(-(-len(pairs) // SHARD))]
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(json.loads(path.with_suffix(".json").read_text("utf-8")))
    text = "".join(path.read_text("utf-8") for path in paths)
    if not text:
        # They are worth nothing, and would bind the stage to what is to be changed.
        shutil.rmtree(run_dir / "prefer" / "shards")
        raise UserError(
            f"prefer: the {config.prefer.samples} rationales that the teacher drew for each of {len(pairs)} pairs give "
            "no preference: of each pair their labels are all right or all wrong; raise prefer.samples or "
            "prefer.temperature, or set prefer.enabled: false"
        )
    write_text(run_dir / layout.PREFERENCES, text)
    return {"pairs": len(pairs), **counts}


def _from_annotators(config: Config, run_dir: Path) -> dict[str, object]:
    path = run_dir / layout.VOTES
    if not path.exists():
        raise UserError(
            f"prefer.source: {path} is missing: annotate ran with an earlier version; delete the folder {path.parent} "
            "and run again, its answers are stored"
        )
    votes: dict[str, list[Rationale | ParseFailure]] = {}
    for row in read_table(path, RATIONALES).to_pylist():
        votes.setdefault(row["pair_id"], []).append(parse(row["text"]))
    pairs = [pair for pair in layout.load_pairs(run_dir, "train") if pair.pair_id in votes]
    references = layout.load_rationales(run_dir)
    preferences, counts = make_preferences(
        pairs,
        [votes[pair.pair_id] for pair in pairs],
        [references.get(pair.pair_id) for pair in pairs],
        config.rules_,
    )
    if not preferences:
        raise UserError(
            f"prefer.source: the answers of annotate to {len(pairs)} labelled pairs give no preference: the models "
            "agree; set it to samples, or prefer.enabled: false"
        )
    write_preferences(run_dir / layout.PREFERENCES, preferences)
    return {"pairs": len(pairs), **counts}


def _from_file(config: Config, run_dir: Path) -> dict[str, object]:
    held_out = {pair.pair_id for split in ("validation", "test") for pair in layout.load_pairs(run_dir, split)}
    counts: dict[str, object] = {}
    if config.data.splits.fold is None:
        preferences = _read(config, run_dir, config.prefer.path, refused=held_out)
    else:
        # A file is of all queries, some of which every fold holds out.
        everyone = _read(config, run_dir, config.prefer.path, known=held_out)
        preferences = [each for each in everyone if each.pair_id not in held_out]
        counts["held_out"] = len(everyone) - len(preferences)
        if not preferences:
            raise UserError(f"{config.prefer.path}: all preferences are of pairs that this fold holds out; add others")
    tokenizer = teacher_model(config, run_dir)[1]
    # What is refused is refused before anything is written, so that the file can be corrected.
    encode(config, tokenizer, _pairs(run_dir, {each.pair_id for each in preferences}), preferences)
    write_preferences(run_dir / layout.PREFERENCES, preferences)
    sides = [(each.pair_id, each.chosen, each.rejected) for each in preferences]
    distinct = {*sides}
    counts["repeated"] = len(sides) - len(distinct)
    counts["contradicting"] = sum((pair_id, rejected, chosen) in distinct for pair_id, chosen, rejected in sides)
    return {"pairs": len({pair_id for pair_id, *_ in sides}), **counts}


def _read(
    config: Config,
    run_dir: Path,
    path: str | Path,
    *,
    known: Collection[str] = (),
    refused: Collection[str] = (),
) -> list[Preference]:
    """The preferences of a file, of training, unlabelled and `known` pairs."""
    ids = {pair.pair_id for pair in layout.load_pairs(run_dir, "train")}
    ids.update(PairTable(run_dir / layout.UNLABELLED).column("pair_id").to_pylist(), known)
    return read_preferences(path, ids, config.labels.names, config.rationale.dimensions, refused)


def _shard(run_dir: Path, number: int) -> Path:
    return run_dir / "prefer" / "shards" / f"{number:05d}.jsonl"


def _pairs(run_dir: Path, ids: Collection[str]) -> dict[str, Pair]:
    """The training and unlabelled pairs of these ids."""
    unlabelled = PairTable(run_dir / layout.UNLABELLED)
    rows = [row for row, pair_id in enumerate(unlabelled.column("pair_id").to_pylist()) if pair_id in ids]
    pairs = [*layout.load_pairs(run_dir, "train"), *unlabelled.select(np.array(rows, np.int64))]
    return {pair.pair_id: pair for pair in pairs if pair.pair_id in ids}


def _before(config: Config) -> Config:
    """The config of the teacher that `finetune` trained."""
    return config.model_copy(update={"prefer": PreferConfig(), "reinforce": ReinforceConfig()})


# ---- texts and references


@dataclasses.dataclass(frozen=True)
class PreferenceTexts:
    """Preferences as tokens.

    Attributes:
      pair_ids: of each preference.
      prompts, chosen, rejected: its tokens.
      loss: what of the pairs' texts is not in the prompts.
    """

    pair_ids: list[str]
    prompts: list[list[int]]
    chosen: list[Answer]
    rejected: list[Answer]
    loss: TextLoss


def encode(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Mapping[str, Pair],
    preferences: Sequence[Preference],
) -> PreferenceTexts:
    """Tokens of preferences without those whose sides are the same tokens, as where they differ in what is cut.

    Raises:
      UserError: none is left, or a preference is longer than a packed row.
    """
    teacher, question = config.teacher, teacher_question(config, tokenizer)
    encoder = AnswerEncoder(tokenizer, teacher.order, teacher.value_length, chat=question.chat)
    sides = [(encoder(preference.chosen), encoder(preference.rejected)) for preference in preferences]
    differing = [index for index, (chosen, rejected) in enumerate(sides) if chosen.ids != rejected.ids]
    if not differing:
        fix = f"raise teacher.value_length ({teacher.value_length})"
        if teacher.order == "label_only":
            fix = "teacher.order is label_only: give each preference two labels, or set another order"
        raise UserError(f"prefer: the two sides of all {len(preferences)} preferences are the same tokens; {fix}")
    pair_ids = [preferences[index].pair_id for index in differing]
    # A pair's prompt is read once, however many preferences are of it.
    distinct = list(dict.fromkeys(pair_ids))
    losses: list[np.ndarray] = []
    asked = [pairs[pair_id] for pair_id in distinct]
    encoded = encode_prompts(tokenizer, asked, config.data.item_fields, teacher.prompt_length, *question, losses)
    prompt_of = dict(zip(distinct, encoded))
    texts = PreferenceTexts(
        pair_ids,
        [prompt_of[pair_id] for pair_id in pair_ids],
        [sides[index][0] for index in differing],
        [sides[index][1] for index in differing],
        summarize(losses),
    )
    _check_packing(config, texts)
    return texts


def _check_packing(config: Config, texts: PreferenceTexts) -> None:
    pack_to = config.prefer.pack_to
    sizes = [
        2 * len(prompt) + len(chosen.ids) + len(rejected.ids) - 2
        for prompt, chosen, rejected in zip(texts.prompts, texts.chosen, texts.rejected)
    ]
    if 0 < pack_to < max(sizes):
        longest, folder = max(sizes), config.run_dir / "prefer"
        drawn = ""
        if config.prefer.source != "file":
            drawn = (
                f"; then delete {folder}: to draw nothing again, copy its preferences.jsonl before, for source: file"
            )
        raise UserError(
            f"prefer.pack_to: the two texts of a preference of the pair {texts.pair_ids[sizes.index(longest)]!r} take "
            f"{longest} tokens, a row has {pack_to}; make it {longest} or more, or 0 for one preference a row{drawn}"
        )


def _references(
    config: Config,
    run_dir: Path,
    model: Decoder,
    variables: Params,
    rows: Mapping[str, PyTree],
    texts: PreferenceTexts,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """[N, 2] log-probabilities by the reference, computed where they are not stored yet."""
    path, columns = run_dir / layout.REFERENCES, ("chosen_log_prob", "rejected_log_prob")
    if not distributed.on_main(path.exists):
        optimization = config.prefer.optimization
        batch_size, count = optimization.batch_size // optimization.micro_batches, len(texts.pair_ids)
        log_probs = compute_log_probs(model, variables, rows, count, batch_size, mesh)
        table = {"pair_id": texts.pair_ids, **dict(zip(columns, log_probs.T.tolist()))}
        distributed.on_main(partial(write_table, path, table, REFERENCES))
    table = read_table(path, REFERENCES)
    if table["pair_id"].to_pylist() != texts.pair_ids:
        raise UserError(f"{path}: is of other preferences; delete the folder {path.parent} and run again")
    return np.stack([table[name].to_numpy() for name in columns], -1)

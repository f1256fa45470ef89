"""reinforce: the teacher's adapters trained on rewards of its own answers, in iterations of drawing and training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.annotation.rewards import PARTS, reward_parts
from jax_rele.config import Config, ReinforceConfig
from jax_rele.data import by_query
from jax_rele.data.tokens.policy_rows import policy_rows
from jax_rele.data.tokens.prompts import AnswerEncoder, encode_prompts, max_prompt_length
from jax_rele.data.tokens.text_loss import TextLoss, summarize
from jax_rele.errors import UserError
from jax_rele.evaluation.summary import markdown_table
from jax_rele.io import write_json, write_text
from jax_rele.losses import group_advantages
from jax_rele.models import Decoder
from jax_rele.models.decoder import init_decoder
from jax_rele.progress import every, pairs_bar
from jax_rele.rationale import ParseFailure, parse_output
from jax_rele.runs import layout
from jax_rele.runs.load import load_base, load_teacher, teacher_inputs, teacher_model
from jax_rele.runs.questions import teacher_question
from jax_rele.runs.texts import check_teacher_texts
from jax_rele.teacher import Sampling, Teacher, sample
from jax_rele.teacher.form import make_form
from jax_rele.teacher.language_model import train_language_model
from jax_rele.teacher.policy import policy_objective, token_log_probs
from jax_rele.training import abstract, distributed, init_state, make_mesh, make_optimizer
from jax_rele.training.checkpoint import clear, load_variables, save_variables
from jax_rele.types import Pair, Params, PyTree, Rationale

Figures = dict[str, float]
"""What an iteration has measured before its training, see `measure`."""

Drawn = list[list[Rationale | ParseFailure]]
"""The answers of each pair."""


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the weights that the teacher starts from."""
    return teacher_inputs(config)


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the adapters, what each iteration measured, and rewards.md, the curve of the rewards.

    An interrupted run resumes within its iteration: after the answers that are drawn, or after the last checkpoint.
    """
    section, directory = config.reinforce, run_dir / "reinforce"
    model, tokenizer = teacher_model(config, run_dir)
    references = layout.load_rationales(run_dir)
    pairs = [pair for pair in layout.load_pairs(run_dir, "train") if pair.pair_id in references]
    if not pairs:
        raise UserError(f"reinforce: {run_dir / layout.RATIONALES} has no rationale of a labelled pair to compare with")
    text_loss = distributed.on_main(partial(_check_texts, config, tokenizer, pairs))
    everyone: list[Figures] = []
    if not distributed.on_main((run_dir / layout.REINFORCED_LORA).exists):
        trainer = _Trainer.load(config, run_dir, model)
        for number in range(section.iterations):
            figures = _iteration(config, run_dir, trainer, tokenizer, number, pairs, references)
            everyone.append(figures)
            if reason := why_to_end(section, everyone):
                if distributed.is_main():
                    print(f"reinforce: ends after iteration {number + 1}: {reason}")
                break
        save_variables(run_dir / layout.REINFORCED_LORA, trainer.load_adapters(_last(directory)))
    everyone = distributed.on_main(partial(_finish, directory))
    first, last = everyone[0], everyone[-1]
    return {
        "iterations": len(everyone),
        "pairs": len(pairs),
        "reward_first": round(first["reward"], 4),
        "reward_last": round(last["reward"], 4),
        "kl_last": round(last["kl"], 4),
        **text_loss,
    }


def why_to_end(section: ReinforceConfig, everyone: Sequence[Figures]) -> str:
    """Why no further iteration is made: collapse, or too far from the reference; empty where there is no reason."""
    last = everyone[-1]
    if not last["groups"]:
        return "all answers to a pair have one reward, for every pair; raise reinforce.samples or reinforce.temperature"
    if last["kl"] > section.max_kl:
        return (
            f"its divergence from the teacher before is {last['kl']:.3f} nats a token, above reinforce.max_kl; lower "
            "optimization.learning_rate or raise reinforce.kl_weight"
        )
    return ""


def _check_texts(config: Config, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> dict[str, int]:
    losses: list[np.ndarray] = []
    _prompts(config, tokenizer, pairs, losses)
    loss: TextLoss = summarize(losses)
    check_teacher_texts(config, "reinforce", loss)
    return loss.counts()


def _prompts(
    config: Config, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], losses: list[np.ndarray] | None = None
) -> list[list[int]]:
    question = teacher_question(config, tokenizer)
    return encode_prompts(
        tokenizer, pairs, config.data.item_fields, config.teacher.prompt_length, *question, losses=losses
    )


# ---- an iteration


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """What all iterations share.

    Attributes:
      model: the decoder.
      mesh: all devices.
      base: the frozen parameters on it.
      reference: the folder of the adapters before the stage.
      teacher: the teacher with those adapters, on this process's devices.
    """

    model: Decoder
    mesh: jax.sharding.Mesh
    base: Params
    reference: Path
    teacher: Teacher

    @classmethod
    def load(cls, config: Config, run_dir: Path, model: Decoder) -> _Trainer:
        before = config.model_copy(update={"reinforce": ReinforceConfig()})
        teacher, mesh = load_teacher(run_dir, config=before), make_mesh(config.mesh)
        # A process that has all devices holds the base once.
        own = {name: x for name, x in teacher.variables.items() if name != "lora"}
        base = own if distributed.process_count() == 1 else load_base(config, model, run_dir, mesh)
        return cls(model, mesh, base, run_dir / layout.lora(before), teacher)

    def load_adapters(self, folder: Path | None) -> Params:
        """Those of an iteration on all devices; None: those before the stage."""
        return self._load(folder, self.mesh)

    def teacher_with(self, folder: Path | None) -> Teacher:
        """The teacher with the adapters of an iteration, on this process's devices."""
        assert self.teacher.mesh is not None
        variables = {**self.teacher.variables, **self._load(folder, self.teacher.mesh)}
        return dataclasses.replace(self.teacher, variables=variables)

    def _load(self, folder: Path | None, mesh: jax.sharding.Mesh) -> Params:
        target = abstract(init_decoder(self.model), mesh, jax.random.key(0), collection="lora")
        return load_variables(self.reference if folder is None else folder / "lora", target)


def _iteration(
    config: Config,
    run_dir: Path,
    trainer: _Trainer,
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    pairs: Sequence[Pair],
    references: Mapping[str, Rationale],
) -> Figures:
    """Draws, rewards and trains, or reads what was measured where that is done."""
    section, folder = config.reinforce, _folder(run_dir / "reinforce", number)
    if distributed.on_main((folder / "figures.json").exists):
        return distributed.on_main(lambda: json.loads((folder / "figures.json").read_text("utf-8")))
    before = _last(run_dir / "reinforce")
    chosen = choose(config, pairs, number)
    drawn = _draw(config, trainer, folder, before, number, chosen)
    parts = {name: np.zeros((len(chosen), section.samples), np.float32) for name in PARTS}
    for row, (pair, answers) in enumerate(zip(chosen, drawn)):
        for column, answer in enumerate(answers):
            each = reward_parts(pair, answer, references[pair.pair_id], config.data.item_fields, config.rules_)
            for name, value in each.items():
                parts[name][row, column] = value
    rewards = total_reward(section, parts)
    rows = _rows(config, tokenizer, chosen, drawn, rewards)
    figures = measure(rewards, parts)
    if rows is not None:
        adapters, size = trainer.load_adapters(before), section.optimization.batch_size
        reference = trainer.load_adapters(None)
        rows["old_log_probs"], rows["reference_log_probs"] = (
            token_log_probs(trainer.model, {**trainer.base, **lora}, rows, size, trainer.mesh)
            for lora in (adapters, reference)
        )
        difference = (rows["old_log_probs"] - rows["reference_log_probs"])[rows["targets_mask"]]
        figures["kl"] = float(difference.mean())
        tx = make_optimizer(section.optimization)
        state = init_state(init_decoder(trainer.model), "lora", trainer.base, tx, trainer.mesh, config.seed + number)
        state = train_language_model(
            trainer.model,
            dataclasses.replace(state, trainable=adapters),
            rows,
            make_objective=policy_objective(section.clip, section.kl_weight),
            optimization=section.optimization,
            mesh=trainer.mesh,
            seed=config.seed + number,
            directory=folder,
            title=f"reinforce {number + 1}/{section.iterations}",
        )
        if not distributed.on_main((folder / "lora").exists):
            save_variables(folder / "lora", state.trainable)
        clear(folder / "checkpoints")
    distributed.on_main(partial(_close, run_dir / "reinforce", number, figures))
    return figures


def choose(config: Config, pairs: Sequence[Pair], number: int) -> list[Pair]:
    """The pairs of an iteration; those of a query follow each other."""
    rng = np.random.default_rng((config.seed, number))
    count = min(len(pairs), config.reinforce.pairs)
    chosen = [pairs[index] for index in np.sort(rng.choice(len(pairs), count, replace=False)).tolist()]
    return [chosen[index] for index in by_query(chosen)]


def _draw(
    config: Config, trainer: _Trainer, folder: Path, before: Path | None, number: int, pairs: Sequence[Pair]
) -> Drawn:
    """The answers to the pairs, the same in every process; each draws a part of them on its own devices."""
    section, processes = config.reinforce, distributed.process_count()
    bounds = [len(pairs) * part // processes for part in range(processes + 1)]
    spans = list(pairwise(bounds))
    paths = [folder / "answers" / f"{start:06d}_{stop:06d}.json" for start, stop in spans]
    if any(distributed.gather(not paths[jax.process_index()].exists())):
        # All processes take part in loading weights.
        teacher, path = trainer.teacher_with(before), paths[jax.process_index()]
        part = list(pairs[slice(*spans[jax.process_index()])])
        sampling = Sampling(temperature=section.temperature, seed=config.seed + 1 + number)
        with pairs_bar(f"reinforce {number + 1}/{section.iterations} (answers)", len(part)) as advance:
            samples = sample(teacher, part, section.samples, sampling, progress=every(section.samples, advance))
        texts = [list(of_pair) for of_pair in zip(*(one.texts for one in samples))]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, texts, indent=None)
    distributed.barrier(f"reinforce: the answers of iteration {number} are drawn")
    texts = [each for path in paths for each in json.loads(path.read_text("utf-8"))]
    dimensions = config.rationale.dimensions if config.teacher.order != "label_only" else ()
    read: Callable[[str], Rationale | ParseFailure] = partial(
        parse_output, dimensions=dimensions, labels=config.labels.names
    )
    return [[read(text) for text in of_pair] for of_pair in texts]


def total_reward(section: ReinforceConfig, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N, S] rewards in [0, 1] from their parts: the mean by the weights of the config."""
    weights = dict(zip(PARTS, (section.label_weight, section.verdict_weight, section.brevity_weight)))
    return np.asarray(sum(weights[name] * parts[name] for name in PARTS)) / sum(weights.values())


def measure(rewards: np.ndarray, parts: Mapping[str, np.ndarray]) -> Figures:
    """The figures of an iteration's answers.

    Returns:
      The mean `reward` and its parts; `spread`, the mean standard deviation of the rewards of a pair; `groups`, the
      pairs whose answers differ in reward, which alone teach; `kl`, for now 0.
    """
    return {
        "reward": float(rewards.mean()),
        **{name: float(each.mean()) for name, each in parts.items()},
        "spread": float(rewards.std(axis=1, ddof=1).mean()),
        "groups": int((np.ptp(rewards, axis=1) > 0).sum()),
        "kl": 0.0,
    }


def _rows(
    config: Config, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], drawn: Drawn, rewards: np.ndarray
) -> dict[str, PyTree] | None:
    """Rows of the answers of the pairs whose rewards differ; None where there are none."""
    section, teacher = config.reinforce, config.teacher
    question = teacher_question(config, tokenizer)
    encoder = AnswerEncoder(tokenizer, teacher.order, teacher.value_length, chat=question.chat)
    advantages = np.asarray(group_advantages(rewards, scale=section.scale_advantages))
    used = [
        (row, column, encoder(answer))
        for row, answers in enumerate(drawn)
        if np.ptp(rewards[row]) > 0
        for column, answer in enumerate(answers)
        if not isinstance(answer, ParseFailure)
    ]
    if not used:
        return None
    prompts = _prompts(config, tokenizer, pairs)
    form = make_form(
        tokenizer,
        config.labels.names,
        config.rationale.dimensions,
        teacher.order,
        teacher.value_length,
        len(tokenizer),
        question.chat,
    )
    # One length for all iterations, so that the step is compiled once.
    longest = max_prompt_length(tokenizer, teacher.prompt_length, *question) + form.longest
    needed = max(len(prompts[row]) + len(answer.ids) - 1 for row, _, answer in used)
    if 0 < section.pack_to < needed:
        raise UserError(
            f"reinforce.pack_to: prompt and answer of a pair take {needed} tokens, a row has {section.pack_to}; make "
            f"it {longest} or more, or 0"
        )
    return policy_rows(
        [prompts[row] for row, _, _ in used],
        [answer for _, _, answer in used],
        [float(advantages[row, column]) for row, column, _ in used],
        tokenizer.pad_token_id,
        section.pack_to or -(-max(longest, needed) // 8) * 8,
    )


# ---- files


def _folder(directory: Path, number: int) -> Path:
    return directory / f"iteration_{number + 1:03d}"


def _close(directory: Path, number: int, figures: Figures) -> None:
    """Writes the figures of an iteration; the adapters before its own are not needed any more."""
    write_json(_folder(directory, number) / "figures.json", figures)
    trained = sorted(directory.glob("iteration_*/lora"))
    for folder in trained[:-1]:
        shutil.rmtree(folder)


def _last(directory: Path) -> Path | None:
    """The folder of the last iteration that is done and has adapters; None before the first."""
    done = [path.parent for path in sorted(directory.glob("iteration_*/figures.json"))]
    return next((folder for folder in reversed(done) if (folder / "lora").exists()), None)


def _finish(directory: Path) -> list[Figures]:
    """Writes rewards.md and returns the figures of all iterations."""
    paths = sorted(directory.glob("iteration_*/figures.json"))
    everyone = [json.loads(path.read_text("utf-8")) for path in paths]
    head = ["iteration", "reward", *PARTS, "spread within a pair", "pairs that teach", "nats a token from the start"]
    rows = [
        [
            str(number),
            *(f"{figures[name]:.3f}" for name in ("reward", *PARTS, "spread")),
            str(figures["groups"]),
            f"{figures['kl']:.4f}",
        ]
        for number, figures in enumerate(everyone, 1)
    ]
    text = "# Rewards of the teacher's answers, before each iteration's training\n\n"
    write_text(directory / "rewards.md", text + "\n".join(markdown_table([head, *rows])) + "\n")
    return everyone

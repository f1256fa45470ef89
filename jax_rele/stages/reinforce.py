"""reinforce: the teacher's adapters trained on rewards of its own answers, in iterations of drawing and training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.annotation.rewards import PARTS, reward_parts
from jax_rele.config import Config, ReinforceConfig
from jax_rele.data import by_query
from jax_rele.data.tokens.policy_rows import policy_rows
from jax_rele.data.tokens.prompts import encode_prompts, max_prompt_length
from jax_rele.data.tokens.text_loss import summarize
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
from jax_rele.runs.questions import Question, teacher_question
from jax_rele.runs.texts import check_teacher_texts
from jax_rele.teacher import Sampling, Teacher, sample
from jax_rele.teacher.form import AnswerForm, drawn_answer, make_form
from jax_rele.teacher.language_model import train_language_model
from jax_rele.teacher.policy import divergence, policy_objective, token_log_probs
from jax_rele.training import abstract, distributed, init_state, make_mesh, make_optimizer
from jax_rele.training.checkpoint import clear, load_variables, save_variables
from jax_rele.types import Pair, Params, PyTree, Rationale

SHARD = 8
"""Pairs whose answers are one file; processes share the files."""
PATIENCE = 3
"""Iterations in a row without a pair whose answers differ in reward after which the stage ends."""

Figures = dict[str, float]
"""What the answers of an iteration show, see `measure`."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One answer as it was drawn.

    Attributes:
      rationale: what it says, or why it does not parse.
      ids, decided: its tokens, and for each whether the model had a choice, see `form.drawn_answer`.
    """

    rationale: Rationale | ParseFailure
    ids: list[int]
    decided: list[bool]


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the weights that the teacher starts from."""
    return teacher_inputs(config)


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the adapters, what each iteration measured, and rewards.md, the curve of the rewards.

    After the last training answers are drawn and measured once more. An interrupted run resumes within its iteration:
    after the answers that are drawn, or after the last checkpoint.
    """
    section, directory = config.reinforce, run_dir / "reinforce"
    model, tokenizer = teacher_model(config, run_dir)
    task = _Task.make(config, tokenizer, model)
    references = layout.load_rationales(run_dir)
    labelled = layout.load_pairs(run_dir, "train")
    pairs = [pair for pair in labelled if pair.pair_id in references]
    if not pairs:
        raise UserError(f"reinforce: {run_dir / layout.RATIONALES} has no rationale of a labelled pair to compare with")
    text_loss = distributed.on_main(partial(_check_texts, task, pairs))
    if not distributed.on_main((run_dir / layout.REINFORCED_LORA).exists):
        devices, everyone = _Devices.load(config, run_dir, model), list[Figures]()
        for number in range(section.iterations + 1):
            everyone.append(_measured(task, devices, directory, number, pairs, references))
            if reason := why_to_end(section, everyone):
                if distributed.is_main():
                    print(f"reinforce: ends after {number} of {section.iterations} iterations: {reason}")
                break
            if number < section.iterations:
                _train(task, devices, directory, number, everyone[-1])
        save_variables(run_dir / layout.REINFORCED_LORA, devices.load_adapters(_trained(directory)))
    everyone = distributed.on_main(partial(_write_curve, directory))
    first, last = everyone[0], everyone[-1]
    if last["reward"] < first["reward"] and distributed.is_main():
        print(
            f"warning: reinforce: the reward fell from {first['reward']:.3f} to {last['reward']:.3f}; lower "
            "reinforce.optimization.learning_rate, or draw more answers (reinforce.pairs, reinforce.samples)"
        )
    return {
        "iterations": len(everyone) - 1,
        "pairs": len(pairs),
        "without_rationale": len(labelled) - len(pairs),
        **{f"reward_{name}": round(each["reward"], 4) for name, each in (("first", first), ("last", last))},
        "kl_last": round(last["kl"], 4),
        **text_loss,
    }


def why_to_end(section: ReinforceConfig, everyone: Sequence[Figures]) -> str:
    """Why there is no further training: collapse, or too far from the start; empty where there is no reason."""
    if len(everyone) >= PATIENCE and not any(each["groups"] for each in everyone[-PATIENCE:]):
        return (
            f"in {PATIENCE} iterations all answers to a pair had one reward, whichever pair; raise reinforce.samples "
            "or reinforce.temperature"
        )
    if everyone[-1]["kl"] > section.max_kl:
        return (
            f"the divergence from the teacher before the stage is {everyone[-1]['kl']:.3f} nats a token, above "
            "reinforce.max_kl; lower reinforce.optimization.learning_rate or raise reinforce.kl_weight"
        )
    return ""


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is asked, and the form of the answers.

    Attributes:
      length: tokens of a packed row, the same in all iterations, so that the step is compiled once.
    """

    config: Config
    tokenizer: PreTrainedTokenizerBase
    question: Question
    form: AnswerForm
    length: int

    @classmethod
    def make(cls, config: Config, tokenizer: PreTrainedTokenizerBase, model: Decoder) -> _Task:
        teacher, question = config.teacher, teacher_question(config, tokenizer)
        dimensions = config.rationale.dimensions
        form = make_form(
            tokenizer,
            config.labels.names,
            dimensions,
            teacher.order,
            teacher.value_length,
            model.config.vocab_size,
            question.chat,
        )
        longest = max_prompt_length(tokenizer, teacher.prompt_length, *question) + form.longest
        if 0 < config.reinforce.pack_to < longest:
            raise UserError(
                f"reinforce.pack_to: prompt and answer can take {longest} tokens, a row has "
                f"{config.reinforce.pack_to}; make it {longest} or more, or 0"
            )
        return cls(config, tokenizer, question, form, config.reinforce.pack_to or -(-longest // 8) * 8)

    def prompts(self, pairs: Sequence[Pair], losses: list[np.ndarray] | None = None) -> list[list[int]]:
        fields, length = self.config.data.item_fields, self.config.teacher.prompt_length
        return encode_prompts(self.tokenizer, pairs, fields, length, *self.question, losses=losses)

    def rows(
        self,
        prompts: Sequence[Sequence[int]],
        drawn: Sequence[Sequence[Drawn]],
        advantages: np.ndarray,
        used: np.ndarray,
    ) -> dict[str, PyTree] | None:
        """Rows of the answers to the prompts that are `used`; None without one."""
        chosen = [(row, column) for row in np.flatnonzero(used).tolist() for column in range(len(drawn[row]))]
        if not chosen:
            return None
        return policy_rows(
            [prompts[row] for row, _ in chosen],
            [drawn[row][column].ids for row, column in chosen],
            [drawn[row][column].decided for row, column in chosen],
            [float(advantages[row, column]) for row, column in chosen],
            self.tokenizer.pad_token_id,
            self.length,
        )


def _check_texts(task: _Task, pairs: Sequence[Pair]) -> dict[str, int]:
    losses: list[np.ndarray] = []
    task.prompts(pairs, losses)
    loss = summarize(losses)
    check_teacher_texts(task.config, "reinforce", loss)
    return loss.counts()


@dataclasses.dataclass(frozen=True)
class _Devices:
    """The weights that all iterations read.

    Attributes:
      mesh: all devices.
      base: the frozen parameters on it.
      start: the folder of the adapters before the stage.
      teacher: the teacher with those adapters, on this process's devices; with several processes it has a base of its
        own there.
    """

    model: Decoder
    mesh: jax.sharding.Mesh
    base: Params
    start: Path
    teacher: Teacher

    @classmethod
    def load(cls, config: Config, run_dir: Path, model: Decoder) -> _Devices:
        before = config.model_copy(update={"reinforce": ReinforceConfig()})
        teacher, mesh = load_teacher(run_dir, config=before), make_mesh(config.mesh)
        own = {name: x for name, x in teacher.variables.items() if name != "lora"}
        base = own if distributed.process_count() == 1 else load_base(config, model, run_dir, mesh)
        return cls(model, mesh, base, run_dir / layout.lora(before), teacher)

    def load_adapters(self, folder: Path | None) -> Params:
        """Those that an iteration trained on all devices; None: those before the stage."""
        return self._load(folder, self.mesh)

    def teacher_with(self, folder: Path | None) -> Teacher:
        """The teacher with the adapters that an iteration trained, on this process's devices."""
        assert self.teacher.mesh is not None
        variables = {**self.teacher.variables, **self._load(folder, self.teacher.mesh)}
        return dataclasses.replace(self.teacher, variables=variables)

    def log_probs(self, adapters: Params, rows: Mapping[str, PyTree], batch_size: int) -> np.ndarray:
        """[rows, length] of the tokens that count."""
        return token_log_probs(self.model, {**self.base, **adapters}, rows, batch_size, self.mesh)

    def _load(self, folder: Path | None, mesh: jax.sharding.Mesh) -> Params:
        target = abstract(init_decoder(self.model), mesh, jax.random.key(0), collection="lora")
        return load_variables(self.start if folder is None else folder / "lora", target)


# ---- drawing


def _measured(
    task: _Task,
    devices: _Devices,
    directory: Path,
    number: int,
    pairs: Sequence[Pair],
    references: Mapping[str, Rationale],
) -> Figures:
    """Draws answers and measures them, or reads what was measured; writes the rows to train on."""
    config, folder = task.config, _folder(directory, number)
    if distributed.on_main((folder / "figures.json").exists):
        return distributed.on_main(lambda: json.loads((folder / "figures.json").read_text("utf-8")))
    trained = _trained(directory)
    chosen = choose(config, pairs, number)
    drawn = _draw(task, devices, folder, trained, number, chosen)
    parts = {name: np.zeros((len(chosen), config.reinforce.samples), np.float32) for name in PARTS}
    for row, (pair, answers) in enumerate(zip(chosen, drawn)):
        for column, answer in enumerate(answers):
            fields, reference = config.data.item_fields, references[pair.pair_id]
            for name, value in reward_parts(pair, answer.rationale, reference, fields, config.rules_).items():
                parts[name][row, column] = value
    rewards = total_reward(config.reinforce, parts)
    differ = np.ptp(rewards, axis=1) > 0
    advantages = np.asarray(group_advantages(rewards, scale=config.reinforce.scale_advantages))
    ours, start = devices.load_adapters(trained), devices.load_adapters(None)
    optimization, pulls, prompts = config.reinforce.optimization, [], task.prompts(chosen)
    for used in (differ, ~differ):
        rows = task.rows(prompts, drawn, advantages, used)
        if rows is None:
            continue
        for name, adapters in (("old_log_probs", ours), ("reference_log_probs", start)):
            rows[name] = devices.log_probs(adapters, rows, optimization.batch_size // optimization.micro_batches)
        pulls.append(divergence(rows["old_log_probs"], rows["reference_log_probs"], rows["targets_mask"]))
        if used is differ:
            distributed.on_main(partial(_save_rows, folder / "rows.npz", rows))
    figures = measure(rewards, parts) | {"kl": sum(total for total, _ in pulls) / sum(count for _, count in pulls)}
    distributed.on_main(partial(write_json, folder / "figures.json", figures))
    return figures


def choose(config: Config, pairs: Sequence[Pair], number: int) -> list[Pair]:
    """The pairs of an iteration; those of a query follow each other."""
    rng = np.random.default_rng((config.seed, number))
    count = min(len(pairs), config.reinforce.pairs)
    chosen = [pairs[index] for index in np.sort(rng.choice(len(pairs), count, replace=False)).tolist()]
    return [chosen[index] for index in by_query(chosen)]


def _draw(
    task: _Task, devices: _Devices, folder: Path, trained: Path | None, number: int, pairs: Sequence[Pair]
) -> list[list[Drawn]]:
    """The answers to the pairs, the same in every process; each draws those of its own files on its own devices."""
    config, section = task.config, task.config.reinforce
    shards = [list(pairs[start : start + SHARD]) for start in range(0, len(pairs), SHARD)]
    paths = [folder / "answers" / f"{shard:04d}.json" for shard in range(len(shards))]
    own = range(len(shards))[jax.process_index() :: jax.process_count()]
    left = [shard for shard in own if not paths[shard].exists()]
    # All processes take part in loading weights, those without a file too.
    if any(distributed.gather(bool(left))):
        teacher = devices.teacher_with(trained)
        asked = [pair for shard in left for pair in shards[shard]]
        sampling = Sampling(temperature=section.temperature, seed=(config.seed + 1 + number) % 2**32)
        with pairs_bar(f"reinforce {number + 1}/{section.iterations} (answers)", len(asked)) as advance:
            samples = (
                sample(teacher, asked, section.samples, sampling, progress=every(section.samples, advance))
                if asked
                else ()
            )
        answers = zip(*(zip(one.texts, one.slots) for one in samples))
        for shard in left:
            paths[shard].parent.mkdir(parents=True, exist_ok=True)
            write_json(paths[shard], [next(answers) for _ in shards[shard]], indent=None)
    distributed.barrier(f"reinforce: the answers of iteration {number} are drawn")
    order, labels = config.teacher.order, config.labels.names
    dimensions = config.rationale.dimensions if order != "label_only" else ()

    def read(text: str, slots: list[list[int]]) -> Drawn:
        rationale = parse_output(text, dimensions=dimensions, labels=labels)
        label = None if isinstance(rationale, ParseFailure) else rationale.label
        # Guided decoding writes a known label; without one there is nothing to reward or to train on.
        ids, decided = drawn_answer(task.form, order, slots, labels.index(label) if label in labels else 0)
        return Drawn(rationale, ids, decided)

    stored = [of_pair for path in paths for of_pair in json.loads(path.read_text("utf-8"))]
    return [[read(*answer) for answer in of_pair] for of_pair in stored]


def total_reward(section: ReinforceConfig, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N, S] rewards in [0, 1] from their parts: the mean by the weights of the config."""
    weights = dict(zip(PARTS, (section.label_weight, section.verdict_weight, section.brevity_weight)))
    return np.asarray(sum(weights[name] * parts[name] for name in PARTS)) / sum(weights.values())


def measure(rewards: np.ndarray, parts: Mapping[str, np.ndarray]) -> Figures:
    """The figures of [N, S] rewards and their parts.

    Returns:
      The mean `reward` and its parts; `spread`, the mean standard deviation of the rewards of a pair; and `groups`, how
      many pairs have answers that differ in reward, which alone teach.
    """
    return {
        "reward": float(rewards.mean()),
        **{name: float(each.mean()) for name, each in parts.items()},
        "spread": float(rewards.std(axis=1, ddof=1).mean()),
        "groups": int((np.ptp(rewards, axis=1) > 0).sum()),
    }


# ---- training


def _train(task: _Task, devices: _Devices, directory: Path, number: int, figures: Figures) -> None:
    """Trains on the answers of an iteration, unless that is done or none of them teaches."""
    config, section, folder = task.config, task.config.reinforce, _folder(directory, number)
    if not figures["groups"]:
        return
    trained = _trained(directory)
    # The adapters of iterations before the last one that is trained are removed.
    if trained is None or trained.name < folder.name:
        rows = _load_rows(folder / "rows.npz")
        tx, seed = make_optimizer(section.optimization), (config.seed + number) % 2**32
        state = init_state(init_decoder(devices.model), "lora", devices.base, tx, devices.mesh, seed)
        state = train_language_model(
            devices.model,
            dataclasses.replace(state, trainable=devices.load_adapters(trained)),
            rows,
            make_objective=policy_objective(section.clip, section.kl_weight),
            optimization=section.optimization,
            mesh=devices.mesh,
            seed=seed,
            directory=folder,
            title=f"reinforce {number + 1}/{section.iterations}",
        )
        save_variables(folder / "lora", state.trainable)
    clear(folder / "checkpoints")
    distributed.on_main(partial(_drop_older, directory, number))


# ---- files


def _folder(directory: Path, number: int) -> Path:
    return directory / f"iteration_{number + 1:06d}"


def _trained(directory: Path) -> Path | None:
    """The last iteration's folder that has adapters, the same in every process; None before the first."""
    name = distributed.on_main(
        lambda: max((path.parent.name for path in directory.glob("iteration_*/lora")), default="")
    )
    return directory / name if name else None


def _drop_older(directory: Path, number: int) -> None:
    """Removes what the iterations before do not need any more."""
    for folder in (_folder(directory, earlier) for earlier in range(number)):
        (folder / "rows.npz").unlink(missing_ok=True)
        if (folder / "lora").exists():
            shutil.rmtree(folder / "lora")


def _save_rows(path: Path, rows: Mapping[str, PyTree]) -> None:
    flat = {f"inputs/{name}": x for name, x in rows["inputs"].items()}
    flat |= {name: x for name, x in rows.items() if name != "inputs"}
    with path.with_suffix(".part").open("wb") as file:
        np.savez(file, **flat)
    path.with_suffix(".part").rename(path)


def _load_rows(path: Path) -> dict[str, PyTree]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    inputs = {name.removeprefix("inputs/"): x for name, x in arrays.items() if name.startswith("inputs/")}
    return {"inputs": inputs, **{name: x for name, x in arrays.items() if not name.startswith("inputs/")}}


def _write_curve(directory: Path) -> list[Figures]:
    """Writes rewards.md and returns the figures of all iterations."""
    paths = sorted(directory.glob("iteration_*/figures.json"))
    everyone = [json.loads(path.read_text("utf-8")) for path in paths]
    head = ["trained", "reward", *PARTS, "spread within a pair", "pairs that teach", "nats a token from the start"]
    rows = [
        [
            f"{number} times",
            *(f"{figures[name]:.3f}" for name in ("reward", *PARTS, "spread")),
            str(figures["groups"]),
            f"{figures['kl']:.4f}",
        ]
        for number, figures in enumerate(everyone)
    ]
    text = "# Rewards of the teacher's answers to training pairs\n\n"
    write_text(directory / "rewards.md", text + "\n".join(markdown_table([head, *rows])) + "\n")
    return everyone

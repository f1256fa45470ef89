"""The commands that read a config, one function each: a run, its stages, comparisons, search, plans.

What a command needs is imported where it runs, so that help comes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jax_rele.cli.parser import argument, command, positive_number
from jax_rele.names import PLANNED_STEPS
from jax_rele.runs.stages import STAGES


def _run_stages(config: str, overrides: Sequence[str], names: Sequence[str]) -> None:
    from jax_rele.training import distributed, preemption

    # Joined before anything else, so that a mistake which one process alone finds ends the others too.
    with preemption.end_on_sigterm(), distributed.join_processes():
        from jax_rele.cli.overrides import read_config
        from jax_rele.runs import pipeline

        pipeline.run(read_config(config, overrides), names)


@command(reads_config=True)
def run(config: str, overrides: Sequence[str]) -> None:
    """All stages of a config, in order.

    Finished stages are skipped; the same command resumes an interrupted run.
    """
    _run_stages(config, overrides, tuple(STAGES))


def _add_stage(name: str, text: str) -> None:
    def run_stage(config: str, overrides: Sequence[str]) -> None:
        _run_stages(config, overrides, (name,))

    run_stage.__doc__ = f"{text[0].upper()}{text[1:]}."
    command(name=name, reads_config=True)(run_stage)


for _stage in STAGES.values():
    _add_stage(_stage.name, _stage.help)


@command(
    argument("pair_id", nargs="?", default="", metavar="PAIR_ID", help="a labelled training pair; the first"),
    name="annotate show-prompt",
    reads_config=True,
)
def show_prompt(config: str, pair_id: str, overrides: Sequence[str]) -> None:
    """What a chat model is asked about a pair, and the schema of its answer."""
    from jax_rele.cli import annotation
    from jax_rele.cli.overrides import read_config

    annotation.show_prompt(read_config(config, overrides), pair_id)


@command(name="annotate work", reads_config=True)
def annotate_work(config: str, overrides: Sequence[str]) -> None:
    """Ask for answers beside other processes that do; `annotate` then decides."""
    from jax_rele.cli import annotation
    from jax_rele.cli.overrides import read_config

    annotation.annotate_worker(read_config(config, overrides))


@command(
    argument("endpoint", metavar="ENDPOINT", help="its name in annotate.endpoints"),
    argument("file", metavar="FILE", help="JSONL file to write; large batches become several files"),
    name="annotate batch write",
    reads_config=True,
)
def write_batch(config: str, endpoint: str, file: str, overrides: Sequence[str]) -> None:
    """Write the requests that have no answer yet, for an offline batch."""
    from jax_rele.cli import annotation
    from jax_rele.cli.overrides import read_config

    annotation.write_batch(read_config(config, overrides), endpoint, file)


@command(argument("files", nargs="+", metavar="FILE", help="results"), name="annotate batch read", reads_config=True)
def read_batch(config: str, files: Sequence[str], overrides: Sequence[str]) -> None:
    """Store the answers of an offline batch."""
    from jax_rele.cli import annotation
    from jax_rele.cli.overrides import read_config

    annotation.read_batch(read_config(config, overrides), files)


@command(
    argument("--recipes", nargs="+", metavar="RECIPE", help="in place of distill.recipes"),
    argument("--students", nargs="+", metavar="STUDENT", help="in place of distill.students"),
    argument("--seeds", type=positive_number, default=5, metavar="N", help="number of training seeds; 5"),
    argument("--reference", metavar="RECIPE", help="the recipe that the others are compared with; label_only"),
    argument("--labelled", nargs="+", type=int, default=(), metavar="N", help="numbers of labelled pairs, for a curve"),
    argument(
        "--teacher-labelled", nargs="+", type=int, default=(), metavar="N", help="numbers of unlabelled pairs, likewise"
    ),
    argument("--folds", type=int, metavar="K", help="cross-validation in K folds of queries, in place of the splits"),
    reads_config=True,
)
def compare(
    config: str,
    recipes: Sequence[str] | None,
    students: Sequence[str] | None,
    seeds: int,
    reference: str | None,
    labelled: Sequence[int],
    teacher_labelled: Sequence[int],
    folds: int | None,
    overrides: Sequence[str],
) -> None:
    """Recipes side by side, over several seeds.

    Trains every student by every recipe with every seed and compares them on the evaluated split; resumable. With
    --folds every labelled pair is judged once, by models and a teacher that saw no pair of its query.
    """
    from jax_rele.cli.overrides import read_config
    from jax_rele.compare import command as comparing
    from jax_rele.training import preemption

    selected = {"--distill.recipes": recipes, "--distill.students": students}
    options = [word for option, values in selected.items() if values for word in (option, *values)]
    settings = read_config(config, [*options, *overrides])
    default = "label_only" if "label_only" in settings.distill.recipes else settings.distill.recipes[0]
    with preemption.end_on_sigterm():
        comparing.run(
            settings,
            seeds=seeds,
            labelled=labelled,
            teacher_labelled=teacher_labelled,
            reference=reference or default,
            folds=folds,
        )


@command(
    argument("--trials", type=positive_number, required=True, metavar="N", help="trials, with those that have run"),
    argument("--student", metavar="STUDENT", help="which student; the first of distill.students"),
    argument("--recipe", metavar="RECIPE", help="recipe or objective; mkd, or the last of distill.recipes"),
    argument("--seeds", type=positive_number, default=2, metavar="N", help="training seeds of a trial; 2"),
    argument("--metric", default="auc", metavar="METRIC", help="what is to become better: auc, log_loss, ...; auc"),
    reads_config=True,
)
def tune(
    config: str,
    trials: int,
    student: str | None,
    recipe: str | None,
    seeds: int,
    metric: str,
    overrides: Sequence[str],
) -> None:
    """Search term weights, temperatures and learning rate of a student's recipe.

    By Optuna, on the validation split alone; resumable. Needs the extra `tune`.
    """
    from jax_rele.cli.overrides import read_config
    from jax_rele.runs.load import main_recipe
    from jax_rele.training import preemption
    from jax_rele.tune import command as tuning

    settings = read_config(config, overrides)
    with preemption.end_on_sigterm():
        tuning.run(
            settings,
            student or settings.distill.students[0],
            recipe or main_recipe(settings),
            trials=trials,
            seeds=seeds,
            metric=metric,
        )


@command(
    argument("--rounds", type=positive_number, default=3, metavar="N", help="most rounds; 3"),
    name="rounds",
    reads_config=True,
)
def train_rounds(config: str, rounds: int, overrides: Sequence[str]) -> None:
    """Train a teacher again on what the one before explains.

    In each round the teacher before explains the unlabelled pairs; those on which its samples agree and that stand the
    checks are learnt from beside the labelled ones, and students are trained. Ends where the validation pairs show no
    gain; resumable.
    """
    from jax_rele.cli.overrides import read_config
    from jax_rele.rounds import command as training_rounds
    from jax_rele.training import preemption

    settings = read_config(config, overrides)
    with preemption.end_on_sigterm():
        training_rounds.run(settings, rounds=rounds)


@command(argument("file", metavar="FILE", help="JSONL or Parquet file of signals"), reads_config=True)
def check_signals(config: str, file: str, overrides: Sequence[str]) -> None:
    """Check a file of another teacher's signals against the pairs of a run that has finished prepare.

    docs/signals.md describes the file.
    """
    from jax_rele.cli import signals
    from jax_rele.cli.overrides import read_config

    signals.check_signals(read_config(config, overrides), file)


@command(
    argument("--topology", required=True, help="e.g. v5e:4x4, v5p:2x2x2, 16xv5e:16x16 (slices), gpu:8xH100"),
    argument(
        "--steps",
        nargs="+",
        choices=PLANNED_STEPS,
        default=PLANNED_STEPS,
        metavar="STEP",
        help=f"which steps, of {', '.join(PLANNED_STEPS)}; by default all",
    ),
    argument("--json", type=Path, metavar="FILE", help="file to write the plan to as well"),
    reads_config=True,
)
def plan(config: str, topology: str, steps: Sequence[str], json: Path | None, overrides: Sequence[str]) -> None:
    """The cost of every step on a TPU slice or on GPUs that are not here.

    Compiles every step of a run for a topology; prints memory, operations, communication and time.
    """
    from jax_rele.cli.overrides import read_config
    from jax_rele.plan import command as planning

    planning.plan(config, read_config(config, overrides), topology, names=steps, json_path=json)

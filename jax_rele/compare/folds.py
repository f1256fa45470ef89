"""Cross-validation by query: a run for each fold, in which that fold is the test split."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jax_rele.compare.trainings import Point, resolve
from jax_rele.config import Config
from jax_rele.data import PairTable
from jax_rele.errors import UserError
from jax_rele.runs import layout, pipeline


def folds_dir(config: Config, count: int) -> Path:
    """The folder of a comparison in so many folds."""
    return config.run_dir / "compare" / f"{count}_folds"


def fold_configs(config: Config, count: int) -> list[Config]:
    """The config of each fold's run, `fold_1` to `fold_K` in `folds_dir`.

    They differ from the run's own in `data.splits.fold`, and share its caches and the answers of chat models.

    Raises:
      UserError: fewer than two folds, or a config for which folds have no meaning.
    """
    if count < 2:
        raise UserError(f"--folds: {count} is too few to train on some and test on another; give 2 or more")
    if config.data.splits.fold is not None:
        raise UserError("data.splits.fold: is one fold's, and --folds runs all of them; leave it out")
    if config.evaluate.split != "test":
        raise UserError(f"evaluate.split: --folds tests every pair once; set it to test, got {config.evaluate.split}")
    folder = folds_dir(config, count)

    def of_fold(number: int) -> Config:
        splits = config.data.splits.model_copy(update={"fold": (number, count)})
        return config.model_copy(
            update={
                "name": f"fold_{number}",
                "run_root": str(folder),
                "cache_dir": str(config.cache),
                "data": config.data.model_copy(update={"splits": splits}),
                "annotate": config.annotate.model_copy(update={"store": str(config.answers)}),
            }
        )

    return [of_fold(number) for number in range(1, count + 1)]


def prepare_folds(configs: Sequence[Config], points: Sequence[Point], say: Callable[[str], None]) -> None:
    """Divides the pairs of every fold, and looks for what would end a later fold before anything is trained.

    Raises:
      UserError: the pairs cannot be divided so, a fold has fewer training pairs than a point asks for, or its
        training or test pairs hold one class of the binary view.
    """
    count = len(configs)
    for number, config in enumerate(configs, start=1):
        with naming_fold(number, count):
            pipeline.run(config, ("prepare",), say=fold_lines(number, count, say), whole=False)
    for number, config in enumerate(configs, start=1):
        train, test = (layout.load_pairs(config.run_dir, split) for split in ("train", "test"))
        with naming_fold(number, count):
            resolve(points, len(train), len(PairTable(config.run_dir / layout.UNLABELLED)))
            for split, pairs in (("training", train), ("test", test)):
                _check_classes(config, split, {pair.label for pair in pairs})


def _check_classes(config: Config, split: str, labels: Collection[str | None]) -> None:
    positive = config.labels.positive
    for kind, n_labels in (
        ("positive", len(set(labels) & set(positive))),
        ("negative", len(set(labels) - set(positive))),
    ):
        if not n_labels:
            raise UserError(
                f"{config.data.path}: its {split} pairs hold no {kind} one (labels.positive: {', '.join(positive)}), "
                "which auc needs; ask for fewer folds, add pairs, or change `seed`"
            )


@contextmanager
def naming_fold(number: int, count: int) -> Iterator[None]:
    """Lets an error name the fold that it is of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"fold {number} of {count}: {error}") from None


def fold_lines(number: int, count: int, say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` for the lines of one fold."""
    return lambda line: say(f"fold {number}/{count}: {line}")

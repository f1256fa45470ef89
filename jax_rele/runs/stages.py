"""The one table of stages, in order. A stage's module is imported when it runs, so the table is cheap to read."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
      help: one line for the command line.
      needs: earlier stages whose artefacts it reads.
      reads: paths of the config that change what it writes.
      all_processes: whether every process of a run takes part; otherwise process 0 runs it while the others wait.
      makes_teacher: whether it makes our own teacher; such a stage is skipped where `score.signals` replaces it.
    """

    name: str
    help: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    all_processes: bool = False
    makes_teacher: bool = False

    @property
    def module(self) -> ModuleType:
        """The module with `run(config, run_dir) -> counts` and optionally `external_inputs(config)`."""
        return importlib.import_module(f"jax_rele.stages.{self.name}")


_ANNOTATE_FIELDS = (
    *("annotator", "unlabelled", "teacher_run", "prompt", "definitions", "dimension_definitions", "examples", "fields"),
    *("reasoning", "endpoints", "weights", "min_vote_fraction", "gold_filter", "label_rules", "reviews"),
    "injection_pairs",
)

_QUESTION = ("teacher", "annotate.definitions", "annotate.dimension_definitions")
"""What the teacher's prompts are made of."""

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            "read, check and split the pairs; train the teacher's tokenizer",
            needs=(),
            reads=(*("seed", "labels", "data", "rationale.dimensions", "teacher.init", "teacher.random.vocab_size"),),
        ),
        Stage(
            "annotate",
            "write rationales for the labelled pairs",
            needs=("prepare",),
            reads=("seed", "labels", "rationale", *(f"annotate.{field}" for field in _ANNOTATE_FIELDS)),
            makes_teacher=True,
        ),
        Stage(
            "adapt",
            "train the teacher's base on catalogue text and crossed pairs",
            needs=("prepare", "annotate"),
            reads=("seed", "labels", "data", "rationale", *_QUESTION, "adapt"),
            all_processes=True,
            makes_teacher=True,
        ),
        Stage(
            "finetune",
            "LoRA fine-tuning of the teacher on the rationales",
            needs=("prepare", "annotate", "adapt"),
            reads=(
                *("seed", "labels", "data", "rationale", "annotate.annotator", "annotate.unlabelled", *_QUESTION),
                *("adapt.enabled", "finetune"),
            ),
            all_processes=True,
            makes_teacher=True,
        ),
        Stage(
            "score",
            "the teacher's signals for labelled and unlabelled pairs",
            needs=("prepare", "adapt", "finetune"),
            reads=("seed", "labels", "data", "rationale", *_QUESTION, "adapt.enabled", "score"),
            all_processes=True,
        ),
        Stage(
            "distill",
            "train the students",
            needs=("prepare", "score"),
            reads=("seed", "labels", "data", "rationale", "student", "distill"),
            all_processes=True,
        ),
        Stage(
            "evaluate",
            "figures and report",
            needs=("prepare", "annotate", "adapt", "finetune", "score", "distill"),
            reads=(
                *("seed", "labels", "data", "rationale", *_QUESTION, "adapt.enabled", "score", "student", "distill"),
                "evaluate",
            ),
        ),
    )
}

"""The one table of stages, in order. A stage's module is imported when it runs, so the table is cheap to read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_rele.config import Config

Paths = tuple[str, ...]

_TRAINED = ("adapt", "finetune", "prefer", "reinforce", "distill")

UNHASHED: Paths = (
    *("name", "run_root", "cache_dir", "mesh", "teacher.attention", "teacher.remat", "score.batch_size"),
    *("finetune.evaluate_every", "distill.term_gradients", "data.text_loss"),
    *(f"{stage}.optimization.{field}" for stage in _TRAINED for field in ("checkpoint_every", "log_every")),
    *(f"annotate.{field}" for field in ("store", "budget", "max_attempts", "allow_pending")),
    *(f"annotate.endpoints.*.{field}" for field in ("base_url", "key_variable", "concurrency", "timeout")),
    *(f"annotate.endpoints.*.{field}" for field in ("input_price", "output_price")),
)
"""Fields that stages may read and on which no result depends but by rounding, only where it is computed, how fast, at
what price and what is logged of it: a run may move, and resume on other devices or with a larger budget. `*` stands for
any entry of a list."""


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
      help: one line for the command line.
      needs: of a config, the earlier stages whose artefacts it reads.
      reads: of a config, the paths that it reads and that change what it writes, beside those in `UNHASHED`.
      all_processes: whether every process of a run takes part; otherwise process 0 runs it while the others wait.
      makes_teacher: whether it makes our own teacher; such a stage is skipped where `score.signals` replaces it.
      optional: whether it runs only where `NAME.enabled` is true.
    """

    name: str
    help: str
    needs: Callable[[Config], Paths]
    reads: Callable[[Config], Paths]
    all_processes: bool = False
    makes_teacher: bool = False
    optional: bool = False

    @property
    def module(self) -> ModuleType:
        """The module with `run(config, run_dir) -> counts` and `external_inputs(config)`, hashes of outside content."""
        return importlib.import_module(f"jax_rele.stages.{self.name}")


def _fields(config: Config, section: str, without: Collection[str] = ()) -> Paths:
    """The paths of a section's fields but some."""
    fields = type(attrgetter(section)(config)).model_fields
    return tuple(f"{section}.{field}" for field in fields if field not in without)


_SCHEMA = ("labels.names", "labels.gains", "labels.positive")
_RECIPES = ("distill.students", "distill.recipes", "distill.objectives", "distill.temperature")
_SAMPLING = ("seed", "score.samples", "score.temperature")
_OWN_TEACHER = {"samples", "temperature", "rationale"}
"""Fields of `score` that only a teacher of the run's own reads."""
_CHAT = ("prompt", "definitions", "dimension_definitions", "examples", "reasoning", "endpoints", "injection_pairs")


def _decoder(config: Config, without: Collection[str] = ("vocab_size",)) -> Paths:
    """What the decoder is built from; its adapters and tokenizer apart."""
    shape = _fields(config, "teacher.random", without) if config.teacher.init == "random" else ()
    return ("teacher.init", "teacher.dtype", *shape)


def _rules(config: Config) -> Paths:
    """The business rules."""
    return ("rules",) if config.rules else ()


def _prompt(config: Config) -> Paths:
    """What prompts and answers are made of."""
    own = tuple(f"teacher.{name}" for name in ("instructions", "chat_template", "prompt_length", "value_length"))
    teacher = config.teacher
    # Only the tokenizer of weights has a template, and only the default instructions define labels and dimensions.
    defined = teacher.init != "random" and teacher.chat_template == "auto" and not teacher.instructions.strip()
    definitions = ("annotate.definitions", "annotate.dimension_definitions", *_rules(config)) if defined else ()
    return ("labels.names", "rationale.dimensions", "data.item_fields", *own, *definitions)


def _teacher(config: Config) -> Paths:
    """What a fine-tuned teacher is built from, and how it reads and writes."""
    own = _fields(config, "teacher", {"init", "dtype", "random", "perspectives"})
    return (*dict.fromkeys((*_decoder(config), *own, *_prompt(config), *_perspectives(config))), "adapt.enabled")


def _perspectives(config: Config) -> Paths:
    """Further kinds of answer of the teacher, and what they depend on."""
    further = config.teacher.perspectives
    rules = _rules(config) if any(each.rules for each in further.values()) else ()
    return ("teacher.perspectives", *rules) if further else ()


def _rationale_source(config: Config) -> Paths:
    """Whether the teacher reads annotated rationales instead of writing its own, and what they depend on."""
    if config.score.rationale == "written":
        return ("score.rationale",)
    return ("score.rationale", "annotate.annotator", "rationale.tag_map")


def _students(config: Config, without: Collection[str] = ()) -> Paths:
    """What the students are built from, and how they read."""
    apart = {"random", "cross_encoder", "two_tower"}
    shape = _fields(config, "student.random", without) if config.student.init == "random" else ()
    heads = tuple(f"student.{name}" for name in config.distill.students)
    return (*_fields(config, "student", apart), *shape, *heads, "data.item_fields", "rationale.dimensions")


def _prepare(config: Config) -> Paths:
    return (
        "seed",
        "labels.names",
        "labels.aliases",
        *_fields(config, "data", {"item_fields", "tail_max_frequency", "text_loss"}),
    )


def _annotate(config: Config) -> Paths:
    if config.annotate.annotator == "rules":
        return ("annotate.annotator", "annotate.unlabelled", "rationale")
    of_teacher = {"teacher_run", "teacher_samples", "teacher_temperature", "reuse_labelled"}
    without = of_teacher if config.annotate.annotator == "llm" else {*_CHAT, "fields"}
    if config.annotate.teacher_samples == 1:
        without.add("teacher_temperature")
    return ("seed", *_SCHEMA, "rationale.dimensions", *_rules(config), *_fields(config, "annotate", without))


def _adapt(config: Config) -> Paths:
    tokenizer = ("labels.names", "teacher.init", "adapt.enabled")
    if not config.adapt.enabled:
        return tokenizer
    candidates = tuple(f"data.candidates.{name}" for name in ("bm25", "same_category", "same_brand"))
    own = _fields(config, "adapt", {"enabled"})
    # Where adapters are decides which random numbers the base gets.
    return (*tokenizer, "seed", *_decoder(config, ()), "teacher.lora", *_prompt(config), *candidates, "rationale", *own)


def _finetune(config: Config) -> Paths:
    own = (*_fields(config, "finetune", {"selection"}), *_selection(config))
    return ("seed", "labels.names", "annotate.annotator", "annotate.unlabelled", *own, *_teacher(config))


def _selection(config: Config) -> Paths:
    """What decides which labelled pairs the teacher learns from, where that is not all of them."""
    selection = config.finetune.selection
    files = tuple(name for name in ("wrong_by", "right_by", "undisputed_by") if getattr(selection, name))
    fields = (*files, "dispute") if selection.undisputed_by else files
    return (*(f"finetune.selection.{name}" for name in fields), *(_SCHEMA[1:] if files else ()))


def _prefer(config: Config) -> Paths:
    sampling = ("samples", "temperature", "max_pairs")
    unread = {"samples": ("path",), "annotators": ("path", *sampling), "file": sampling}
    own = _fields(config, "prefer", ("enabled", *unread[config.prefer.source]))
    fold = ("data.splits.fold",) if config.prefer.source == "file" else ()
    compared = () if config.prefer.source == "file" else _rules(config)
    return ("seed", "labels.names", *fold, *own, *compared, *_teacher(config))


def _reinforce(config: Config) -> Paths:
    own = _fields(config, "reinforce", {"enabled"})
    return ("seed", "labels.names", *own, *_rules(config), *_teacher(config), *_preferred(config))


def _preferred(config: Config) -> Paths:
    """What tells a teacher that is trained on preferences from one that is not."""
    return ("prefer.enabled",) if config.prefer.enabled else ()


def _trained_further(config: Config) -> Paths:
    """What tells a teacher that is trained on preferences or rewards from one that is not."""
    return (*_preferred(config), *(("reinforce.enabled",) if config.reinforce.enabled else ()))


def _score(config: Config) -> Paths:
    if config.score.signals:
        own = _fields(config, "score", _OWN_TEACHER)
        return ("labels.names", "labels.positive", "rationale.dimensions", "data.item_fields", *own)
    own = (*_SAMPLING, *_rationale_source(config), *_teacher(config), *_trained_further(config))
    return ("labels.names", "rationale.dimensions", "score.signals", *own)


def _teacher_needs(config: Config) -> Paths:
    """The stages whose results a judging teacher reads; rules write their rationales when they are asked."""
    reads_annotations = config.score.rationale == "annotated" and config.annotate.annotator != "rules"
    return (*(("annotate",) if reads_annotations else ()), "adapt", teacher_stage(config))


def teacher_stage(config: Config) -> str:
    """The stage that makes the adapters of a run's teacher."""
    return "reinforce" if config.reinforce.enabled else _before_reinforce(config)


def _before_reinforce(config: Config) -> str:
    return "prefer" if config.prefer.enabled else "finetune"


def _distill(config: Config) -> Paths:
    return ("seed", *_SCHEMA, *_students(config), *_fields(config, "distill"))


def _evaluate(config: Config) -> Paths:
    teacher = (*_SAMPLING, *_rationale_source(config), *_teacher(config), *_trained_further(config))
    own = () if config.score.signals else teacher
    evaluated = ("seed", *_SCHEMA, "labels.gain_maps", "data.tail_max_frequency", "rationale.tag_map", "evaluate")
    return (*evaluated, *_rules(config), "score.signals", *own, *_students(config, ("vocab_size",)), *_RECIPES)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            "read, check and split the pairs",
            needs=lambda config: (),
            reads=_prepare,
        ),
        Stage(
            "annotate",
            "write rationales for the labelled pairs",
            needs=lambda config: ("prepare",),
            reads=_annotate,
            makes_teacher=True,
        ),
        Stage(
            "adapt",
            "train the teacher's tokenizer, and its base on catalogue text and crossed pairs",
            needs=lambda config: ("prepare",) if config.adapt.enabled else (),
            reads=_adapt,
            all_processes=True,
            makes_teacher=True,
        ),
        Stage(
            "finetune",
            "LoRA fine-tuning of the teacher on the rationales",
            needs=lambda config: ("prepare", "annotate", "adapt"),
            reads=_finetune,
            all_processes=True,
            makes_teacher=True,
        ),
        Stage(
            "prefer",
            "train the teacher on which of two rationales is better",
            needs=lambda config: (
                "prepare",
                *(() if config.prefer.source == "file" else ("annotate",)),
                "adapt",
                "finetune",
            ),
            reads=_prefer,
            all_processes=True,
            makes_teacher=True,
            optional=True,
        ),
        Stage(
            "reinforce",
            "train the teacher on rewards of its own answers",
            needs=lambda config: ("prepare", "annotate", "adapt", _before_reinforce(config)),
            reads=_reinforce,
            all_processes=True,
            makes_teacher=True,
            optional=True,
        ),
        Stage(
            "score",
            "the teacher's signals for labelled and unlabelled pairs",
            needs=lambda config: ("prepare", *(() if config.score.signals else _teacher_needs(config))),
            reads=_score,
            all_processes=True,
        ),
        Stage(
            "distill",
            "train the students",
            needs=lambda config: ("prepare", "score"),
            reads=_distill,
            all_processes=True,
        ),
        Stage(
            "evaluate",
            "figures and report",
            needs=lambda config: (
                "prepare",
                *(("score",) if config.score.signals else _teacher_needs(config)),
                "distill",
            ),
            reads=_evaluate,
        ),
    )
}

"""Which students are trained by which recipes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jax_rele.config.base import Name, NonNegative, Positive, Section
from jax_rele.config.optimization import OptimizationConfig
from jax_rele.names import RECIPES, STUDENTS, StudentName


class ScheduleConfig(Section):
    """A number that changes linearly over the steps, then stays constant."""

    start: float
    """Value at step 0."""
    end: float
    """Value from step `steps` on."""
    steps: Positive
    """Steps between the two."""


class TermConfig(Section):
    """One term of an objective."""

    loss: str = ""
    """A loss of jax_rele.losses, or your own: `package.module:function` or `file.py:function`. Empty: that of the
    base recipe."""
    weight: float | ScheduleConfig | None = None
    """A number or a schedule; 0 removes the term. Null: that of the base recipe, 1 for a term that it does not have."""
    temperature: float | ScheduleConfig | None = None
    """A number or a schedule, for a loss with a temperature. Null: that of the base recipe."""
    confidence: str = ""
    """A field with a weight per example, e.g. the teacher's confidence."""
    where: str = ""
    """A bool field; the term is computed on the pairs where it is true."""
    bind: dict[str, object] = Field(default_factory=dict)
    """Parameter of the loss -> the name of a field, or a constant."""


class ObjectiveConfig(Section):
    """A custom objective: a recipe, changed term by term."""

    base: str = "label_only"
    """The recipe that it starts from."""
    terms: dict[str, TermConfig] = Field(default_factory=dict)
    """Terms that are added, or that replace those of the same name."""


class DistillConfig(Section):
    """Which students are trained by which recipes."""

    students: tuple[StudentName, ...] = STUDENTS
    """The architectures."""
    recipes: tuple[str, ...] = ("label_only", "mkd")
    """Recipes (docs/distillation.md) or names in `objectives`; each is trained from the same initial weights."""
    objectives: dict[Name, ObjectiveConfig] = Field(default_factory=dict)
    """Custom objectives, by name."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of the score distributions in the KL terms."""
    group_size: Positive = 4
    """Most pairs of a group, which have the same query; the labelled pairs of a query are spread over its groups."""
    labelled_fraction: Annotated[float, Field(gt=0, le=1)] | ScheduleConfig = 0.5
    """Fraction of a batch's groups with labelled pairs; the others, where there are any, have pairs that only the
    teacher scored. A number or a schedule."""
    length_buckets: Positive = 1
    """Lengths that batches are padded to: a batch has pairs of similar length; every length is compiled once."""
    pack_to: NonNegative = 128
    """Tokens of a row of the encoder in training, which holds several pairs' texts (longer ones have rows of their own
    length), where that saves enough padding; 0 for one text a row."""
    joint_training: bool = False
    """Whether all students of a recipe are updated in the same step, in one pass over the signals."""
    term_gradients: bool = False
    """Whether the gradient norm of every term is logged, for diagnosis: one more backward pass per term."""
    optimization: OptimizationConfig = OptimizationConfig()

    @model_validator(mode="after")
    def _check(self):
        if not self.students or not self.recipes:
            raise ValueError("students and recipes must each name at least one")
        if len(set(self.students)) != len(self.students) or len(set(self.recipes)) != len(self.recipes):
            raise ValueError("students and recipes must not repeat a name")
        known = (*RECIPES, *self.objectives)
        for path, name in (
            *(("recipes", name) for name in self.recipes),
            *((f"objectives.{name}.base", objective.base) for name, objective in self.objectives.items()),
        ):
            if name not in (known if path == "recipes" else RECIPES):
                raise ValueError(f"{path}: there is no recipe {name!r}; there are {', '.join(known)}")
        if clash := set(self.objectives) & set(RECIPES):
            raise ValueError(f"objectives: {sorted(clash)[0]} is the name of a recipe; choose another")
        if isinstance(fraction := self.labelled_fraction, ScheduleConfig) and not (
            0 < fraction.start <= 1 and 0 < fraction.end <= 1
        ):
            raise ValueError(f"labelled_fraction must start and end in (0, 1], got {fraction.start} and {fraction.end}")
        if self.term_gradients and self.optimization.micro_batches > 1:
            raise ValueError("term_gradients needs optimization.micro_batches 1")
        return self

"""The whole config of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from jax_rele import types
from jax_rele.config.annotate import AnnotateConfig
from jax_rele.config.base import Name, Section
from jax_rele.config.data import DataConfig
from jax_rele.config.distill import DistillConfig
from jax_rele.config.evaluate import EvaluateConfig
from jax_rele.config.labels import LabelsConfig
from jax_rele.config.mesh import MeshConfig
from jax_rele.config.prefer import PreferConfig
from jax_rele.config.rationale import RationaleConfig
from jax_rele.config.reinforce import ReinforceConfig
from jax_rele.config.rounds import RoundsConfig
from jax_rele.config.rules import RuleConfig
from jax_rele.config.student import StudentConfig
from jax_rele.config.teacher import AdaptConfig, FinetuneConfig, ScoreConfig, TeacherConfig
from jax_rele.config.tune import TuneConfig


class Config(Section):
    """The config of a run, whose artefacts are written to `<run_root>/<name>/`."""

    name: Name = "run"
    """Name of the run and of its folder."""
    run_root: str = "runs"
    """Folder that holds the runs."""
    cache_dir: str = ""
    """Folder of caches: token ids, converted benchmarks. Empty: `<run_root>/.cache`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random numbers."""
    labels: LabelsConfig = LabelsConfig()
    data: DataConfig = DataConfig()
    rationale: RationaleConfig = RationaleConfig()
    rules: tuple[RuleConfig, ...] = ()
    """Business rules, e.g. [{when: {brand: mismatch}, labels: [Substitute, Complement, Irrelevant]}], for prompts,
    checks, preferences and reports (docs/rules.md)."""
    mesh: MeshConfig = MeshConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    teacher: TeacherConfig = TeacherConfig()
    adapt: AdaptConfig = AdaptConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    prefer: PreferConfig = PreferConfig()
    reinforce: ReinforceConfig = ReinforceConfig()
    score: ScoreConfig = ScoreConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tune: TuneConfig = TuneConfig()
    rounds: RoundsConfig = RoundsConfig()

    @property
    def rules_(self) -> tuple[types.Rule, ...]:
        return tuple(rule.rule_ for rule in self.rules)

    @property
    def answers(self) -> Path:
        return Path(self.annotate.store) if self.annotate.store else Path(self.run_root) / "answers"

    @model_validator(mode="after")
    def _check(self):
        if self.student.init == "bundled:decoder":
            raise ValueError("student.init: bundled:decoder is for the teacher; set it to bundled:encoder")
        for number, rule in enumerate(self.rules):
            for field, used, names in (
                ("when", rule.when, self.rationale.dimensions),
                ("labels", rule.labels, self.labels.names),
            ):
                if unknown := [name for name in used if name not in names]:
                    raise ValueError(f"rules.{number}.{field}: {unknown[0]!r} is not one of {list(names)}")
            if set(rule.labels) == set(self.labels.names):
                raise ValueError(f"rules.{number}.labels: all labels are allowed, so that no pair can break the rule")
        if self.score.signals:
            return self  # what is below makes our own teacher
        for path, names in (("definitions", self.labels.names), ("dimension_definitions", self.rationale.dimensions)):
            if unknown := sorted(set(getattr(self.annotate, path)) - set(names)):
                raise ValueError(f"annotate.{path}: {unknown[0]!r} is not one of {list(names)}")
        if self.score.samples > 1 and self.teacher.order == "label_only":
            raise ValueError("score.samples: with teacher.order label_only there is no rationale to draw; set it to 1")
        self._check_perspectives()
        if self.score.rationale == "annotated":
            if self.teacher.order == "label_only":
                raise ValueError(
                    "score.rationale: with teacher.order label_only no rationale is read; set it to written"
                )
            if self.score.samples > 1:
                raise ValueError("score.samples: an annotated rationale is not drawn; set it to 1")
        if self.prefer.enabled and self.prefer.source == "annotators" and self.annotate.annotator != "llm":
            raise ValueError("prefer.source: annotators are those of annotate.annotator: llm; set it to samples")
        if self.teacher.init == "bundled:encoder":
            raise ValueError("teacher.init: bundled:encoder is for students; set it to bundled:decoder")
        if self.teacher.init == "random":
            if not self.adapt.enabled:
                raise ValueError("adapt.enabled: false leaves a base of random weights; enable it or set teacher.init")
            if self.evaluate.zero_shot:
                raise ValueError("evaluate.zero_shot: there is no teacher.init to evaluate; set it to false")
            if self.teacher.quantize != "none":
                raise ValueError("teacher.quantize: a randomly initialised base is trained; set it to none")
        elif self.adapt.enabled and self.teacher.quantize != "none":
            raise ValueError(
                "teacher.quantize: a base that `adapt` trains cannot be quantized; set adapt.enabled: false"
            )
        return self

    def _check_perspectives(self) -> None:
        everything = self.rationale.dimensions
        answers = {(self.teacher.order, everything, False): "the main answer, over all dimensions"}
        for name, each in self.teacher.perspectives.items():
            path, order = f"teacher.perspectives.{name}", each.order or self.teacher.order
            if self.teacher.order == "label_only":
                raise ValueError(
                    "teacher.perspectives: with teacher.order label_only no answer compares all dimensions; set "
                    "another order, and add the label alone as a perspective, {label: {order: label_only}}"
                )
            if name == "zero-shot":
                raise ValueError(f"{path}: reports call the untrained teacher so; rename it")
            if order == "label_only":
                if each.rules or each.dimensions:
                    raise ValueError(f"{path}.order: label_only compares nothing; leave dimensions and rules out")
                dimensions: tuple[str, ...] = ()
            else:
                dimensions = everything if each.dimensions is None else each.dimensions
                self._check_perspective(path, dimensions, each.rules)
            answer = order, dimensions, each.rules
            if answer in answers:
                raise ValueError(
                    f"{path}: is the same answer as {answers[answer]}; give other dimensions, rules or another order"
                )
            answers[answer] = f"the perspective {name}"

    def _check_perspective(self, path: str, dimensions: tuple[str, ...], rules: bool) -> None:
        everything = self.rationale.dimensions
        if unknown := [dimension for dimension in dimensions if dimension not in everything]:
            raise ValueError(f"{path}.dimensions: {unknown[0]!r} is not one of {list(everything)}")
        if len(set(dimensions)) < len(dimensions):
            raise ValueError(f"{path}.dimensions: must be different, got {', '.join(dimensions)}")
        if not dimensions and not rules:
            raise ValueError(f"{path}: says nothing; give dimensions or rules, or order: label_only")
        if rules and not any(rule.when for rule in self.rules):
            raise ValueError(f"{path}.rules: none of `rules` has a condition (when) that can apply; add one")
        lines = [f"rule {number}" for number in range(1, len(self.rules) + 1)] if rules else []
        if both := [line for line in lines if line in everything]:
            raise ValueError(f"{path}.rules: a dimension is called {both[0]!r} as the line of a rule; rename it")

    @property
    def run_dir(self) -> Path:
        return Path(self.run_root) / self.name

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else Path(self.run_root) / ".cache"

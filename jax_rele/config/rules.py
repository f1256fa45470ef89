"""Business rules."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from jax_rele import types
from jax_rele.config.base import Section

Verdicts = tuple[Literal["match", "mismatch", "absent"], ...]


class RuleConfig(Section):
    """A business rule: in words, as a condition on verdicts with the labels that it allows, or both."""

    text: str = ""
    """The rule in words, for prompts and reports. Empty: in words made of `when` and `labels`."""
    when: dict[str, Verdicts] = Field(default_factory=dict)
    """Dimension -> the verdict, or verdicts, with which the rule applies; all dimensions must have theirs."""
    labels: tuple[str, ...] = ()
    """The labels that a pair may have where the rule applies."""

    @field_validator("labels", mode="before")
    @classmethod
    def _one_label(cls, labels: object) -> object:
        return (labels,) if isinstance(labels, str) else labels

    @field_validator("when", mode="before")
    @classmethod
    def _one_as_several(cls, when: object) -> object:
        if not isinstance(when, dict):
            return when
        return {name: (verdicts,) if isinstance(verdicts, str) else verdicts for name, verdicts in when.items()}

    @model_validator(mode="after")
    def _check(self):
        for name, verdicts in self.when.items():
            if not verdicts:
                raise ValueError(f"when.{name} must have at least 1 verdict")
            if len(set(verdicts)) < len(verdicts) or len(verdicts) == len(types.VERDICTS):
                raise ValueError(f"when.{name} must have one or two different verdicts, got {', '.join(verdicts)}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must be different, got {', '.join(self.labels)}")
        if bool(self.when) != bool(self.labels):
            raise ValueError("when and labels go together: verdicts, and the labels that are allowed with them")
        if not self.text.strip() and not self.when:
            raise ValueError("a rule needs text, or when and labels")
        return self

    @property
    def rule_(self) -> types.Rule:
        return types.Rule(" ".join(self.text.split()), self.when, self.labels)

"""The label schema."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from jax_rele import types
from jax_rele.config.base import Section

RESERVED = ("pair_id", "score", "query_embedding", "item_embedding")
"""Columns of predictions beside those of the labels."""


class LabelsConfig(Section):
    """The label schema and the labels' aliases in the data."""

    names: tuple[str, ...] = ("Exact", "Substitute", "Complement", "Irrelevant")
    """The relevance grades, best first."""
    gains: tuple[float, ...] = (1.0, 0.1, 0.01, 0.0)
    """The gain of each grade in [0, 1]; a pair's score is its expected gain."""
    positive: tuple[str, ...] = ("Exact",)
    """The grades that count as relevant in the binary view."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """Label in the data -> the grade's name, e.g. {E: Exact}; the names themselves are always accepted."""
    gain_maps: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Named gains for nDCG, one number per grade; each is a metric `ndcg_<name>`. Empty: one map, `gains`."""

    @field_validator("names", "positive", "aliases", mode="before")
    @classmethod
    def _truths_as_texts(cls, value: object) -> object:
        """YAML's true and false as the labels `true` and `false`."""
        if isinstance(value, dict):
            return {_label_text(theirs): _label_text(name) for theirs, name in value.items()}
        return [_label_text(name) for name in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _check(self):
        schema = self.schema_
        for name in schema.names:
            if name != name.strip() or name in RESERVED:
                raise ValueError(f"names must not be {', '.join(RESERVED)} or begin or end with a blank, got {name!r}")
        for alias, name in self.aliases.items():
            if alias in schema.names and alias != name:
                raise ValueError(f"aliases maps {alias!r}, itself a grade, to {name!r}; leave the grade out of names")
            if name not in schema.names:
                raise ValueError(f"aliases maps {alias!r} to {name!r}, which is not one of {list(schema.names)}")
        if len(set(self.gains)) == 1:
            raise ValueError(f"gains are all {self.gains[0]:g}, so that no grade is better than another")
        for key, gains in self.gain_maps.items():
            if len(gains) != len(schema):
                raise ValueError(f"gain_maps.{key} must hold {len(schema)} numbers, got {len(gains)}")
        return self

    @property
    def schema_(self) -> types.LabelSchema:
        return types.LabelSchema(self.names, self.gains, self.positive)

    @property
    def gain_maps_(self) -> dict[str, tuple[float, ...]]:
        return self.gain_maps or {"gains": self.gains}


def _label_text(label: object) -> object:
    return str(label).lower() if isinstance(label, bool) else label

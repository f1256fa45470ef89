"""What `jax-rele tune` searches."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jax_rele.config.base import Section


class RangeConfig(Section):
    """Positive numbers, searched on a logarithmic scale; two equal ends are one number, which is not searched."""

    low: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The smallest."""
    high: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The largest."""

    @model_validator(mode="after")
    def _check(self):
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g})")
        return self


class TuneConfig(Section):
    """The ranges that `jax-rele tune` searches; each holds the number of the config, which is tried first."""

    weights: dict[str, RangeConfig] = Field(default_factory=dict)
    """Term -> range of its weight. Others: from a hundredth to ten times of it; that of `label` is not searched."""
    temperatures: dict[str, RangeConfig] = Field(default_factory=dict)
    """Term -> range of its temperature. Others: from a quarter to four times of it."""
    learning_rate: RangeConfig | None = None
    """Range of `distill.optimization.learning_rate`. Null: from a fifth to five times of it."""

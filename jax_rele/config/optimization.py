"""The optimizer and the training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jax_rele.config.base import Fraction, Positive, Section


class OptimizationConfig(Section):
    """AdamW with linear warm-up and a schedule, and the training loop."""

    steps: Positive = 100
    """Optimizer steps."""
    batch_size: Positive = 32
    """Rows per step over all devices."""
    micro_batches: Positive = 1
    """Gradient accumulation: parts of a batch that are computed one after the other; the result is that of the
    whole batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: down to a tenth of the peak along a cosine or a line, or no change."""
    warmup_fraction: Fraction = 0.1
    """Fraction of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay; not applied to norms and biases."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints."""
    log_every: Positive = 20
    """Steps between two lines of the metric logs; must divide `checkpoint_every`."""

    @model_validator(mode="after")
    def _check(self):
        # A resumed run starts at a checkpoint: its log windows must too, to equal an uninterrupted run's.
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of log_every ({self.log_every})"
            )
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batches ({self.micro_batches})"
            )
        return self

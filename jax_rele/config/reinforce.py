"""The stage that trains the teacher on rewards of its own samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jax_rele.config.base import Fraction, NonNegative, Positive, Section
from jax_rele.config.optimization import OptimizationConfig

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class IterationConfig(OptimizationConfig):
    """AdamW within one iteration; it starts anew in the next."""

    steps: Positive = 10
    """Optimizer steps."""
    batch_size: Positive = 16
    """Rows per step over all devices."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """After the warm-up: down to a tenth of the peak along a cosine or a line, or no change."""
    warmup_fraction: Fraction = 0.0
    """Fraction of the steps over which the learning rate rises from 0."""
    checkpoint_every: Positive = 10
    """Steps between checkpoints."""
    log_every: Positive = 5
    """Steps between two lines of the metric logs; must divide `checkpoint_every`."""


class ReinforceConfig(Section):
    """Group-relative policy optimisation (GRPO, arXiv 2402.03300) of the teacher, between `prefer` and `score`."""

    enabled: bool = False
    """Whether the stage runs; otherwise the teacher is the one of the stages before."""
    iterations: Positive = 20
    """How often the teacher draws answers and is trained on their rewards."""
    pairs: Positive = 64
    """Labelled training pairs of an iteration, drawn at random."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers that the teacher draws for a pair; each is compared with the others of its pair."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Their sampling temperature; the log-probabilities of the loss are those of temperature 1."""
    label_weight: Weight = 1.0
    """Weight in the reward of whether the label is the human one and keeps the business rules."""
    verdict_weight: Weight = 0.5
    """Weight in the reward of the fraction of dimensions whose verdict is as in `annotate`'s rationale and follows from
    values that stand in the texts."""
    brevity_weight: Weight = 0.0
    """Weight in the reward of how few of the texts' words the values repeat."""
    scale_advantages: bool = True
    """Whether rewards are divided by their standard deviation over the answers of a pair, as the paper does."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the probability of a token may move within an iteration before it teaches nothing more."""
    kl_weight: Weight = 0.04
    """Weight of the divergence from the teacher before the stage."""
    max_kl: Annotated[float, Field(gt=0)] = 0.5
    """Divergence from the teacher before the stage, in nats a token, at which the stage ends."""
    pack_to: NonNegative = 0
    """Tokens of a packed row of several answers; 0 for the longest that prompt and answer can be."""
    optimization: IterationConfig = IterationConfig()

    @model_validator(mode="after")
    def _check(self):
        if not self.label_weight + self.verdict_weight + self.brevity_weight:
            raise ValueError(
                "label_weight, verdict_weight and brevity_weight are all 0: nothing is rewarded; raise one"
            )
        return self

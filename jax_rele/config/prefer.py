"""The stage that trains the teacher on preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jax_rele.config.base import NonNegative, Section
from jax_rele.config.optimization import OptimizationConfig

PreferenceSource = Literal["samples", "annotators", "file"]
PreferenceLoss = Literal["dpo", "dpo_hinge", "ipo", "orpo", "simpo"]


class PreferConfig(Section):
    """Preference optimisation of the fine-tuned teacher, between `finetune` and `score`."""

    enabled: bool = False
    """Whether the stage runs; otherwise the teacher is the one that `finetune` trained."""
    source: PreferenceSource = "samples"
    """Which rationales are compared: `samples`, which the teacher draws for the labelled training pairs; `annotators`,
    those of the chat models of `annotate`; or those of `file`, see `path`."""
    path: str = ""
    """Where `source` is `file`: preferences, one JSON object a line (docs/teacher.md)."""
    samples: Annotated[int, Field(ge=2)] = 4
    """Rationales that the teacher draws for a pair, where `source` is `samples`."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Their sampling temperature."""
    max_pairs: NonNegative = 0
    """Labelled training pairs that rationales are drawn for, spread evenly; 0 for all."""
    loss: PreferenceLoss = "dpo"
    """DPO (arXiv 2305.18290), its hinge form (2309.06657), IPO (2310.12036), ORPO (2403.07691) or SimPO (2405.14734).
    """
    beta: Annotated[float | None, Field(gt=0)] = None
    """Strength of a preference in the loss, see there; by default 0.1, and 2.0 of SimPO."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a preference is the wrong way round (cDPO); `dpo` alone reads it."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean cross-entropy of the chosen rationale's tokens beside the loss (arXiv 2404.19733): it keeps
    the chosen texts likely."""
    pack_to: NonNegative = 0
    """Tokens of a packed row of several preferences; 0 for one preference a row."""
    optimization: OptimizationConfig = OptimizationConfig()

    @model_validator(mode="after")
    def _check(self):
        if (self.source == "file") != bool(self.path):
            raise ValueError("source: file needs `path`, and `path` needs source: file; set both or neither")
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError(f"label_smoothing: {self.loss} has none; set it to 0, or loss to dpo")
        if self.sft_weight and self.loss == "orpo":
            raise ValueError("sft_weight: orpo has the cross-entropy of the chosen rationale already; set it to 0")
        return self

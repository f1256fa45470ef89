"""Names that users write, each defined once."""

from __future__ import annotations

from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)

StudentName = Literal["cross_encoder", "two_tower"]
STUDENTS: tuple[StudentName, ...] = get_args(StudentName)

MODELS = ("teacher", *STUDENTS)
"""What `jax-rele predict` can run."""

FORMATS = ("onnx", "sentence-transformers", "tei", "stablehlo", "hf")
"""Forms in which a student is exported."""

RECIPES = ("label_only", "score_kd", "cot_kd", "mkd", "margin_mse", "lrkd", "crsd", "rationale_guided")
"""The objectives of `jax_rele.losses.recipes`."""

Order = Literal["rationale_first", "label_first", "label_only"]
"""Where the label stands in the teacher's answer: after the comparisons, before them, or alone."""
ORDERS: tuple[Order, ...] = get_args(Order)

PROMPT_LANGUAGES = ("en", "zh", "ja", "es")
"""Languages of the prompts to chat models that come with the package."""

PLANNED_STEPS = ("adapt", "finetune", "prefer", "reinforce", "score_prefix", "score", "generate", "distill")
"""The steps that `jax-rele plan` compiles."""

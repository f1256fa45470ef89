"""Explainable LLM relevance for e-commerce search, distilled into deployable students.

`load_student` and `load_teacher` give the models of a run's folder, ready to judge. `jax_rele.losses` composes
distillation objectives, `jax_rele.models` holds decoder and encoder, `jax_rele.students` and `jax_rele.teacher` what is
built on them, `jax_rele.rationale` turns reasoning into data and back, `jax_rele.training` trains; the command line is
`jax-rele`.

Modules are imported when they are first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Otherwise transformers prints that it found no PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

if TYPE_CHECKING:
    from jax_rele.runs.load import load_student, load_teacher

__version__ = "0.1.0"

__all__ = ["load_student", "load_teacher", "losses", "models", "rationale", "students", "teacher", "training", "types"]


def __getattr__(name: str) -> Any:
    if name in ("load_student", "load_teacher"):
        return getattr(importlib.import_module("jax_rele.runs.load"), name)
    if name in __all__:
        return importlib.import_module(f"jax_rele.{name}")
    raise AttributeError(f"module 'jax_rele' has no attribute {name!r}")

"""Explainable LLM relevance for e-commerce search, distilled into deployable students.

`jax_rele.losses` composes distillation objectives, `jax_rele.models` holds the teacher and the students,
`jax_rele.rationale` turns reasoning into data and back, `jax_rele.training` and `jax_rele.inference` run them,
`jax_rele.pipeline` runs a whole config; the command line is `jax-rele`.
"""

import os

# Otherwise transformers tells every user that it found no PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from jax_rele import losses, models, rationale, types

__version__ = "0.1.0"

__all__ = ["losses", "models", "rationale", "types"]

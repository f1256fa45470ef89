"""Trained students for other programs: exports, and their scores without JAX."""

from jax_rele.deployment.bundle import Manifest, read_manifest
from jax_rele.deployment.export import export_student
from jax_rele.deployment.scorer import Scorer, Scores, load_bundle

__all__ = ["Manifest", "Scorer", "Scores", "export_student", "load_bundle", "read_manifest"]

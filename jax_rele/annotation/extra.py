"""The packages of the extra `annotate`, without which everything works but asking chat models."""

from __future__ import annotations

from jax_rele import extras

PACKAGES = ("openai", "httpx2", "json_repair")


def require(*packages: str) -> None:
    """Raises UserError where one of the packages cannot be imported."""
    extras.require("annotate", "annotators that are chat models", *packages)

"""The packages of the extra `annotate`, without which everything works but asking chat models."""

from __future__ import annotations

from importlib import import_module

from jax_rele.errors import UserError

PACKAGES = ("openai", "httpx2", "json_repair")


def require(*packages: str) -> None:
    """Raises UserError where one of the packages cannot be imported."""
    missing = []
    for package in packages:
        try:
            import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise UserError(f"annotators that are chat models need {', '.join(missing)}: pip install 'jax_rele[annotate]'")

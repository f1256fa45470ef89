"""Optional packages, each part of an extra of `pyproject.toml`."""

from __future__ import annotations

from importlib import import_module

from jax_rele.errors import UserError


def require(extra: str, purpose: str, *packages: str) -> None:
    """Raises UserError where one of an extra's packages cannot be imported.

    Args:
      extra: its name.
      purpose: what needs it, to begin the message.
      packages: as they are imported.
    """
    missing = []
    for package in packages:
        try:
            import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise UserError(f"{purpose} need {', '.join(missing)}: pip install 'jax_rele[{extra}]'")

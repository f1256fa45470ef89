"""The device mesh."""

from __future__ import annotations

from pydantic import model_validator

from jax_rele.config.base import Section


class MeshConfig(Section):
    """Devices per mesh axis; one axis may be -1, which means all remaining devices."""

    data: int = -1
    """Batch rows."""
    fsdp: int = 1
    """Batch rows; parameters and optimizer state are sharded too."""
    tensor: int = 1
    """Heads, inner widths and vocabulary."""

    @model_validator(mode="after")
    def _check(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"axes must be positive, and at most one -1, got {sizes}")
        return self

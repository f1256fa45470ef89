"""What a rationale is about."""

from __future__ import annotations

from pydantic import Field, model_validator

from jax_rele.config.base import Section


class RationaleConfig(Section):
    """What a rationale (the chain of thought) is about."""

    dimensions: tuple[str, ...] = ("category", "brand", "model", "color", "material", "size", "audience")
    """The aspects on which query and item are compared, in the order in which a rationale lists them."""
    tag_map: dict[str, str] = Field(
        default_factory=lambda: {
            "core_product_type": "category",
            "creator": "brand",
            "product_name": "model",
            "product_number": "model",
            "color": "color",
            "material": "material",
            "UoM": "size",
            "quantity": "size",
            "shape": "size",
            "department": "audience",
        }
    )
    """Type of a human query tag -> dimension; other types are not used."""

    @model_validator(mode="after")
    def _check(self):
        if not self.dimensions or len(set(self.dimensions)) != len(self.dimensions) or "" in self.dimensions:
            raise ValueError(f"dimensions must be distinct non-empty names, got {list(self.dimensions)}")
        if any(name != name.strip() for name in self.dimensions):
            raise ValueError(f"dimensions must not begin or end with a blank, got {list(self.dimensions)}")
        unknown = {kind: name for kind, name in self.tag_map.items() if name not in self.dimensions}
        if unknown:
            raise ValueError(f"tag_map maps to names that are not in dimensions: {unknown}")
        return self

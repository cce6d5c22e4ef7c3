"""The compact volumes that networks read.

In: the section `cache`. Out: its values. Example: `config.cache.side_px`.
"""

from pydantic import model_validator

from cspine_kit.core.config.section import Positive, Section


class CacheConfig(Section):
    """Compact volume of a study: in-plane resampling, field, window; z keeps the native slices."""

    spacing_mm: Positive
    field_mm: Positive
    hu_low: float
    hu_high: float

    @model_validator(mode="after")
    def _window(self) -> "CacheConfig":
        if self.hu_low >= self.hu_high:
            raise ValueError(f"hu_low {self.hu_low} must lie below hu_high {self.hu_high}")
        return self

    @property
    def side_px(self) -> int:
        """Rows and columns of a cached slice."""
        return round(self.field_mm / self.spacing_mm)

"""The compact volumes that networks read.

In: the section `volumes`. Out: its values. Example: `config.volumes.fine.side_px`.
"""

from pathlib import Path

from pydantic import model_validator

from cspine_kit.core.config.section import NotNegative, Positive, Section


class GridConfig(Section):
    """A volume's pixels and the square that is kept."""

    spacing_mm: Positive
    field_mm: Positive

    @property
    def side_px(self) -> int:
        """Rows and columns of a slice."""
        return round(self.field_mm / self.spacing_mm)


class FineConfig(GridConfig):
    """The volume around the spine, z native; `margin_mm` is kept above C1 and below C7."""

    margin_mm: NotNegative


class VolumesConfig(Section):
    """The two volumes of a study, and the 8-bit codes of their HU."""

    curve: tuple[tuple[float, int], ...]
    coarse: GridConfig
    fine: FineConfig
    shipped: tuple[Path, ...] = ()

    @model_validator(mode="after")
    def _monotone(self) -> "VolumesConfig":
        steps = list(zip(self.curve, self.curve[1:], strict=False))
        if not steps or any(a[0] >= b[0] or a[1] >= b[1] for a, b in steps):
            raise ValueError(f"curve must ascend in HU and in code: {self.curve}")
        if (self.curve[0][1], self.curve[-1][1]) != (0, 255):
            raise ValueError(f"curve must run from code 0 to code 255: {self.curve}")
        return self

    @model_validator(mode="after")
    def _nested(self) -> "VolumesConfig":
        if self.fine.field_mm > self.coarse.field_mm:
            raise ValueError(
                f"fine.field_mm {self.fine.field_mm} is larger than coarse.field_mm "
                f"{self.coarse.field_mm}"
            )
        return self

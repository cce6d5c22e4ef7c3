"""One figure of the report, and the looks that all of them share.

In: a matplotlib figure or frames of pixels. Out: a `Figure` that stands in a page by itself.
Example::

    sheet = canvas(4.0, 2.0)
    sheet.subplots().plot([0, 1], [0, 1], color=LEVEL_COLORS["C1"])
    assert drawn(sheet, "A line: it rises.").src.startswith("data:image/svg+xml;base64,")

A level and a member have the same color in every figure. matplotlib is imported inside.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import OVERALL, TARGETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet

LEVEL_COLORS = dict(
    zip(
        TARGETS,
        ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7b4fa3", "#222222"),
        strict=True,
    )
)
"""Neighbors apart for every kind of color vision; the patient is black."""

MEMBER_COLORS = ("#117733", "#aa4499", "#ddaa33", "#332288", "#882255", "#44aa99", "#999933")
MEAN_COLOR, SHIPS_COLOR, PLAIN_COLOR, ALARM_COLOR = "#9aa0a6", "#0b57a4", "#5f6b7a", "#c62828"

LOOKS: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.hashsalt": "cspine",
}
"""matplotlib's settings while figures are drawn: the same page from the same run."""

WIDTH_IN = 8.8
PX_PER_IN = 106
"""A figure of full width fills the page."""

SHARP = 1.5
"""Pixels of a PNG per pixel on the page, for dense screens."""

FRAME_MS = 140
QUALITY = 70


@dataclass(frozen=True)
class Figure:
    """One picture: what to see in it, its bytes, their kind ("svg+xml", "png", "webp"), and its
    width on the page."""

    caption: str
    image: bytes
    kind: str
    width_px: int

    @property
    def src(self) -> str:
        """The picture as an address that needs no network."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.image).decode()}"


def short(target: str) -> str:
    """A target's name on an axis."""
    return "patient" if target == OVERALL else target


def ending(study_uid: str) -> str:
    """The last part of a study's id, enough to tell studies of one figure apart."""
    return study_uid.rsplit(".", 1)[-1]


TARGET_TICKS = tuple(short(target) for target in TARGETS)


def member_colors(members: Sequence[str]) -> dict[str, str]:
    """A color for each member, in the config's order."""
    return {m: MEMBER_COLORS[i % len(MEMBER_COLORS)] for i, m in enumerate(members)}


def bars_height(n: int) -> float:
    """Inches of a figure of n bars that lie below each other."""
    return 0.8 + 0.24 * n


def canvas(width_in: float = WIDTH_IN, height_in: float = 3.2) -> "Sheet":
    """An empty matplotlib figure that belongs to no window."""
    from matplotlib.figure import Figure as Sheet

    return Sheet(figsize=(width_in, height_in), layout="constrained")


def intervals(
    rows: Sequence[tuple[float, float, float]],
    names: Sequence[str],
    colors: Sequence[str],
    xlabel: str,
) -> "Sheet":
    """Values with their intervals below each other, a line at zero.

    Args:
        rows: low end, value, high end; the first one lies lowest.
        names: of the rows.
        colors: of the rows.
        xlabel: what the values are.
    """
    sheet = canvas(height_in=bars_height(max(1, len(rows))))
    draw_intervals(sheet.subplots(), rows, names, colors, xlabel)
    return sheet


def draw_intervals(
    axes: Any,
    rows: Sequence[tuple[float, float, float]],
    names: Sequence[str],
    colors: Sequence[str],
    xlabel: str,
) -> None:
    """The same on axes of a sheet; a row of NaN stays empty."""
    for i, ((low, value, high), color) in enumerate(zip(rows, colors, strict=True)):
        axes.plot([low, high], [i, i], color=color, lw=3, solid_capstyle="butt")
        axes.plot(value, i, "o", color=color, ms=7)
    axes.set_yticks(range(len(rows)), names)
    axes.axvline(0.0, color="black", lw=0.8)
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlabel=xlabel)
    axes.grid(axis="x")


def drawn(sheet: "Sheet", caption: str, *, pixels: bool = False) -> Figure:
    """Finish a matplotlib figure.

    Args:
        sheet: what was drawn.
        caption: what to see.
        pixels: PNG instead of SVG, for pictures and thousands of points.
    """
    engine = sheet.get_layout_engine()
    if engine is not None:
        # Left to the file's writer, layout costs a whole drawing that nobody sees.
        engine.execute(sheet)
        sheet.set_layout_engine(None)
    buffer, width = io.BytesIO(), round(sheet.get_figwidth() * PX_PER_IN)
    if pixels:
        sheet.savefig(buffer, format="png", dpi=SHARP * PX_PER_IN)
        return Figure(caption, _fewer_colors(buffer.getvalue()), "png", width)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    sheet.savefig(buffer, format="svg", metadata=nothing)
    return Figure(caption, buffer.getvalue(), "svg+xml", width)


def _fewer_colors(png: bytes) -> bytes:
    """The same picture with a palette of 256: a third of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def animated(frames: Sequence[NDArray[np.uint8]], caption: str) -> Figure:
    """A short film.

    Args:
        frames: RGB, (rows, columns, 3) each, all of one size.
        caption: what to see.
    """
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=FRAME_MS,
        loop=0,
        quality=QUALITY,
    )
    return Figure(caption, buffer.getvalue(), "webp", first.width)


def level_bands(axes: Any, spans: Any, fractured: Sequence[str] = ()) -> None:
    """Mark where the levels are along the z axis of a plot of curves: a colored bar with its name
    above the curves, and a red ground under fractured ones.

    Args:
        axes: x is z in mm, y runs from 0 to 1.
        spans: rows with level, present, z_top_mm, z_bottom_mm.
        fractured: levels with a fracture.
    """
    for i, row in enumerate(spans[spans["present"]].itertuples()):
        low, high = sorted((row.z_top_mm, row.z_bottom_mm))
        bottom, height = 1.04 + 0.15 * (i % 2), 0.13
        axes.barh(
            bottom + height / 2,
            high - low,
            height,
            low,
            color=LEVEL_COLORS[row.level],
            clip_on=False,
        )
        axes.text(
            *((low + high) / 2, bottom + height / 2.2, row.level),
            ha="center",
            va="center",
            fontsize=7,
            color="white",
        )
        if row.level in fractured:
            axes.axvspan(low, high, color=ALARM_COLOR, alpha=0.10, lw=0)


def heat(axes: Any, values: Any, *, rows: Sequence[str], columns: Sequence[str], form: str) -> None:
    """A matrix of shares with its numbers in it; NaN stays white."""
    shown = np.asarray(values, dtype=np.float64)
    axes.imshow(np.ma.masked_invalid(shown), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (i, j), value in np.ndenumerate(shown):
        if np.isfinite(value):
            dark = "white" if value > 0.6 else "black"
            axes.text(j, i, format(value, form), ha="center", va="center", color=dark, fontsize=8)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

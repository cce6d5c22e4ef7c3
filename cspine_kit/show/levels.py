"""The decoded levels of one study on its sagittal view, beside what was said of each slice.

In: `StudyLevels`. Out: a PNG. Example::

    from cspine_kit.infer.levels import study_levels

    draw_levels(study_levels(folder, bundle), Path("levels.png"))
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import sigmoid
from cspine_kit.core.runs import publish
from cspine_kit.core.tables import VERTEBRA_COLUMNS
from cspine_kit.data.levels import decode_visible
from cspine_kit.data.reader.problems import falls_back
from cspine_kit.data.volumes.patch import Patch, draw
from cspine_kit.infer.levels import StudyLevels
from cspine_kit.show.views import WINDOW_HU


def draw_levels(found: StudyLevels, path: Path) -> None:
    """Draw the levels on the sagittal view through the spine, millimeters to scale, and beside it
    the probability that each slice shows each level: dashed as the networks say, filled as the
    decode sees it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    volume = found.volume
    rows = found.levels[found.levels["present"]]
    z, spacing = volume.z_mm, volume.spacing_mm[1]
    top, bottom = z[0] + volume.step_mm / 2, z[-1] - volume.step_mm / 2
    height, width = top - bottom, volume.box.shape[0] * spacing
    across = float(found.levels["center_x_mm"].median())
    middle = ((top + bottom) / 2, volume.middle_mm[0], across)
    size_px = (max(1, round(height / spacing)), volume.box.shape[0])
    (sagittal,) = draw(volume, Patch("sagittal", middle, (height, width), size_px), [WINDOW_HU])
    figure, axis = plt.subplots(figsize=(10.5, 7 * max(0.3, height / width)))
    # Beside the view and as high as it is drawn, so that both have their millimeters side by side.
    beside = make_axes_locatable(axis).append_axes("right", size="50%", pad=0.3, sharey=axis)
    beside.tick_params(labelleft=False)
    _curves(beside, found.rows)
    axis.imshow(sagittal, cmap="gray", extent=(0, width, bottom, top), interpolation="none")
    left = volume.to_mm(np.array([[-0.5, 0.0]]))[0, 0]
    for row in rows.itertuples():
        color = f"C{LEVELS.index(row.level)}"
        y = row.center_y_mm - left
        axis.plot([y - 30, y - 30], [row.z_top_mm, row.z_bottom_mm], color=color, lw=3)
        axis.plot(y, row.center_z_mm, "o", color=color, ms=4)
        axis.annotate(
            f"{row.level} {row.confidence:.2f}",
            (y - 33, row.center_z_mm),
            color=color,
            ha="right",
            va="center",
            fontsize=9,
        )
    lines = [volume.study_uid]
    if worst := ", ".join(falls_back(found.geometry.problems)):
        lines.append(f"not to be relied on: {worst}")
    if found.absent:
        lines.append(f"not in this scan: {', '.join(found.absent)}")
    if found.upside_down:
        lines.append("upside down")
    axis.set(
        xlabel="anterior to posterior, mm", ylabel="z along the slices, mm", title="\n".join(lines)
    )
    figure.tight_layout()
    with publish(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def _curves(axis: Any, rows: pd.DataFrame) -> None:
    """Probabilities along z, to the right of the view that they share z with."""
    at_mm, logits = rows["at_mm"].to_numpy(), rows[list(VERTEBRA_COLUMNS)].to_numpy(np.float64)
    visible, said = decode_visible(at_mm, logits), sigmoid(logits)
    for k, level in enumerate(LEVELS):
        axis.fill_betweenx(at_mm, visible[:, k], color=f"C{k}", alpha=0.3, lw=0, label=level)
        axis.plot(said[:, k], at_mm, color=f"C{k}", lw=1, ls="--")
    axis.set(xlim=(0, 1), xlabel="probability that a slice shows it")
    axis.legend(loc="lower right", fontsize=8)

"""The decoded levels of one study on its sagittal view.

In: `StudyLevels`. Out: a PNG. Example::

    from cspine_kit.infer.levels import study_levels

    draw_levels(study_levels(folder, bundle), Path("levels.png"))
"""

from pathlib import Path

import numpy as np

from cspine_kit.core.runs import publish
from cspine_kit.data.reader.problems import falls_back
from cspine_kit.infer.levels import StudyLevels
from cspine_kit.show.views import SAGITTAL, view


def draw_levels(found: StudyLevels, path: Path) -> None:
    """Draw the levels on the sagittal view through the spine, millimeters to scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    volume = found.volume
    rows = found.levels
    middles = volume.to_px(rows[["center_y_mm", "center_x_mm"]].to_numpy())
    x = float(np.median(middles[:, 1]))
    column = int(np.clip(round(x), 0, volume.voxels.shape[2] - 1))
    z, spacing = volume.z_mm, float(volume.spacing_mm[1])
    half = abs(float(np.median(np.diff(z)))) / 2 if len(z) > 1 else 0.5
    width = volume.voxels.shape[1] * spacing
    sagittal = view(volume.voxels, volume.spacing_mm, SAGITTAL, column, pixel_mm=spacing)
    figure, axis = plt.subplots(figsize=(7, 7 * max(0.3, (z[0] - z[-1]) / width)), dpi=120)
    axis.imshow(
        sagittal, cmap="gray", extent=(0, width, z[-1] - half, z[0] + half), interpolation="none"
    )
    colors = plt.get_cmap("tab10")
    for i, row in enumerate(rows.itertuples()):
        y = middles[i, 0] * spacing
        axis.plot([y - 30, y - 30], [row.z_top_mm, row.z_bottom_mm], color=colors(i), lw=3)
        axis.plot(y, row.center_z_mm, "o", color=colors(i), ms=4)
        axis.annotate(
            f"{row.level} {row.confidence:.2f}",
            (y - 33, row.center_z_mm),
            color=colors(i),
            ha="right",
            va="center",
            fontsize=9,
        )
    worst = ", ".join(falls_back(found.geometry.problems))
    title = f"{volume.study_uid}\nnot to be relied on: {worst}" if worst else volume.study_uid
    axis.set(xlabel="anterior to posterior, mm", ylabel="z along the slices, mm", title=title)
    figure.tight_layout()
    with publish(path) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)

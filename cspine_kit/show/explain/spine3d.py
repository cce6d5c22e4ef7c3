"""The cervical spine in three dimensions: levels colored, hot places red, turning in the browser.

In: an `Evidence`. Out: a plotly figure as HTML; with plotly's script inside it needs no network.
Example::

    from cspine_kit.infer.predictor import Predictor
    from cspine_kit.show.explain.evidence import gather_evidence

    predictor = Predictor(bundle)
    scene = spine_html(gather_evidence(predictor, predictor.predict(folder)), alone=True)
    Path("spine.html").write_text(scene)

Surfaces are marching cubes (Lorensen and Cline, 1987; scikit-image) of each level's bone.
"""

from importlib import import_module
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import ArtifactError
from cspine_kit.infer.judgment import Judgment
from cspine_kit.show.explain.bones import bone_labels
from cspine_kit.show.explain.evidence import HOT, Evidence
from cspine_kit.show.report.figure import ALARM_COLOR, LEVEL_COLORS

CELL_MM = 1.0
"""Surfaces are made of cells of about this size: finer ones would make the page huge."""

LEAST_CELLS = 30
SMOOTH, EDGE = 0.8, 0.4
"""Cells over which a bone's edge is spread, and what of it counts as inside: its steps go, thin
arches stay."""

QUIET = 0.28
"""Opacity of levels that are not suspected."""

TURN = """
const plot = document.getElementById('{plot_id}');
let angle = 0.9, turning = !matchMedia('(prefers-reduced-motion: reduce)').matches, seen = false;
new IntersectionObserver(found => { seen = found[0].isIntersecting; step(); }).observe(plot);
plot.addEventListener('pointerdown', () => { turning = false; });
let waiting = false;
function step() {
  if (!turning || !seen || waiting) return;
  waiting = true;
  const began = performance.now();
  angle += 0.02;
  const eye = {x: 1.9 * Math.cos(angle), y: 1.9 * Math.sin(angle), z: 0.25};
  Plotly.relayout(plot, {'scene.camera.eye': eye}).then(() => requestAnimationFrame(() => {
    waiting = false;
    if (performance.now() - began > 250) turning = false;  // too slow a machine to turn by itself
    setTimeout(step, 50);
  }));
}
"""


def _plotly() -> Any:
    try:
        import plotly.graph_objects as go
        import skimage.measure  # noqa: F401
    except ImportError as error:
        raise ArtifactError(
            f"the 3D view needs {error.name}, which is not installed; "
            "pip install 'cspine-kit[show]'"
        ) from error
    return go


def _coarser(
    volume: NDArray[np.generic], spacing_mm: tuple[float, float, float]
) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    """Cells of about `CELL_MM`: the mean of the voxels of each in the plane, slices left out."""
    _, rows, cols = volume.shape
    step = max(1, round(CELL_MM / spacing_mm[0]))
    size = [
        max(2, round(n * s / CELL_MM)) for n, s in zip((rows, cols), spacing_mm[1:], strict=True)
    ]
    small = [
        cv2.resize(plane.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
        for plane in volume[::step]
    ]
    return np.stack(small).astype(np.float32), (
        spacing_mm[0] * step,
        spacing_mm[1] * rows / size[0],
        spacing_mm[2] * cols / size[1],
    )


def _surface(
    volume: NDArray[np.float32], spacing_mm: tuple[float, float, float], at: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Corners (n, 3) x, y, z in mm with z to the head, and triangles; None for nothing."""
    measure: Any = import_module("skimage.measure")  # untyped
    padded = np.pad(volume, 1)
    if (padded > at).sum() < LEAST_CELLS:
        return None
    corners, faces, _, _ = measure.marching_cubes(padded, at, spacing=spacing_mm)
    z, y, x = corners.T
    return np.column_stack([x, y, -z]), faces.astype(np.int64)


def spine_html(evidence: Evidence, *, alone: bool) -> str:
    """The turning view; a touch stops it.

    Args:
        evidence: of a scan.
        alone: a whole page with plotly's script inside; else a part of one that has it.

    Raises:
        ArtifactError: plotly or scikit-image is not installed.
    """
    go = _plotly()
    fine, judgment = evidence.fine, evidence.judgment
    labels = bone_labels(fine, judgment.levels)
    traces = []
    for j, level in enumerate(LEVELS):
        cells, spacing = _coarser(labels == j + 1, fine.spacing_mm)
        found = _surface(gaussian_filter(cells, SMOOTH), spacing, EDGE)
        if found is not None:
            opacity = 1.0 if level in evidence.suspects and evidence.called else QUIET
            traces.append(_mesh(go, found, LEVEL_COLORS[level], opacity, _told(judgment, level)))
    hot, spacing = _coarser(evidence.heat, fine.spacing_mm)
    top = float(hot.max(initial=0.0))
    found = _surface(hot, spacing, HOT * top) if top > 0 else None
    if found is not None:
        traces.append(_mesh(go, found, ALARM_COLOR, 0.6, "where networks looked"))
    figure = go.Figure(traces)
    axis = {"visible": False, "showbackground": False}
    figure.update_layout(
        scene={"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "data"},
        scene_camera={"eye": {"x": 1.2, "y": 1.5, "z": 0.25}},
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        legend={"itemsizing": "constant", "x": 0.0, "y": 1.0, "bgcolor": "rgba(0,0,0,0)"},
        height=560,
        paper_bgcolor="white",
    )
    text: str = figure.to_html(
        full_html=alone,
        include_plotlyjs=alone,
        post_script=TURN,
        config={"displayModeBar": False, "displaylogo": False},
        div_id="spine",
    )
    return text


def _told(judgment: Judgment, level: str) -> str:
    row = judgment.probabilities.set_index("target").loc[level]
    return f"{level}: {row['prob']:.2f}"


def _mesh(go: Any, surface: Any, color: str, opacity: float, name: str) -> Any:
    corners, faces = surface
    x, y, z = np.round(corners, 2).astype(np.float32).T
    i, j, k = faces.T
    return go.Mesh3d(
        x=x,
        y=y,
        z=z,
        i=i,
        j=j,
        k=k,
        color=color,
        opacity=opacity,
        name=name,
        hovertext=name,
        hoverinfo="text",
        showlegend=True,
        flatshading=False,
        lighting={"ambient": 0.45, "diffuse": 0.8, "specular": 0.15},
    )


def plotly_script() -> str:
    """plotly's own script, as its package carries it."""
    _plotly()
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text

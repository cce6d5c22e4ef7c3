"""Varieties: studies that are no whole, plain neck, and what each does to patient and scan.

In: a variety's name. Out: narrow discs, a longer patient, another stretch of it, coarser slices.
Example::

    thick = vary_scan(rng, "coarse", neck, scan)
    len(thick.grid.z) < len(scan.grid.z)              # 3 to 5 mm apart

`PhantomConfig.variety` is the share of studies that are one of these, those of `varieties` in turn.
"""

from dataclasses import replace

import numpy as np

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.anatomy.shapes import Grid, Vector
from cspine_kit.phantom.anatomy.spine import Neck
from cspine_kit.phantom.anatomy.trunk import add_trunk
from cspine_kit.phantom.injuries.wear import age
from cspine_kit.phantom.scanner.scan import Scan

HIDDEN: dict[str, tuple[str, ...]] = {
    "starts_in_c2": ("C1",),
    "ends_at_c5": ("C6", "C7"),
    "head_only": LEVELS,
    "chest_only": LEVELS,
    "long_field": (),
    "coarse": (),
    "degenerated": (),
    "upside_down": (),
    "prone": (),
    "tilted": (),
    "short_field": ("C1", "C7"),
    "head_and_neck": (),
    "small": (),
    "tall": (),
}
"""Every variety, and the levels whose fractures its scan cannot show."""

ANY_SPACING = ("prone", "tilted", "short_field", "head_and_neck", "small", "tall")
THICK_MM = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
THICK_SHARE = 0.6
"""Varieties of which so many have slices further apart than a scan of the neck has."""

STATURE = {"small": (0.68, 0.86), "tall": (1.14, 1.36)}
"""Size against the mean adult's: adults drawn as small as a child of six years, and tall ones."""

POSTURE_DEG = (22.0, 12.0, 20.0)
"""Most lean, bend and twist of a neck against the slices: a tilted gantry, or a patient who cannot
lie straight."""

COARSE_MM = (3.0, 3.75, 4.0, 5.0)
LONG_MM = (2.0, 2.5, 3.0, 5.0)
"""Slice spacings of coarse scans and of long fields."""

WIDER = 1.7
"""Scans of the trunk show so many times the field of a scan of the neck."""

DISC_LEFT = (0.2, 0.6)
"""Share of its height that a worn disc has left; three to five of the discs below C2 are worn."""


def worn_discs(rng: np.random.Generator, variety: str) -> dict[str, float]:
    """Share of its height that the disc below a level has left, for the worn ones."""
    if variety != "degenerated":
        return {}
    worn = rng.permutation(LEVELS[1:])[: rng.integers(3, 6)]
    return {str(level): float(rng.uniform(*DISC_LEFT)) for level in worn}


def patient(rng: np.random.Generator, variety: str) -> tuple[float | None, Vector]:
    """`stature` and `posture` of `draw_neck`."""
    stature = float(rng.uniform(*STATURE[variety])) if variety in STATURE else None
    lean, bend, twist = rng.uniform(-1.0, 1.0, 3) * (POSTURE_DEG if variety == "tilted" else 0.0)
    return stature, (float(lean), float(bend), float(twist))


def vary_neck(rng: np.random.Generator, variety: str, neck: Neck) -> None:
    """Turn a patient over, give spurs of old age, or the trunk that the scan shows; in place."""
    neck.prone = variety == "prone"
    if variety == "degenerated":
        for level in LEVELS[1:]:
            neck.bones[level] = age(rng, age(rng, neck.bones[level], 1.0), 1.0)
    elif variety in ("chest_only", "long_field"):
        add_trunk(neck)


def _stretch(
    rng: np.random.Generator, variety: str, neck: Neck, scan: Scan
) -> tuple[float, float, float]:
    """z of the first and of the last slice, and the distance of slices, in mm."""
    z = {level: neck.bones[level].position[2] for level in LEVELS}
    top, bottom, step = float(scan.grid.z[0]), float(scan.grid.z[-1]), scan.spacing_mm[0]
    if variety == "starts_in_c2":
        top = z["C2"] + rng.uniform(-8, 8)
    elif variety == "ends_at_c5":
        bottom = z["C5"] + rng.uniform(-7, 7)
    elif variety == "head_only":
        bottom = z["C1"] + rng.uniform(18, 32)
        top = bottom + rng.uniform(80, 130)
    elif variety == "chest_only":
        top = z["C7"] - rng.uniform(26, 45)
        bottom = top - rng.uniform(150, 260)
    elif variety == "long_field":
        top, bottom = z["C1"] + rng.uniform(110, 150), z["C7"] - rng.uniform(260, 400)
        step = float(rng.choice(LONG_MM))
    elif variety == "coarse":
        step = float(rng.choice(COARSE_MM))
    elif variety == "short_field":
        top, bottom = z["C2"] + rng.uniform(-8, 12), z["C6"] - rng.uniform(-8, 9)
    elif variety == "head_and_neck":
        top, bottom = z["C1"] + rng.uniform(100, 150), z["C7"] - rng.uniform(20, 70)
    if variety in ANY_SPACING and rng.random() < THICK_SHARE:
        step = float(rng.choice(THICK_MM))
    return top, bottom, step


def vary_scan(rng: np.random.Generator, variety: str, neck: Neck, scan: Scan) -> Scan:
    """The scan as its variety has it: another stretch of the patient, or coarser slices."""
    top, bottom, step = _stretch(rng, variety, neck, scan)
    count = max(2, round((top - bottom) / step) + 1)
    wider = WIDER if variety in ("chest_only", "long_field") else 1.0
    y, x = (at.mean() + (at - at.mean()) * np.float32(wider) for at in (scan.grid.y, scan.grid.x))
    grid = Grid((top - step * np.arange(count)).astype(np.float32), y, x)
    thickness = scan.thickness_mm if step == scan.spacing_mm[0] else step
    pixel = round(wider * scan.spacing_mm[1], 6)
    spacing = (step, pixel, pixel)
    return replace(scan, grid=grid, spacing_mm=spacing, thickness_mm=thickness, prone=neck.prone)

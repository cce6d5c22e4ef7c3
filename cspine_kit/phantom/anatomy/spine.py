"""The spine: C1..C7 with their level shapes and T1..T3, posed into a neck.

In: a seeded generator. Out: a `Neck` of posed `Bone`s in mm. Example::

    neck = draw_neck(np.random.default_rng(7), variety=1.0)
    neck.bones["C4"].position

Sizes are adult means rounded from Panjabi et al., Spine 1991;16:861 (cervical) and 16:888
(thoracic), and for C1 from Doherty and Heggeness, Spine 1994;19:2497.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.anatomy.shapes import (
    Bar,
    Block,
    Bone,
    Primitive,
    Space,
    Vector,
    as_vector,
    chain,
    pair,
    rotation,
    scaled,
)
from cspine_kit.phantom.anatomy.skeleton import (
    draw_head,
    draw_larynx,
    draw_ribs,
    draw_shoulders,
)

SPINE: tuple[str, ...] = (*LEVELS, "T1", "T2", "T3")

BODY_MM: dict[str, tuple[float, float, float]] = {
    "C2": (9.0, 7.5, 9.0),
    "C3": (8.6, 7.6, 6.6),
    "C4": (9.0, 7.7, 6.5),
    "C5": (9.4, 7.8, 6.2),
    "C6": (10.4, 8.1, 6.2),
    "C7": (12.2, 8.4, 6.8),
    "T1": (13.8, 8.4, 8.0),
    "T2": (13.6, 8.8, 8.7),
    "T3": (13.2, 9.4, 9.2),
}
"""Half width, half depth and half height of the vertebral body."""

TRANSVERSE_MM = {"C2": 26, "C3": 26, "C4": 26.5, "C5": 27, "C6": 28.5, "C7": 34, "T1": 38}
"""Half distance between the tips of the transverse processes."""

SPINOUS_MM = {"C2": 17, "C3": 14, "C4": 14, "C5": 15, "C6": 21, "C7": 32, "T1": 33}
"""Length of the spinous process behind the canal."""

PILLAR_MM = {
    **{"C3": (11.4, 15.2), "C4": (12.4, 17.0), "C5": (13.2, 20.4), "C6": (13.2, 22.0)},
    **{"C7": (13.6, 24.0)},
}
"""How far the tips of the articular processes lie above and below the body's middle. They grow
longer toward C7, where they overlap their neighbors' like tiles."""

FACET_MM = 4.4
"""Half height of an articular process's rounded tip."""

DROOP_MM = {"C3": 9.0, "C4": 10.0, "C5": 12.5, "C6": 15.0, "C7": 21.0}
"""How far the tip of the spinous process lies below the body's middle, in the vertebra's frame."""

LEAN_DEG = {
    **{"C1": -18, "C2": -6, "C3": -3, "C4": 2, "C5": 8, "C6": 14, "C7": 20},
    **{"T1": 25, "T2": 28, "T3": 30},
}
"""Forward lean of each vertebra in a neutral, lordotic neck."""

CANAL_MM = 15.0
DISC_MM = 4.6


def atlas() -> list[Primitive]:
    """C1: a ring without a body; the origin is the center of its canal."""
    parts: list[Primitive] = []
    chain(parts, [(0, -16.0, 0), (8, -14.5, 0), (13, -10, 0)], 2.6, 3.1)
    pair(parts, Bar((16.5, -5.0, -4), (18.0, -5.0, 3.5), 6.5, 6.5, (0.95, 1.2, 1.05)))
    chain(parts, [(18, 1, 1), (17.5, 9, 0), (11, 17.5, -1), (0, 22.5, -5)], 2.7, 2.0)
    pair(parts, Bar((19, -3, 0), (36, 1, -1), 4.0, 3.2, (1.0, 1.2, 1.0)))
    pair(parts, Bar((27, -0.5, -12), (27, -0.5, 12), 3.0, 3.0, hole=True))
    return parts


def axis() -> list[Primitive]:
    """C2: body with dens; the origin is the center of its body."""
    hx, hy, hz = BODY_MM["C2"]
    parts: list[Primitive] = [Block((0, 0, 0), (hx, hy, hz), power=2.6, waist=0.1)]
    parts.append(Bar((0, -1.0, hz - 3), (0, -2.0, 21.5), 5.2, 4.8, (1.0, 1.05, 1.0)))
    pair(parts, Bar((13.5, 2, 6), (15.5, 3, 6.5), 6.0, 6.0, (1.15, 1.15, 0.75)))
    pair(parts, Bar((8, 4, 0), (16, 9, 0), 4.0, 3.6, (1.0, 1.0, 1.3)))
    pair(parts, Bar((17, 12, -3), (18, 13.5, -13), 5.0, 4.6))
    pair(parts, Bar((16, 3, -1), (25, 6, -6), 3.2, 2.4))
    pair(parts, Bar((18.5, 3, -16), (18.5, 3, 14), 2.6, 2.6, hole=True))
    pair(parts, Bar((16, 13, -4), (2, 24, -4), 3.0, 3.4, (1.0, 1.0, 2.0)))
    tip = hy + CANAL_MM + SPINOUS_MM["C2"]
    parts.append(Bar((0, 24, -4), (0, tip - 5, -10.5), 4.2, 4.0, (1.0, 1.0, 1.7)))
    pair(parts, Bar((2, tip - 5, -11.5), (6.5, tip, -14), 3.4, 2.6, (1.0, 1.0, 1.3)))
    return parts


def subaxial(level: str) -> list[Primitive]:
    """C3..C7: body, uncinate processes, pillars, foramina, laminae; the origin is the body."""
    hx, hy, hz = BODY_MM[level]
    pillar, tip_x = hx + 9.2, float(TRANSVERSE_MM[level])
    back = hy + CANAL_MM
    tip_y = back + SPINOUS_MM[level]
    last = level == "C7"
    parts: list[Primitive] = [Block((0, 0, 0), (hx, hy, hz), power=2.6, dome=0.8)]
    if not last:
        pair(parts, Bar((hx - 1.2, -2, hz - 1), (hx - 0.8, hy - 3, hz + 1), 1.7, 2.0))
    pair(parts, Bar((hx - 2, hy - 3, 0.5), (pillar - 2, hy + 3.5, 0.5), 2.9, 2.9, (1, 1, 1.3)))
    up, down = PILLAR_MM[level]
    top, low = (pillar, hy + 2.0, up - FACET_MM), (pillar, hy + 12.0, FACET_MM - down)
    pair(parts, Bar(top, low, FACET_MM, FACET_MM, (1.2, 0.68, 1.0)))
    pair(parts, Bar((hx - 2, -1.5, -1), (tip_x - 2, 0, -3), 2.3, 2.2))
    pair(parts, Bar((pillar, hy + 2, -1), (tip_x, 2.5, -3), 2.6, 3.1))
    hole_x, hole_r = hx + 5.6, (1.8 if last else 2.9)
    pair(parts, Bar((hole_x, 3.4, -12), (hole_x, 3.4, 12), hole_r, hole_r, hole=True))
    pair(parts, Bar((pillar - 1, hy + 9, -1), (1.5, back + 3, -3), 2.5, 2.7, (1.0, 1.0, 2.1)))
    droop = -DROOP_MM[level]
    if last:
        parts.append(Bar((0, back + 2, -3), (0, tip_y, droop), 3.2, 4.2, (1.0, 1.0, 1.5)))
    else:
        parts.append(Bar((0, back + 2, -3), (0, tip_y - 4, droop), 2.9, 2.9, (1.0, 1.0, 1.5)))
        pair(parts, Bar((1, tip_y - 5, droop), (5, tip_y, droop - 2), 2.5, 2.0))
    return parts


def thoracic(half: Vector, reach: float) -> list[Primitive]:
    """A thoracic vertebra: heart-shaped body, thick transverse processes, long sloping spinous
    process.

    Args:
        half: half width, half depth and half height of the body.
        reach: half distance between the tips of the transverse processes.
    """
    hx, hy, hz = half
    back = hy + CANAL_MM
    parts: list[Primitive] = [Block((0, 0, 0), (hx, hy, hz), power=2.3)]
    pair(parts, Bar((hx - 4, hy - 2, 3), (13, hy + 8, 3), 3.2, 3.2, (1, 1, 1.6)))
    pair(parts, Bar((13, hy + 8, hz), (14, hy + 10, -hz - 4), 4.2, 4.2))
    pair(parts, Bar((13, hy + 9, 2), (reach, hy + 14, 5), 4.2, 4.6, (1, 1, 1.2)))
    pair(parts, Bar((13, hy + 10, -2), (1.5, back + 4, -4), 2.8, 3.0, (1, 1, 2.6)))
    parts.append(Bar((0, back + 3, -4), (0, back + 30, -18), 3.4, 3.8, (1.0, 1.0, 1.6)))
    return parts


def parts_of(level: str) -> list[Primitive]:
    """Primitives of one vertebra of mean size in its own frame."""
    if level == "C1":
        return atlas()
    if level == "C2":
        return axis()
    if level in LEVELS:
        return subaxial(level)
    return thoracic(BODY_MM[level], {"T1": 37.0, "T2": 34.0}.get(level, 31.0))


@dataclass
class Neck:
    """A drawn patient: bones by name, spaces over and flesh under them."""

    bones: dict[str, Bone]
    spaces: list[Space]
    flesh: list[Space]
    size: float
    girth: float
    nod: float
    throat_mm: float
    """How far hyoid, larynx, airway and thyroid lie above their usual place against the spine."""
    lift_mm: float
    """How far the shoulders are drawn up."""
    variety: float
    axes: dict[str, tuple[Vector, Vector]] = field(default_factory=dict)
    """Per vertebra: center of the body (of the ring for C1) and direction of its own z."""
    prone: bool = False
    """Whether the patient lies face down, so that the table is in front."""
    bottom: Vector | None = None
    """Center of the lowest vertebra of a trunk below T3; None where the patient ends at T3."""


def _place(
    turns: dict[str, Vector], *, size: float, disc: float, worn: Mapping[str, float]
) -> dict[str, NDArray[np.float64]]:
    """Centers of all vertebrae: bodies stacked on discs, C1 around the dens; C4 at the origin."""
    up = {level: rotation(turns[level]) @ (0.0, 0.0, 1.0) for level in SPINE}
    at = {"C2": np.zeros(3)}
    for above, below in pairwise(SPINE[1:]):
        step = up[above] * BODY_MM[above][2] * size + up[below] * BODY_MM[below][2] * size
        at[below] = at[above] - step - worn.get(above, 1.0) * disc * (up[above] + up[below]) / 2
    at["C1"] = at["C2"] + rotation(turns["C2"]) @ (np.array([0.0, 7.5, 17.6]) * size)
    return {level: at[level] - at["C4"] for level in SPINE}


def draw_neck(
    rng: np.random.Generator,
    *,
    variety: float = 1.0,
    worn: Mapping[str, float] | None = None,
    stature: float | None = None,
    posture: Vector = (0.0, 0.0, 0.0),
) -> Neck:
    """Draw a patient. The center of C4's body lies at (0, 0, 0).

    Args:
        rng: draws everything that is left to chance.
        variety: scales every deviation from the mean (0 = the mean neck).
        worn: share of its height that the disc below a level has left, for narrow discs.
        stature: size against the mean adult's; drawn where it is None.
        posture: further lean forward, bend to the side and twist, in degrees.
    """
    drawn = 1.0 + variety * float(np.clip(rng.normal(0.0, 0.1), -0.2, 0.28))
    size = 0.94 * (drawn if stature is None else stature)
    lordosis = 1.0 + variety * rng.uniform(-1.0, 0.7)
    pitch = variety * float(np.clip(rng.normal(4.0, 8.0), -14, 20)) + posture[0]
    tilt, twist = variety * rng.uniform(-5, 5, 2) + posture[1:]
    disc = DISC_MM * size * (1.0 + variety * rng.uniform(-0.35, 0.15))
    turns: dict[str, Vector] = {}
    for i, level in enumerate(SPINE):
        lean = 8 + pitch + lordosis * (LEAN_DEG[level] - 8)
        fade = max(0.0, 1.0 - i / 9.0)
        own = 7.0 if level == "C1" else 2.0
        lean += variety * float(np.clip(rng.normal(0, own), -2 * own, 2 * own))
        turns[level] = (lean, tilt * fade, twist * fade + variety * rng.uniform(-1, 1))
    at = _place(turns, size=size, disc=disc, worn=worn or {})
    marrow, cortex = 260 + variety * rng.uniform(-110, 110), 1050 + variety * rng.uniform(-250, 250)
    shell = 1.0 + variety * rng.uniform(-0.3, 0.3)
    bones: dict[str, Bone] = {}
    for label, level in enumerate(SPINE, start=1):
        own = size * (1.0 + variety * rng.uniform(-0.03, 0.03))
        parts = scaled(parts_of(level), own)
        position = as_vector(at[level])
        bones[level] = Bone(level, parts, position, turns[level], label, cortex, marrow, shell)
    nod = 0.7 * (turns["C1"][0] - LEAN_DEG["C1"]) - 2.0 + variety * rng.uniform(-10, 10)
    c1, t1 = bones["C1"].position, bones["T1"].position
    throat = variety * float(np.clip(rng.normal(0, 9), -20, 20))
    lift = variety * float(np.clip(rng.normal(-2, 16), -35, 30))
    head, flesh, spaces = draw_head(rng, c1, size=size, nod=nod, throat_mm=throat, variety=variety)
    girdle, lungs = draw_shoulders(t1, size=size, lift=lift)
    ribs = [
        rib
        for order, level in enumerate(SPINE[-3:])
        for rib in draw_ribs(level, order, bones[level].position, size=size)
    ]
    x, y, z = bones["C5"].position
    larynx = draw_larynx(
        (x, y - 30 * size, z + throat), size=size, calcium=variety * float(rng.random())
    )
    bones |= {bone.name: bone for bone in (*head, *girdle, *ribs, larynx)}
    axes = {k: (bones[k].position, as_vector(rotation(turns[k]) @ (0.0, 0.0, 1.0))) for k in SPINE}
    girth = 1.0 + variety * float(rng.uniform(-0.12, 0.25))
    return Neck(bones, [*lungs, *spaces], flesh, size, girth, nod, throat, lift, variety, axes)

"""Fractures of C1..C7: breaks with gap, displacement, step-off and rotation, from plain to faint.

In: a healthy `Bone` and a generator. Out: the same bone as displaced fragments or with lucent
lines, and the injury's name. Example::

    bone, injury = broken(neck.bones["C5"], rng, difficulty="real")

Kinds and their levels follow the usual classifications: Jefferson and arch breaks of C1,
Anderson and D'Alonzo types I-III of the dens, hangman (Effendi), AO Spine subaxial A1, A3/A4 and
posterior element injuries. Shares per level are chosen so that all occur.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cspine_kit.phantom.anatomy.shapes import Block, Bone, Cut, Fragment, Region, Slit, Vector
from cspine_kit.phantom.anatomy.spine import BODY_MM, CANAL_MM, TRANSVERSE_MM

EASY_GAP_MM = (3.2, 4.4)
EASY_STEP_MM = (4.0, 6.0)

REAL_GAP_MM = (0.3, 2.5)
FAINT = 0.35
"""Below this severity a break is a line without displacement, partly healed."""


@dataclass(frozen=True)
class Break:
    """Where a piece breaks off, where it tends to go, and how far a mere line reaches."""

    region: Region
    away: Vector
    reach_mm: float = 14.0


def _cut(rng: np.random.Generator, point: Vector, normal: Vector, spread: float = 0.25) -> Cut:
    """A cut about `point` and `normal` (inside is where the normal points), both varied."""
    n = np.array(normal, float) + rng.uniform(-spread, spread, 3)
    n /= np.linalg.norm(n)
    p = np.array(point, float) + rng.uniform(-1.0, 1.0, 3)
    phase = float(rng.uniform(0, 6))
    return Cut(
        (float(p[0]), float(p[1]), float(p[2])),
        (float(n[0]), float(n[1]), float(n[2])),
        float(rng.uniform(0.2, 0.9)),
        phase,
    )


def _side(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def jefferson(level: str, rng: np.random.Generator) -> list[Break]:
    """Both arches of C1 broken; one lateral mass driven outward."""
    s = _side(rng)
    front, back = rng.uniform(2, 8), rng.uniform(2, 10)
    slope = float(np.arctan2(back - front, 34.0))
    point = (s * (front + back) / 2, 2.0, 0.0)
    normal = (s * float(np.cos(slope)), -float(np.sin(slope)), 0.0)
    return [Break((_cut(rng, point, normal, 0.08),), (s * 1.0, 0.0, 0.0), 30.0)]


def arch(level: str, rng: np.random.Generator) -> list[Break]:
    """One break of the posterior or anterior arch of C1."""
    s = _side(rng)
    if rng.random() < 0.65:
        across = _cut(rng, (s * 12.0, 16.0, 1.0), (-s * 0.75, 0.65, 0.0))
        return [Break((across, _cut(rng, (0, 9, 0), (0, 1, 0), 0.05)), (0.0, 0.8, 0.6), 8.0)]
    across = _cut(rng, (s * 6.0, -14.5, 0.0), (s * 0.9, -0.3, 0.0))
    return [Break((across, _cut(rng, (0, -10, 0), (0, -1, 0), 0.05)), (s * 0.6, -0.6, 0.0), 7.0)]


def dens(level: str, rng: np.random.Generator) -> list[Break]:
    """Dens types I (tip), II (base, most common) and III (into the body)."""
    kind = rng.choice(3, p=(0.08, 0.57, 0.35))
    z, half = ((18.5, 9.0), (10.5, 9.0), (4.0, 13.0))[int(kind)]
    region = (
        _cut(rng, (0, -1, z), (0, rng.uniform(-0.4, 0.4), 1), 0.1),
        Cut((half, 0, 0), (-1, 0, 0), 0.0),
        Cut((-half, 0, 0), (1, 0, 0), 0.0),
        Cut((0, 9.0, 0), (0, -1, 0), 0.0),
    )
    return [Break(region, (0.15, 0.9 * _side(rng), 0.1), half + 3.0)]


def hangman(level: str, rng: np.random.Generator) -> list[Break]:
    """Both partes interarticulares of C2: the posterior arch parts from the body."""
    point = (0, rng.uniform(8.5, 11.5), 0)
    return [Break((_cut(rng, point, (rng.uniform(-0.3, 0.3), 1, 0.1), 0.15),), (0, 1, -0.2), 24.0)]


def corner(level: str, rng: np.random.Generator) -> list[Break]:
    """A teardrop: the lower or upper front corner of a body."""
    hx, hy, hz = BODY_MM[level]
    up = 1 if rng.random() < 0.3 else -1
    cut = _cut(rng, (0, -0.45 * hy, up * 0.45 * hz), (0, -0.75, up * 0.65), 0.15)
    return [Break((cut, Cut((0, 1, 0), (0, -1, 0), 0.0)), (0, -0.8, up * 0.4), hx)]


def sagittal(level: str, rng: np.random.Generator) -> list[Break]:
    """A vertical split of the body and the arch."""
    s = _side(rng)
    point = (s * rng.uniform(0.5, 4.0), 0, 0)
    return [Break((_cut(rng, point, (s, 0, 0), 0.2),), (s * 0.8, 0.3, 0.1), 24.0)]


def retropulsion(level: str, rng: np.random.Generator) -> list[Break]:
    """Burst: the back wall of the body driven into the canal, with a split in front of it."""
    hx, hy, _ = BODY_MM[level]
    wide = rng.uniform(0.45, 0.75) * hx
    region = (
        _cut(rng, (0, hy - rng.uniform(3, 6), 0), (0, 1, 0), 0.12),
        Cut((wide, 0, 0), (-1, 0, 0), 0.3),
        Cut((-wide, 0, 0), (1, 0, 0), 0.3),
        Cut((0, hy + 2.5, 0), (0, -1, 0), 0.0),
    )
    return [Break(region, (0, 1, 0.1), hx), *corner(level, rng)]


def pillar(level: str, rng: np.random.Generator) -> list[Break]:
    """Facet or lateral mass of one side."""
    s = _side(rng)
    hx, hy, _ = BODY_MM[level]
    cut = _cut(rng, (s * (hx + 9), hy + 7, 1), (0, -0.35, 0.9 * _side(rng)), 0.3)
    side = Cut((s * (hx + 3.5), 0, 0), (s, 0, 0), 0.2)
    return [Break((cut, side, Cut((0, hy - 1, 0), (0, 1, 0), 0.2)), (s * 0.4, 0.7, -0.4), 9.0)]


def lamina(level: str, rng: np.random.Generator) -> list[Break]:
    """One lamina, beside the spinous process."""
    s = _side(rng)
    back = BODY_MM[level][1] + CANAL_MM
    cut = _cut(rng, (s * rng.uniform(5, 10), back - 2, -2), (-s * 0.8, 0.6, 0), 0.15)
    return [Break((cut, Cut((0, back - 9, 0), (0, 1, 0), 0.2)), (0, 0.8, 0.3), 9.0)]


def spinous(level: str, rng: np.random.Generator) -> list[Break]:
    """Clay shoveler: the spinous process breaks off and sinks."""
    back = BODY_MM[level][1] + CANAL_MM
    cut = _cut(rng, (0, back + rng.uniform(5, 11), -4), (0, 1, -0.2), 0.2)
    return [Break((cut,), (0, 0.6, -0.8), 11.0)]


def transverse(level: str, rng: np.random.Generator) -> list[Break]:
    """A transverse process through its foramen."""
    s = _side(rng)
    x = BODY_MM[level][0] + rng.uniform(4.5, 8.5)
    x = min(x, TRANSVERSE_MM[level] - 5.0)
    cut = _cut(rng, (s * x, 2, -1), (s, 0, 0), 0.2)
    front = Cut((0, BODY_MM[level][1] - 0.5, 0), (0, -1, 0), 0.2)
    return [Break((cut, front), (s * 0.8, 0.1, -0.5), 9.0)]


Kind = Callable[[str, np.random.Generator], list[Break]]

POSTERIOR: dict[Kind, float] = {pillar: 3, lamina: 3, spinous: 2, transverse: 3}
SUBAXIAL: dict[Kind, float] = {**POSTERIOR, corner: 3, sagittal: 2, retropulsion: 2}

KINDS: dict[str, dict[Kind, float]] = {
    "C1": {jefferson: 4, arch: 6},
    "C2": {dens: 6, hangman: 3, corner: 1, transverse: 2, lamina: 1},
    **dict.fromkeys(("C3", "C4", "C5", "C6"), SUBAXIAL),
    "C7": {**SUBAXIAL, spinous: 4, transverse: 5},
}
"""Relative frequency of each kind by level."""

WEDGED = (corner, retropulsion)
"""Kinds that come with loss of height in front."""


def easy_split(bone: Bone, rng: np.random.Generator) -> Bone:
    """A plain vertical split through the whole vertebra: wide gap, step-off, some rotation."""
    angle = np.radians(rng.uniform(-28, 28))
    side = _side(rng)
    gap, step = rng.uniform(*EASY_GAP_MM), rng.uniform(*EASY_STEP_MM)
    normal = (side * float(np.cos(angle)), side * float(np.sin(angle)), 0.0)
    point = (float(side * rng.uniform(1.5, 5.0)), 0.0, 0.0)
    region = (Cut(point, normal, phase=float(rng.uniform(0, 6))),)
    step *= _side(rng)
    shift = (gap * normal[0] - step * normal[1], gap * normal[1] + step * normal[0], 0.0)
    turn = (0.0, 0.0, float(rng.uniform(-6, 6)))
    moved = Fragment(region, shift=shift, turn=turn, pivot=point)
    return replace(bone, fragments=(Fragment(without=(region,)), moved))


def _displace(piece: Break, severity: float, rng: np.random.Generator) -> Fragment:
    """The broken-off piece, opened by the gap and driven further by severity."""
    opening = REAL_GAP_MM[0] + (REAL_GAP_MM[1] - REAL_GAP_MM[0]) * severity
    drift = severity**1.5 * rng.uniform(0.5, 4.0)
    n, away = np.array(piece.region[0].normal), np.array(piece.away)
    shift = opening * n + drift * away + severity * rng.uniform(-0.8, 0.8, 3)
    turn = severity * rng.uniform(-9, 9, 3)
    as_tuple = (float(shift[0]), float(shift[1]), float(shift[2]))
    turned = (float(turn[0]), float(turn[1]), float(turn[2]))
    return Fragment(piece.region, shift=as_tuple, turn=turned, pivot=piece.region[0].point)


def _wedge(bone: Bone, share: float) -> Bone:
    parts = [
        replace(p, wedge=share) if isinstance(p, Block) and not p.hole else p for p in bone.parts
    ]
    return replace(bone, parts=parts)


def real_injury(bone: Bone, rng: np.random.Generator) -> tuple[Bone, str]:
    """One or two breaks of a kind that the level suffers, with a drawn severity."""
    level = bone.name
    kinds = list(KINDS[level])
    weights = np.array([KINDS[level][kind] for kind in kinds], float)
    severity = float(rng.uniform(0.1, 1.0))
    count = 1 + int(rng.random() < 0.35 * severity)
    chosen = rng.choice(len(kinds), count, replace=False, p=weights / weights.sum())
    pieces = [piece for i in chosen for piece in kinds[int(i)](level, rng)]
    names = "+".join(kinds[int(i)].__name__ for i in chosen)
    if any(kinds[int(i)] in WEDGED for i in chosen):
        bone = _wedge(bone, float(0.45 * severity * rng.uniform(0.2, 1.0)))
    if severity < FAINT:
        gap, healed = rng.uniform(0.4, 1.0), rng.uniform(0.55, 1.0)
        slits = tuple(Slit(p.region[0], float(gap), p.reach_mm, float(healed)) for p in pieces)
        return replace(bone, fragments=(Fragment(slits=slits),)), f"{names} (line)"
    moved = tuple(_displace(piece, severity, rng) for piece in pieces)
    main = Fragment(without=tuple(piece.region for piece in pieces))
    return replace(bone, fragments=(main, *moved)), names


def broken(bone: Bone, rng: np.random.Generator, *, difficulty: str) -> tuple[Bone, str]:
    """The bone with an injury of its level, and the injury's name.

    `easy` draws only plain, displaced splits that survive small pixels; `real` all kinds.
    """
    if difficulty == "easy":
        return easy_split(bone, rng), "split"
    return real_injury(bone, rng)

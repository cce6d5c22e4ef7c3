"""The rest of the skeleton around the spine, and the air and fat spaces inside it.

In: where C1 and T1 lie, and poses. Out: `Bone`s and `Space`s (soft fillings). Example::

    c1 = (0.0, 0.0, 60.0)
    bones, flesh, spaces = draw_head(rng, c1, size=1.0, nod=4.0, throat_mm=0.0, variety=1.0)
    girdle, lungs = draw_shoulders((0.0, 10.0, -60.0), size=1.0, lift=0.0)

Places are in mm from the center of C1's canal, measured once on an adult head-and-neck CT and
rounded; they only have to look right.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.anatomy.shapes import (
    Bar,
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

AIR_HU = -1000.0

VAULT_CENTER: Vector = (0.0, 27.0, 69.0)
VAULT_HALF: Vector = (69.0, 87.0, 66.0)
VAULT_NOD = -20.0
"""Skull vault: center, half axes and how far its front is tilted up (degrees)."""
JAW_JOINT: Vector = (0.0, -13.0, 44.0)
"""Where the jaw hinges."""
FORAMEN: tuple[Vector, Vector] = ((0, 6, -60), (0, 4, 28))
"""Axis of the foramen magnum's tube."""


def ball(center: Vector, half: Vector, *, hole: bool = False) -> Bar:
    """An ellipsoid."""
    return Bar(center, center, 1.0, 1.0, half, hole)


def _vault(thickness: float) -> list[Primitive]:
    """A shell with the foramen magnum, in the vault's own frame."""
    a, b = ((np.array(p) - VAULT_CENTER) @ rotation((VAULT_NOD, 0, 0)) for p in FORAMEN)
    x, y, z = VAULT_HALF
    return [
        ball((0, 0, 0), VAULT_HALF),
        ball((0, 0, 0), (x - thickness, y - thickness, z - thickness), hole=True),
        Bar(as_vector(a), as_vector(b), 15, 15, (1, 1.15, 1), hole=True),
    ]


def _base() -> list[Primitive]:
    """Condyles, clivus, petrous pyramids, mastoids, styloids, pterygoid plates."""
    parts: list[Primitive] = []
    pair(parts, Bar((13, -8, 9), (18, 2, 12), 5.0, 5.5, (1, 1, 0.8)))
    parts.append(Bar((0, -13, 18), (0, -24, 50), 5, 9, (1.7, 0.7, 1)))
    pair(parts, Bar((14, -20, 34), (56, 6, 36), 8, 11))
    pair(parts, ball((56, 14, 18), (10, 13, 18)))
    pair(parts, Bar((38, -8, 18), (33, -20, -10), 2.2, 1.2))
    pair(parts, Bar((12, -44, 52), (14, -42, 24), 1.8, 1.8, (1, 3.5, 1)))
    pair(parts, Bar((18, -8, 22), (40, 30, 4), 4, 4, (1, 1, 0.8)))
    return parts


def _face() -> list[Primitive]:
    """Upper jaw, palate, walls of the sinuses, cheek bones, bridge of the nose."""
    parts: list[Primitive] = []
    chain(parts, [(0, -92, 28), (16, -84, 28), (23, -60, 28)], 4.5, 1.6)
    parts.append(Bar((0, -58, 39), (0, -86, 38), 12, 12, (1.5, 1, 0.14)))
    pair(parts, ball((25, -62, 56), (16, 19, 18)))
    parts.append(ball((0, -30, 72), (17, 15, 14)))
    chain(
        parts, [(62, -2, 52), (66, -30, 55), (48, -64, 60), (36, -70, 76), (46, -62, 100)], 3, 1.4
    )
    pair(parts, Bar((7, -86, 100), (10, -92, 62), 2, 2))
    parts.append(Bar((0, -56, 60), (0, -98, 60), 0.6, 0.6, (1, 1, 26)))
    pair(parts, Bar((16, -58, 92), (20, -84, 92), 1.5, 1.5, (1, 1, 12)))
    pair(parts, Bar((12, -88, 112), (42, -66, 108), 4, 3.5))
    return parts


def _jaw() -> list[Primitive]:
    parts: list[Primitive] = []
    pair(parts, ball((50, -13, 44), (9, 5, 6)))
    pair(parts, Bar((49, -14, 40), (46, -26, -8), 4.2, 4.4, (0.9, 2.4, 1)))
    pair(parts, Bar((46, -30, -6), (26, -76, -10), 4.6, 5.0, (1, 1, 2.2)))
    pair(parts, Bar((26, -76, -10), (11, -95, -13), 5.0, 5.2, (1, 1, 2.3)))
    pair(parts, Bar((11, -95, -13), (0, -99, -13), 5.2, 5.4, (1, 1, 2.3)))
    return parts


def _teeth(z: float, front: float, depth: float, missing: NDArray[np.bool_]) -> list[Primitive]:
    """One row of teeth at height `z`; `missing` (14,) leaves gaps."""
    parts: list[Primitive] = []
    for a in np.linspace(-1.0, 1.0, 14)[~missing]:
        x, y = float(25.0 * np.sin(1.35 * a)), float(front + depth * a * a)
        parts.append(Bar((x, y, z - 4), (x, y, z + 5), 3.0, 2.6, (1, 1, 1)))
    return parts


def _hyoid() -> list[Primitive]:
    parts: list[Primitive] = []
    chain(parts, [(0, -56, -46), (10, -53, -46), (19, -36, -40)], 2.4, 1.3)
    return parts


def _larynx() -> list[Primitive]:
    """Thyroid and cricoid cartilage, partly calcified, from the origin at the vocal cords."""
    parts: list[Primitive] = []
    chain(parts, [(0, -20, 2), (14, -6, 2), (17, 4, 2)], 1.6, 6.0)
    chain(parts, [(0, -13, -16), (10, -6, -16), (9, 6, -16), (0, 10, -15)], 2.0, 2.2)
    return parts


def draw_head(
    rng: np.random.Generator,
    c1: Vector,
    *,
    size: float,
    nod: float,
    throat_mm: float,
    variety: float,
) -> tuple[list[Bone], list[Space], list[Space]]:
    """Skull, face, jaw, teeth and hyoid on C1, and what fills it.

    Returns:
        Bones; flesh below them (brain); spaces over them (sinuses, mastoid cells, orbits).
    """
    turn = (nod, 0.0, 0.0)
    x, y, z = c1
    vault_at = as_vector(np.array(c1) + size * (rotation(turn) @ VAULT_CENTER))
    vault_turn = (nod + VAULT_NOD, 0.0, 0.0)
    thickness = 6.5 + variety * rng.uniform(-2.0, 2.0)
    thin = 1.6
    open_deg = variety * min(float(rng.exponential(5.0)), 26.0)
    missing = rng.random((2, 14)) < variety * 0.25 * rng.random()
    joint = np.array(JAW_JOINT)
    jaw_turn = (nod + open_deg, 0.0, 0.0)
    opened = joint - rotation((open_deg, 0, 0)) @ joint
    jaw_at = as_vector(np.array(c1) + size * (rotation(turn) @ opened))
    upper, lower = _teeth(18.0, -94.0, 34.0, missing[0]), _teeth(5.0, -92.0, 32.0, missing[1])
    foramen: list[Primitive] = [Bar(*FORAMEN, 15, 15, (1, 1.15, 1), hole=True)]
    bones = [
        Bone("vault", scaled(_vault(thickness), size), vault_at, vault_turn, 0, 1350, 900, 1.8),
        Bone("skull_base", scaled(_base() + foramen, size), c1, turn, 0, 1000, 420, 1.6),
        Bone("face", scaled(_face(), size), c1, turn, 0, 850, 250, 1.2),
        Bone("jaw", scaled(_jaw(), size), jaw_at, jaw_turn, 0, 1450, 500, 2.4),
        Bone("upper_teeth", scaled(upper, size), c1, turn, 0, 2400, 1500, 1.2),
        Bone("lower_teeth", scaled(lower, size), jaw_at, jaw_turn, 0, 2400, 1500, 1.2),
        Bone("hyoid", scaled(_hyoid(), size), (x, y, z + throat_mm), turn, 0, 600, 200, 0.8),
    ]
    air: list[Primitive] = []
    pair(air, ball((25, -62, 56), (16 - thin, 19 - thin, 18 - thin)))
    air.append(ball((0, -30, 72), (17 - thin, 15 - thin, 14 - thin)))
    pair(air, ball((5.5, -76, 56), (3.4, 20, 14)))
    pair(air, ball((7, -72, 88), (6, 16, 10)))
    pair(air, Bar((58, -3, 40), (84, -2, 40), 3.5, 3.5))
    cells = rng.uniform(-1, 1, (26, 3)) * (8, 10, 15) + (56, 14, 18)
    for cx, cy, cz in cells:
        pair(air, ball((cx, cy, cz), (2.2, 2.4, 2.6)))
    half = size * (np.array(VAULT_HALF) - thickness)
    brain = Space(ball((0, 0, 0), as_vector(half)), 36.0, vault_at, vault_turn)
    spaces: list[Space] = []
    orbits: list[Primitive] = []
    pair(orbits, ball((32, -70, 90), (16, 20, 16)))
    globes: list[Primitive] = []
    pair(globes, ball((32, -80, 90), (12, 12, 12)))
    for group, hu in ((orbits, -85.0), (globes, 15.0), (air, AIR_HU)):
        spaces += [Space(part, hu, c1, turn) for part in scaled(group, size)]
    return bones, [brain], spaces


def draw_larynx(at: Vector, *, size: float, calcium: float) -> Bone:
    """Laryngeal cartilages around the airway; `calcium` 0..1 is how bright they are."""
    hu = 120 + 380 * calcium
    return Bone("larynx", scaled(_larynx(), size), at, (0, 0, 0), 0, hu, 90 + 80 * calcium, 0.8)


def draw_ribs(level: str, order: int, at: Vector, *, size: float) -> list[Bone]:
    """Both ribs of T1 (order 0) to T3 as chains of bars around the chest."""
    width, depth = (50 + 17 * order) * size, (40 + 12 * order) * size
    bones = []
    for side, word in ((1, "left"), (-1, "right")):
        points: list[Vector] = [(side * 14 * size, 9.0 * size, 4.0)]
        for a in np.radians(np.linspace(60, -75, 10)):
            drop = 4 - 0.30 * depth * (1 - np.sin(a))
            forward = -6 * size + depth * (np.sin(a) - 0.45)
            points.append((side * (14 * size + width * np.cos(a)), forward, drop))
        parts: list[Primitive] = [Bar(a, b, 3.4, 3.4, (1.0, 1.0, 1.5)) for a, b in pairwise(points)]
        bones.append(Bone(f"rib_{level}_{word}", parts, at, (0, 0, 0), 0, 850, 180, 0.8))
    return bones


def draw_shoulders(t1: Vector, *, size: float, lift: float) -> tuple[list[Bone], list[Space]]:
    """Clavicles, scapular spines, humeral heads and manubrium, with the lung apices."""
    girdle: list[Primitive] = []
    chain(girdle, [(20, -62, -42), (62, -52, -22 + lift), (128, -8, -8 + lift)], 5.5, 1.0)
    chain(girdle, [(48, 52, -40 + lift), (100, 48, -22 + lift), (140, 18, -4 + lift)], 4.5, 1.6)
    pair(girdle, ball((158, 6, -34 + lift), (24, 24, 26)))
    manubrium: list[Primitive] = [ball((0, -64, -62), (26, 7, 24))]
    lungs: list[Primitive] = []
    pair(lungs, ball((44, -12, -48), (36, 40, 42)))
    spaces = [Space(part, -860.0, t1) for part in scaled(lungs, size)]
    bones = [
        Bone("girdle", scaled(girdle, size), t1, (0, 0, 0), 0, 1000, 220, 1.6),
        Bone("manubrium", scaled(manubrium, size), t1, (0, 0, 0), 0, 700, 150, 1.0),
    ]
    return bones, spaces

"""Age, variants and repair: everything in healthy bone that looks like a fracture, and hardware.

In: a patient's bones and a generator. Out: the same with mimics, and bones for plates and screws.
Example: `wear_out(rng, neck.bones, neck.spaces)`.

Mimics: nutrient canals, unfused ossicles, limbus fragments, Schmorl nodes, osteophytes with clefts,
loose pieces behind spinous processes, bridging bone (ankylosis).
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.anatomy.shapes import (
    Bar,
    Block,
    Bone,
    Primitive,
    Space,
    Vector,
    as_vector,
    rotation,
)
from cspine_kit.phantom.anatomy.spine import BODY_MM, CANAL_MM

HARDWARE_SHARE = 0.04
ANKYLOSIS_SHARE = 0.04
METAL_HU = 6000.0
CANAL_HU = 60.0


def _nutrient_canals(rng: np.random.Generator, bone: Bone) -> list[Space]:
    """The basivertebral vein's canal and thin vessels through the front cortex, without lining."""
    hx, hy, hz = BODY_MM[bone.name]
    z = float(rng.uniform(-0.3, 0.3) * hz)
    canals = [Bar((0, hy + 1, z), (0, 0.1 * hy, z), 1.1, 0.5, (1.8, 1, 0.7))]
    for _ in range(int(rng.integers(0, 3))):
        x, z = float(rng.uniform(-0.7, 0.7) * hx), float(rng.uniform(-0.6, 0.6) * hz)
        tip = (0.4 * x, -0.2 * hy, z + float(rng.uniform(-1, 1)))
        canals.append(Bar((x, -hy - 1, z), tip, 0.55, 0.35))
    return [Space(canal, CANAL_HU, bone.position, bone.turn) for canal in canals]


def _schmorl(rng: np.random.Generator, level: str) -> Primitive:
    hx, hy, hz = BODY_MM[level]
    place = (float(rng.uniform(-0.5, 0.5) * hx), float(rng.uniform(-0.3, 0.6) * hy))
    end = float(rng.choice((-1.0, 1.0))) * hz
    r = float(rng.uniform(1.5, 3.0))
    return Bar((*place, end), (*place, end), r, r, (1.2, 1.0, 0.9), hole=True)


def _osteophytes(rng: np.random.Generator, level: str, amount: float) -> list[Primitive]:
    """Spurs at the front edges; some end in a loose ossicle behind a cleft."""
    hx, hy, hz = BODY_MM[level]
    spurs: list[Primitive] = []
    for end in (-1.0, 1.0):
        if rng.random() < amount:
            x, reach = float(rng.uniform(-0.5, 0.5) * hx), float(rng.uniform(1.5, 4.0) * amount)
            root, tip = (x, -hy + 1.5, end * (hz - 1)), (x, -hy - reach, end * (hz + 0.4 * reach))
            spurs.append(Bar(root, tip, 2.6, 1.2, (1.9, 1, 1)))
            if rng.random() < 0.25:
                loose = (x, -hy - reach - 3.2, end * (hz + 0.5 * reach))
                spurs.append(Bar(loose, loose, 1.6, 1.6, (1.5, 1, 1), blend=0.0))
    return spurs


def _limbus(rng: np.random.Generator, level: str) -> list[Primitive]:
    """A rounded, corticated corner that never fused: a cleft and a small separate piece."""
    hx, hy, hz = BODY_MM[level]
    x, end = float(rng.uniform(-0.4, 0.4) * hx), float(rng.choice((-1.0, 1.0)))
    corner, piece = (x, -hy + 0.5, end * (hz - 0.5)), (x, -hy - 0.8, end * (hz + 0.8))
    return [
        Bar(corner, corner, 3.2, 3.2, (1.6, 1, 1), hole=True),
        Bar(piece, piece, 1.9, 1.9, (1.6, 1, 1), blend=0.0),
    ]


def _nuchal_ossicle(rng: np.random.Generator, level: str) -> Primitive:
    """A calcified piece behind a spinous process: no clay shoveler."""
    y = BODY_MM[level][1] + CANAL_MM + float(rng.uniform(22, 30))
    z = float(rng.uniform(-10, -4))
    return Bar((0, y, z - 2), (0, y, z + 2), 2.0, 2.0, blend=0.0)


def age(rng: np.random.Generator, bone: Bone, wear: float) -> Bone:
    """One cervical vertebra with the variants and the wear (0 young .. 1 old) of its owner."""
    level = bone.name
    if level == "C1":
        return bone
    extra: list[Primitive] = []
    extra += _osteophytes(rng, level, wear if level in ("C4", "C5", "C6", "C7") else 0.4 * wear)
    if rng.random() < 0.08 + 0.1 * wear:
        extra.append(_schmorl(rng, level))
    if rng.random() < 0.04:
        extra += _limbus(rng, level)
    if level in ("C5", "C6", "C7") and rng.random() < 0.05:
        extra.append(_nuchal_ossicle(rng, level))
    return replace(bone, parts=[*bone.parts, *extra])


def _front(bone: Bone, forward_mm: float) -> Vector:
    """A point in front of a vertebral body, in world coordinates."""
    y = -BODY_MM[bone.name][1] - forward_mm
    return as_vector(np.array(bone.position) + rotation(bone.turn) @ (0.0, y, 0.0))


def bridge(rng: np.random.Generator, bones: dict[str, Bone]) -> list[Bone]:
    """Bridging bone in front of three to five bodies (ankylosis)."""
    first = int(rng.integers(1, 4))
    levels = LEVELS[first : first + int(rng.integers(3, 6))]
    points = [_front(bones[level], 2.0) for level in levels]
    parts: list[Primitive] = [Bar(a, b, 3.0, 3.0, (2.0, 1, 1)) for a, b in pairwise(points)]
    return [Bone("ankylosis", parts, cortex_hu=850.0, marrow_hu=250.0)]


def fuse(rng: np.random.Generator, bones: dict[str, Bone]) -> list[Bone]:
    """A front plate over two bodies with four screws."""
    first = int(rng.integers(2, 6))
    pair = [bones[level] for level in LEVELS[first : first + 2]]
    a, b = (_front(bone, 1.5) for bone in pair)
    metal: list[Primitive] = [Bar(a, b, 2.0, 2.0, (4.5, 0.8, 1.6))]
    for bone in pair:
        turned, origin = rotation(bone.turn), np.array(bone.position)
        hy = BODY_MM[bone.name][1]
        for side in (-1.0, 1.0):
            head = as_vector(origin + turned @ (6.0 * side, -hy - 2.0, 0.0))
            tip = as_vector(origin + turned @ (3.5 * side, 0.55 * hy, 0.0))
            metal.append(Bar(head, tip, 1.7, 1.3, blend=0.0))
    cage_at = as_vector((np.array(pair[0].position) + np.array(pair[1].position)) / 2)
    cage: list[Primitive] = [Block((0, 0, 0), (7.0, 5.5, 2.6), 3.0)]
    return [
        Bone("plate", metal, cortex_hu=METAL_HU, marrow_hu=METAL_HU),
        Bone("cage", cage, cage_at, pair[0].turn, cortex_hu=900.0, marrow_hu=300.0),
    ]


def wear_out(rng: np.random.Generator, bones: dict[str, Bone], spaces: list[Space]) -> list[str]:
    """Give bones and the spaces in them age, variants, perhaps hardware, in place; returns what."""
    wear = float(rng.beta(1.4, 1.8))
    for level in LEVELS:
        bones[level] = age(rng, bones[level], wear)
        if level != "C1":
            spaces += _nutrient_canals(rng, bones[level])
    found = [f"wear {wear:.2f}"]
    if rng.random() < ANKYLOSIS_SHARE * 2 * wear:
        bones |= {bone.name: bone for bone in bridge(rng, bones)}
        found.append("ankylosis")
    if rng.random() < HARDWARE_SHARE:
        bones |= {bone.name: bone for bone in fuse(rng, bones)}
        found.append("hardware")
    return found

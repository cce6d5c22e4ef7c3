"""Fractures: lucent gaps with displacement, drawn per fractured level.

In: a healthy `Bone` and a generator. Out: the same bone as displaced fragments. Example::

    neck.bones["C5"] = broken(neck.bones["C5"], rng, difficulty="easy")
"""

from dataclasses import replace

import numpy as np

from cspine_kit.phantom.shapes import Bone, Cut, Fragment

EASY_GAP_MM = (2.6, 3.6)
EASY_STEP_MM = (3.0, 5.0)


def split(bone: Bone, rng: np.random.Generator) -> Bone:
    """A plain vertical split through the whole vertebra: gap, step-off and rotation."""
    angle = np.radians(rng.uniform(-28, 28))
    side = int(rng.choice((-1, 1)))
    gap, step = rng.uniform(*EASY_GAP_MM), rng.uniform(*EASY_STEP_MM)
    normal = (float(np.cos(angle)), float(np.sin(angle)), float(rng.uniform(-0.12, 0.12)))
    offset = side * rng.uniform(1.5, 5.0)
    point = (float(offset), 0.0, 0.0)
    phase = float(rng.uniform(0, 6))
    sign = 1.0 if side > 0 else -1.0
    along = (-normal[1], normal[0], 0.0)
    away = rng.choice((-1.0, 1.0))
    shift = tuple(
        float(sign * gap * n + away * step * t) for n, t in zip(normal, along, strict=True)
    )
    kept = Cut(point, normal, 0.0, phase=phase, mirror=side < 0)
    moved = Cut(point, normal, 0.0, phase=phase, mirror=side > 0)
    turn = (0.0, 0.0, float(rng.uniform(-6, 6)))
    fragments = (Fragment((kept,)), Fragment((moved,), shift, turn, point))  # type: ignore[arg-type]
    return replace(bone, fragments=fragments)


def broken(bone: Bone, rng: np.random.Generator, *, difficulty: str) -> Bone:
    """The bone with an injury of its level."""
    del difficulty
    return split(bone, rng)

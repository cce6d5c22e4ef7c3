"""The trunk below T3, for scans that go on over the chest: T4..L5, ribs, lungs.

In: a `Neck`. Out: the same with more bones and flesh, in place. Example::

    add_trunk(neck)
    neck.bones["L1"].position

Only roughly shaped: it is there so that a level finder sees vertebrae that are no cervical ones.
"""

from itertools import pairwise

import numpy as np

from cspine_kit.phantom.anatomy.shapes import Bar, Block, Bone, Space, as_vector, rotation, scaled
from cspine_kit.phantom.anatomy.skeleton import ball, draw_ribs
from cspine_kit.phantom.anatomy.spine import BODY_MM, DISC_MM, Neck, thoracic

TRUNK: tuple[str, ...] = (*(f"T{k}" for k in range(4, 13)), *(f"L{k}" for k in range(1, 6)))
THORACIC_LABELS = 19
"""The last label that the competition's masks know: T12."""
RIBS_TO = 10
DISC_HU, LUNG_HU, CORD_HU = 95.0, -860.0, 42.0


def add_trunk(neck: Neck) -> None:
    """Give a neck the vertebrae T4..L5 with ribs, discs, cord and lungs, in place."""
    size, model = neck.size, neck.bones["T3"]
    leans = np.interp(np.arange(len(TRUNK)), (0, 4, 8, 11, 13), (26, 8, -6, -10, 4))
    heights = np.linspace(9.6, 14.0, len(TRUNK))
    above, half_above, up_above = np.array(model.position), BODY_MM["T3"][2], rotation(model.turn)
    for k, (level, lean, height) in enumerate(zip(TRUNK, leans, heights, strict=True)):
        turn = (float(lean), 0.0, model.turn[2])
        half = (13.0 + 0.9 * k, 10.0 + 0.6 * k, float(height))
        up = (up_above + rotation(turn)) @ (0.0, 0.0, 0.5)
        center = above - up * (half_above + height + DISC_MM) * size
        label = 11 + k if 11 + k <= THORACIC_LABELS else 0
        parts = scaled(thoracic(half, 30.0), size)
        shape = (model.cortex_hu, model.marrow_hu, model.cortex_mm)
        neck.bones[level] = Bone(level, parts, as_vector(center), turn, label, *shape)
        disc = Block(as_vector((above + center) / 2), (half[0] * size, half[1] * size, 6 * size))
        neck.flesh.append(Space(disc, DISC_HU))
        if k + 4 <= RIBS_TO:
            ribs = draw_ribs(level, 3, as_vector(center), size=size)
            neck.bones |= {rib.name: rib for rib in ribs}
        above, half_above, up_above = center, float(height), rotation(turn)
    behind = np.array([0.0, 20.0 * size, 0.0])
    spots = [as_vector(neck.bones[level].position + behind) for level in TRUNK[:10]]
    cord = [Bar(a, b, 4.0, 4.0, (1.5, 1.0, 1.0)) for a, b in pairwise(spots)]
    neck.flesh += [Space(bar, CORD_HU) for bar in cord]
    x, y, z = neck.bones["T6"].position
    for side in (-1, 1):
        lung = ball((x + side * 66 * size, y - 50 * size, z), (44 * size, 62 * size, 120 * size))
        neck.flesh.append(Space(lung, LUNG_HU))
    neck.bottom = neck.bones[TRUNK[-1]].position

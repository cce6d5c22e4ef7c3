"""Volumes of noise on which every network runs once before it is trusted.

In: the config's `volumes`. Out: `Volumes` of a few slices. Example::

    noise = noise_volumes(config.volumes)
    len(noise.fine.z_mm)
"""

import numpy as np

from cspine_kit.core.config import VolumesConfig
from cspine_kit.data.volumes.curve import HuCurve
from cspine_kit.data.volumes.lattice import Lattice
from cspine_kit.data.volumes.volume import Held, Volume, Volumes

CHECK_SLICES = 3
CHECK_STEP_MM = 100.0
"""Slices of each volume, and how far apart they lie: further than any network's step, so that it
sees each."""


def noise_volumes(config: VolumesConfig) -> Volumes:
    """A coarse and a fine volume, always the same."""
    coarse, fine = (
        _noise(config, grid.spacing_mm, grid.side_px) for grid in (config.coarse, config.fine)
    )
    return Volumes(coarse, fine)


def _noise(config: VolumesConfig, spacing_mm: float, side_px: int) -> Volume:
    rng, shape = np.random.default_rng(0), (side_px, side_px)
    return Volume(
        study_uid="check",
        voxels=Held(rng.integers(0, 256, (CHECK_SLICES, *shape), np.uint8)),
        z_mm=-CHECK_STEP_MM * np.arange(CHECK_SLICES, dtype=np.float64),
        step_mm=CHECK_STEP_MM,
        lattice=Lattice(shape, (spacing_mm, spacing_mm), shape),
        corner=(0, 0),
        curve=HuCurve.of(config.curve),
    )

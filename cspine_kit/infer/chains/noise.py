"""Volumes of noise on which every network runs once before it is trusted.

In: the config's `volumes`. Out: `Volumes` of a few slices. Example::

    noise = noise_volumes(config.volumes)
    len(noise.fine.z_mm)
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
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


def levels_everywhere(volume: Volume) -> pd.DataFrame:
    """Levels that put the spine through the middle of all slices of a volume."""
    z, (y, x) = volume.z_mm, volume.middle_mm
    place = {"center_z_mm": float(z.mean()), "center_y_mm": y, "center_x_mm": x}
    ends = {"z_top_mm": float(z[0]), "z_bottom_mm": float(z[-1])}
    return pd.DataFrame([{"level": level, "present": True, **place, **ends} for level in LEVELS])


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

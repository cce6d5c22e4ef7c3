"""Where a reader sees C1..C7 on the real head-and-neck CT, and how a run's vertebra models do.

In: a run folder, the real CT. Out: errors in mm. `READER_MM` was read off sagittal and coronal
views: the middle of the slices that show the level (C7: of those the scan has), counted from the
dens down and checked by the discs and spinous processes; good to about 3 mm.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.config import load_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.data.volumes.volume import read_volume
from cspine_kit.vision.model import load_model
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.predict import decode_study, predict_vertebra

READER_MM = np.array([-139.0, -157.0, -184.0, -204.0, -225.0, -244.5, -261.0])


def transfer_errors(run: Path, real_ct: Path) -> dict[str, NDArray[np.float64]]:
    """Signed errors (7,) in mm of each fold's vertebra model and of their averaged logits."""
    paths = RunPaths(run)
    config = load_config(paths.resolved_config)
    volume, _ = read_volume(real_ct, config.cache)
    models = [load_model(paths.model(VERTEBRA, fold)) for fold in range(config.folds.n)]
    rows = [predict_vertebra(model, volume, config.kernel.batch_size) for model in models]
    mean = sum(frame.to_numpy(dtype=np.float64) for frame in rows) / len(rows)
    averaged = pd.DataFrame(mean, columns=rows[0].columns)
    averaged["at_mm"] = rows[0]["at_mm"].to_numpy()
    named = {f"fold {fold}": frame for fold, frame in enumerate(rows)} | {"ensemble": averaged}
    return {
        name: decode_study(frame)["center_z_mm"].to_numpy() - READER_MM
        for name, frame in named.items()
    }

"""How far each fold's levels are to be believed, learned from the masked studies of other folds.

In: the chains of all folds, with levels. Out: `calibration.json` beside each vertebra model.
Example::

    from cspine_kit.vision.inputs.tables import open_inputs

    inputs = open_inputs(paths)
    chains = [FoldChain(config, paths, inputs, fold) for fold in range(config.folds.n)]
    calibrate(chains)[0].of(np.array([0.9]))

A vertebra model is surer on studies that it has learned from, so each study is judged by the model
of its own fold; and chain k's line is fitted without the studies of fold k.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import BoolArray, FloatArray
from cspine_kit.core.paths import FINDER
from cspine_kit.core.tables import MASK_COLUMNS
from cspine_kit.data.centers import HALF_VERTEBRA_MM
from cspine_kit.data.confidence import Calibration, fit_calibration
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.oof.chain import FoldChain


def true_centers(slices: pd.DataFrame) -> FloatArray:
    """Middles of the z extents of C1..C7 by the mask.

    Args:
        slices: a study's rows of table `slices`, masked, from the head down.

    Returns:
        (7,) mm; NaN where an end of the scan cuts the level, infinity where the mask lacks it.
    """
    z_mm, areas = slices["z_mm"].to_numpy(np.float64), slices[list(MASK_COLUMNS)].to_numpy()
    found = np.full(len(LEVELS), np.inf)
    for level, area in enumerate(areas.T):
        at = np.flatnonzero(area > 0)
        if len(at):
            cut = at[0] == 0 or at[-1] == len(area) - 1
            found[level] = np.nan if cut else (z_mm[at[0]] + z_mm[at[-1]]) / 2
    return found


def judged_beliefs(
    levels: pd.DataFrame, slices: Mapping[str, pd.DataFrame]
) -> tuple[FloatArray, BoolArray]:
    """Beliefs in levels that are said to be there, and whether each is right.

    Args:
        levels: of masked studies, confidence as the decode gives it.
        slices: their rows of table `slices` by study.
    """
    beliefs, rights = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for uid, own in levels.groupby("study_uid", sort=True):
        ordered = own.set_index("level").loc[list(LEVELS)]
        truth = true_centers(slices[str(uid)])
        said = ordered["present"].to_numpy(bool) & ~np.isnan(truth)
        beliefs.append(ordered["confidence"].to_numpy()[said])
        error = np.abs(ordered["center_z_mm"].to_numpy() - truth)
        rights.append((error <= HALF_VERTEBRA_MM)[said])
    return np.concatenate(beliefs), np.concatenate(rights)


def _judged(chain: FoldChain) -> tuple[FloatArray, BoolArray]:
    """Of the fold's own masked studies."""
    levels = chain.levels.frame()
    masked = levels[levels["study_uid"].isin(chain.masked_here)]
    return judged_beliefs(masked, chain.inputs.slices)


def calibrate(chains: Sequence[FoldChain]) -> dict[int, Calibration]:
    """The line of each fold, also written beside its vertebra model; the finder brings its own."""
    judged = {chain.fold: _judged(chain) for chain in chains}
    found = {}
    for chain in chains:
        others = [judged[fold] for fold in judged if fold != chain.fold]
        belief, right = (np.concatenate(part) for part in zip(*others, strict=True))
        known = Calibration.load(FINDER) if chain.by_finder else fit_calibration(belief, right)
        found[chain.fold] = known
        found[chain.fold].save(chain.paths.model(VERTEBRA, chain.fold))
    return found

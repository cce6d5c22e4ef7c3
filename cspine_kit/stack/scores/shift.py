"""Do test features look like the features the stack was fitted on?

In: out-of-fold features, test features. Out: one row per feature. Example::

    reference = feature_reference(features)             # small, goes into the bundle as JSON
    shift_report(reference, test_features).head()

A stack fitted on features of another kind (other spacing, a broken member, other windows) fails
silently; this is the alarm. Fold models share one reference: their out-of-fold rows are pooled.
"""

from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.errors import TableError
from cspine_kit.stack.features.aggregate import feature_columns
from cspine_kit.stack.features.units import SHOWN

GRID = np.linspace(0.0, 1.0, 101)
ALARM = 0.3
"""Kolmogorov-Smirnov distance from which a feature counts as shifted, given enough rows."""

ALPHA_FACTOR = 1.63
"""KS critical value at 1 %: 1.63 / sqrt(n) for n test studies (the reference is taken as exact)."""


def feature_reference(features: pd.DataFrame) -> dict[str, Any]:
    """101 quantiles of every feature and the row count."""
    columns = feature_columns(features)
    values = features[columns].to_numpy(np.float64)
    return {
        "rows": len(values),
        "quantiles": dict(zip(columns, np.quantile(values, GRID, axis=0).T.tolist(), strict=True)),
    }


def shift_report(reference: dict[str, Any], features: pd.DataFrame) -> pd.DataFrame:
    """Distance of each feature's distribution from the reference, largest first.

    Args:
        reference: of `feature_reference`.
        features: rows of `aggregate` for test studies.

    Returns:
        feature, ks (0 same, 1 apart), median_reference, median, outside (share of rows beyond the
        reference's range), shifted (true where ks passes both the 1 % critical value and 0.3).

    Raises:
        TableError: a feature of the reference is missing.
    """
    quantiles = reference["quantiles"]
    missing = [c for c in quantiles if c not in features]
    if missing:
        raise TableError(
            f"features: {len(missing)} reference columns are missing: {missing[:SHOWN]}"
        )
    studies = features["study_uid"].nunique()
    critical = max(ALARM, ALPHA_FACTOR / np.sqrt(studies))
    rows = []
    for column, grid in quantiles.items():
        values = np.sort(features[column].to_numpy(np.float64))
        knots = np.asarray(grid)
        # Both distributions at the reference's knots, from the left and from the right: constants
        # and ties then cost nothing.
        gaps = [
            np.abs(
                np.searchsorted(values, knots, side) / len(values)
                - np.searchsorted(knots, knots, side) / len(knots)
            ).max()
            for side in ("left", "right")
        ]
        outside = (values < knots[0]) | (values > knots[-1])
        ks = float(max(*gaps, outside.mean()))
        rows.append((column, ks, knots[50], np.median(values), outside.mean(), ks > critical))
    names = ["feature", "ks", "median_reference", "median", "outside", "shifted"]
    return pd.DataFrame(rows, columns=names).sort_values("ks", ascending=False, ignore_index=True)

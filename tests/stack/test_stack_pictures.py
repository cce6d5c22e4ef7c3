"""The bins behind the calibration picture, and a picture that is a file of its kind."""

from pathlib import Path

import numpy as np
from slice_tables import World

from cspine_kit.stack.scores.baselines import all_predictions
from cspine_kit.stack.scores.pictures import draw_calibration, reliability


def test_bins_hold_the_truth_of_calibrated_probabilities() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=4000)
    bins = reliability((rng.random(4000) < p).astype(float), p)
    assert len(bins) == 10
    assert bins["count"].eq(400).all()
    assert bins["predicted"].is_monotonic_increasing
    assert bins["predicted"].between(bins["low"], bins["high"]).sum() >= 8
    one = reliability(np.zeros(5), np.full(5, 0.2))
    assert len(one) == 1
    assert one.loc[0, "observed"] == 0
    assert 0.2 < one.loc[0, "high"] < 0.6


def test_the_picture_is_written(world: World, tmp_path: Path) -> None:
    folds = world.folds.set_index("study_uid")["fold"]
    rng = np.random.default_rng(1)
    probs = {name: rng.uniform(0.05, 0.95, (len(folds), 8)) for name in ("one", "two")}
    predictions = all_predictions(world.labels["study_uid"].to_numpy(), probs, folds)
    draw_calibration(predictions, world.labels, ["one", "two"], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")

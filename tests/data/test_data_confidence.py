"""Confidence: what is said with 0.9 is right nine times in ten, and is kept beside the model."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.errors import ArtifactError
from cspine_kit.data.confidence import FILE, PLAIN, Calibration, fit_calibration, mean_of


def boastful(n, seed):
    """Beliefs that are too sure by half, and whether each was right."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(1.5, 1.5, n)
    return 1 / (1 + np.exp(-2 * odds)), rng.random(n) < 1 / (1 + np.exp(-odds))


def test_a_boastful_decode_is_put_right_on_other_levels():
    fitted = fit_calibration(*boastful(600, 1))
    belief, right = boastful(4000, 2)
    worth = fitted.of(belief)
    for low, high in ((0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
        inside = (worth >= low) & (worth < high)
        assert abs(worth[inside].mean() - right[inside].mean()) < 0.05
    sure = belief >= 0.9
    assert belief[sure].mean() - right[sure].mean() > 0.06


def test_few_levels_or_only_right_ones_leave_the_line_near_what_it_was():
    assert fit_calibration(*boastful(30, 1)) == PLAIN
    belief = np.full(200, 0.9)
    sure = fit_calibration(belief, np.ones(200, dtype=bool))
    assert 0.9 < sure.of(belief)[0] < 1.0 and np.isfinite(sure.start)


def test_absent_levels_stay_without_confidence_and_order_is_kept():
    levels = pd.DataFrame({"present": [True, False, True], "confidence": [0.5, 0.0, 0.9]})
    worth = Calibration(1.0, 0.5).applied(levels)["confidence"].to_numpy()
    assert worth[1] == 0.0 and 0.5 < worth[0] < worth[2] < 1.0


def test_it_lies_beside_its_model_and_a_broken_file_is_named(tmp_path):
    line = Calibration(-0.25, 0.75)
    line.save(tmp_path)
    stamp = (tmp_path / FILE).stat().st_mtime_ns
    line.save(tmp_path)
    assert (tmp_path / FILE).stat().st_mtime_ns == stamp
    assert Calibration.load(tmp_path) == line == mean_of([line, line])
    assert mean_of([]) == PLAIN
    for text in ("", "[]", '{"start": 1}', '{"start": null, "slope": 1}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ArtifactError, match=FILE):
            Calibration.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ArtifactError, match=FILE):
        Calibration.load(tmp_path)

"""Levels and probabilities from headers alone: fitted on few or no masks, ordered, honest."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.metric import auc, best_constant, metric
from cspine_kit.core.tables import MASK_COLUMNS
from cspine_kit.data.centers import LEVEL_EXTENT_MM, LEVEL_PITCH_MM
from cspine_kit.data.levels import decode_levels
from cspine_kit.stack.fallback.headers import (
    HeaderFallback,
    Headers,
    fit_ends,
    fit_fallback,
    read_headers,
)

CONFIG = load_config(Path(__file__).resolve().parents[2] / "configs" / "demo.yaml").stack


def draw_scan(rng: np.random.Generator, step: float, *, masked: bool) -> Headers:
    """A scan whose C1 begins 20 mm plus a tenth of its extent below the top, give or take 4 mm."""
    z = -np.arange(0.0, rng.uniform(170.0, 240.0), step)
    top = 20.0 - 0.1 * z[-1] + rng.normal(scale=4.0)
    center = -(top + LEVEL_EXTENT_MM[0] / 2 + np.concatenate([[0.0], np.cumsum(LEVEL_PITCH_MM)]))
    shown = np.abs(z[:, None] - center) <= LEVEL_EXTENT_MM / 2
    numbers = np.arange(len(z)) + 1.0
    mask = shown.astype(float) if masked else None
    return Headers(z, (step, 0.4, 0.4), (512, 512), numbers, mask)


def draw_study(n: int, *, masked: bool, signal: float) -> tuple[dict[str, Headers], pd.DataFrame]:
    """Scans of two sites (slice distances); `signal` is the log-odds by which one sees more."""
    rng = np.random.default_rng(3)
    site = np.arange(n) % 2
    headers = {
        f"1.2.{i + 100}": draw_scan(rng, 1.0 + 0.5 * s, masked=masked) for i, s in enumerate(site)
    }
    rate = 1.0 / (1.0 + np.exp(2.0 - signal * site))
    levels = (rng.random((n, 7)) < rate[:, None]).astype(float)
    labels = pd.DataFrame(np.column_stack([levels, levels.max(axis=1)]), columns=list(TARGETS))
    labels.insert(0, "study_uid", list(headers))
    return headers, labels.assign(fold=rng.permutation(np.arange(n) % 3))


def test_levels_come_from_masked_studies_and_stay_ordered() -> None:
    rng = np.random.default_rng(0)
    model, low, high = fit_ends([draw_scan(rng, 1.0, masked=True) for _ in range(30)])
    fallback = HeaderFallback(model, low, high)
    errors = []
    for step in (0.5, 1.0, 3.0):
        scan = draw_scan(rng, step, masked=True)
        logits = fallback.vertebra_logits(scan)
        assert logits.shape == (len(scan.z_mm), 7)
        assert np.isfinite(logits).all()
        boxes = np.tile([0.0, 0.0, 9.0, 9.0], (len(logits), 1))
        levels = decode_levels(scan.z_mm, logits, boxes)
        assert (np.diff(levels["center_z_mm"]) < 0).all()
        assert scan.shown is not None
        truth = [scan.z_mm[scan.shown[:, j] > 0].mean() for j in range(7)]
        errors.append(np.abs(levels["center_z_mm"] - truth).mean())
    assert np.mean(errors) < 8.0


@pytest.mark.parametrize("masked", [0, 1, 3])
def test_few_or_no_masks_fall_back_on_typical_anatomy(masked: int) -> None:
    rng = np.random.default_rng(1)
    scans = [draw_scan(rng, 2.0, masked=i < masked) for i in range(14)]
    fallback = HeaderFallback(*fit_ends(scans))
    for n in (1, 2, 7, 90, 900):
        z = 40.0 - 2.0 * np.arange(n)
        logits = fallback.vertebra_logits(
            Headers(z, (2.0, 0.5, 0.5), (512, 512), np.full(n, np.nan))
        )
        levels = decode_levels(z, logits, np.tile([0.0, 0.0, 9.0, 9.0], (n, 1)))
        assert len(levels) == 7
        assert (np.diff(levels["center_z_mm"]) < 0).all()


def test_a_site_that_sees_more_fractures_is_found_and_saved(tmp_path: Path) -> None:
    headers, labels = draw_study(150, masked=False, signal=2.5)
    fallback, rows = fit_fallback(headers, labels, CONFIG, seed=1, jobs=1)
    assert (rows["model"] == "headers").all()
    wide = rows.pivot(index="study_uid", columns="target", values="prob").loc[labels["study_uid"]]
    y, p = labels[list(TARGETS)].to_numpy(), wide[list(TARGETS)].to_numpy()
    assert metric(y, p, "per_exam") < 0.95 * metric(y, np.tile(best_constant(y), (150, 1)))
    fallback.save(tmp_path / "header")
    loaded = HeaderFallback.load(tmp_path / "header")
    parallel, _ = fit_fallback(headers, labels, CONFIG, seed=1, jobs=2)
    for scan in list(headers.values())[:4]:
        assert loaded.predict(scan) == fallback.predict(scan) == parallel.predict(scan)
        assert (loaded.vertebra_logits(scan) == fallback.vertebra_logits(scan)).all()
    next((tmp_path / "header").glob("*.txt")).write_text("torn")
    faults: dict[str, str] = {}
    torn = HeaderFallback.load(tmp_path / "header", faults)
    assert list(faults) == ["header heads"] and np.isfinite(torn.vertebra_logits(scan)).all()
    with pytest.raises(ArtifactError, match="could not be read"):
        torn.predict(scan)
    assert {p.suffix for p in (tmp_path / "header").iterdir()} <= {".txt", ".json"}
    with pytest.raises(ArtifactError, match="make stack"):
        HeaderFallback.load(tmp_path)


@pytest.mark.parametrize("n", [14, 96])
def test_without_signal_the_constants_remain(n: int) -> None:
    headers, labels = draw_study(n, masked=True, signal=0.0)
    fallback, rows = fit_fallback(headers, labels, CONFIG, seed=1, jobs=1)
    constant = best_constant(labels[list(TARGETS)].to_numpy())
    for scan in list(headers.values())[:10]:
        probs = np.array([fallback.predict(scan)[t] for t in TARGETS])
        assert np.abs(probs - constant).max() < 0.1
    overall = rows[rows["target"] == TARGETS[-1]].set_index("study_uid")["prob"]
    overall = overall.loc[labels["study_uid"]].to_numpy()
    assert auc(labels[TARGETS[-1]].to_numpy(), overall) < 0.75


def test_headers_are_read_from_the_tables_of_a_run() -> None:
    z = [3.0, 2.0, 1.0]
    frame = pd.DataFrame({"study_uid": "1.2", "slice_idx": [0, 1, 2], "z_mm": z})
    frame["slice_number"] = [4.0, 5.0, np.nan]
    frame = pd.concat([frame, frame.assign(study_uid="1.3")], ignore_index=True)
    frame[list(MASK_COLUMNS)] = np.nan
    frame.loc[:2, list(MASK_COLUMNS)] = 0.0
    frame.loc[1, "mask_C2"] = 0.25
    studies = pd.DataFrame({"study_uid": ["1.2", "1.3"], "rows": 64, "cols": 32})
    studies = studies.assign(spacing_z=1.0, spacing_y=0.5, spacing_x=0.25)
    headers = read_headers(frame.sample(frac=1.0, random_state=0), studies)
    assert headers["1.2"].z_mm.tolist() == z
    assert headers["1.2"].slice_numbers[:2].tolist() == [4.0, 5.0]
    assert headers["1.2"].spacing_mm == (1.0, 0.5, 0.25)
    shown = headers["1.2"].shown
    assert shown is not None
    assert shown[:, 1].tolist() == [0, 1, 0]
    assert shown.sum() == 1
    assert headers["1.3"].shown is None
    with pytest.raises(TableError, match=r"without a row.*1\.3"):
        read_headers(frame[frame["study_uid"] == "1.2"], studies)

"""Masks as the phantom's annotators draw them: faults in the real masks' shares, and cleaned."""

from types import SimpleNamespace

import numpy as np
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import PhantomConfig
from cspine_kit.core.errors import StudyError
from cspine_kit.data.components import keep_vertebrae
from cspine_kit.data.masks import check_order, read_mask
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.phantom.annotators import masks
from cspine_kit.phantom.annotators.masks import draw_mask
from cspine_kit.phantom.competition.write import plan_studies, render_study, write_competition

SPACING_MM = (1.0, 2.0, 2.0)
STUDIES = 400


def tower() -> np.ndarray:
    """C1..C7 of 12 mm each in a scan of 190 mm."""
    labels = np.zeros((190, 40, 40), np.uint8)
    for level in range(7):
        labels[50 + 12 * level : 62 + 12 * level, 12:28, 10:30] = level + 1
    return labels


def main_run(z: np.ndarray) -> np.ndarray:
    """The longest run of neighboring slices."""
    runs = np.split(z, np.flatnonzero(np.diff(z) > 1) + 1)
    return max(runs, key=len)


@pytest.fixture(scope="module")
def drawn():
    return [draw_mask(np.random.default_rng(seed), tower(), SPACING_MM) for seed in range(STUDIES)]


def test_faults_come_in_the_shares_of_the_real_masks(drawn):
    broken, far, with_far, farthest = 0, 0, 0, 0.0
    for mask in drawn:
        strays = 0
        for level in range(1, 8):
            z = np.flatnonzero((mask == level).any(axis=(1, 2)))
            run = main_run(z)
            beyond = max(run[0] - z[0], z[-1] - run[-1])
            broken += len(run) < len(z)
            strays += beyond > 5
            farthest = max(farthest, beyond)
        far += strays
        with_far += strays > 0
    assert with_far / STUDIES == pytest.approx(23 / 60, abs=0.07)
    assert far / (7 * STUDIES) == pytest.approx(41 / 420, abs=0.03)
    assert broken / (7 * STUDIES) == pytest.approx(46 / 420, abs=0.03)
    assert 80 < farthest <= 167


def test_cleaning_takes_the_strays_and_nothing_else(drawn):
    z_mm = 200.0 - np.arange(190) * SPACING_MM[0]
    study = SimpleNamespace(study_uid="1.2.3", z_mm=z_mm, spacing_mm=SPACING_MM)
    told = refused = 0
    for mask in drawn:
        cleaned = mask.copy()
        told += bool(keep_vertebrae(cleaned, study))
        try:
            assert check_order(cleaned, study) == ()
        except StudyError as error:
            assert "wrongly numbered" in error.problem
            refused += 1
            continue
        for level in range(1, 8):
            z = np.flatnonzero((cleaned == level).any(axis=(1, 2)))
            assert 50 + 12 * (level - 1) - 3 <= z[0]
            assert z[-1] < 50 + 12 * level + 3
            assert (cleaned == level).sum() > 0.7 * (tower() == level).sum()
    assert told > 0.25 * STUDIES
    assert 0 < refused < 0.03 * STUDIES


def test_easy_masks_are_clean_and_real_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "STRAY_STUDIES", 1.0)
    for difficulty in ("easy", "real"):
        spec = PhantomConfig(
            studies=1, test_studies=1, size_px=48, difficulty=difficulty, masked=1.0, seed=5
        )
        competition = write_competition(tmp_path / difficulty, spec, jobs=1)
        plan = plan_studies(spec)[0]
        truth = render_study(plan, size_px=48, difficulty=difficulty)
        folder = competition.images("train", plan.study_uid)
        found = read_study(folder, plan.study_uid)
        wrong = difference(competition.segmentation(plan.study_uid), truth)
        assert bool(wrong) == (difficulty == "real")
        mask = read_mask(competition.segmentation(plan.study_uid), found)
        for label in range(1, len(LEVELS) + 1):
            own = truth.labels == label
            assert (mask[own] == label).mean() > 0.9


def difference(path, truth) -> int:
    """How many voxels of a written mask differ from the truth."""
    import nibabel

    data = np.asarray(nibabel.load(path).dataobj)
    return int((data[:, ::-1, ::-1].transpose(2, 1, 0) != truth.labels).sum())

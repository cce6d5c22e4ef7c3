"""Masks that other tools made: checked like the competition's own, kept in a table of their own."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cspine_kit.core.config import PhantomConfig, PseudoMasksConfig, load_config
from cspine_kit.core.errors import DataError
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.tables import MASK_COLUMNS, read_table
from cspine_kit.data.pseudo import run_pseudo
from cspine_kit.data.stages import run_index
from cspine_kit.phantom.competition.write import write_competition

SPEC = PhantomConfig(
    studies=3, test_studies=1, size_px=64, difficulty="easy", masked=1.0, boxed=0.0, seed=4
)


@pytest.fixture(name="world", scope="module")
def _world(tmp_path_factory):
    """Three masked studies, two of whose masks lie in another folder, one of these in ruins."""
    root = tmp_path_factory.mktemp("pseudo")
    write_competition(root / "c", SPEC, jobs=1)
    competition, others = Competition(root / "c"), root / "others"
    others.mkdir()
    first, second, third = sorted(p.name for p in competition.train_images.iterdir())
    for uid in (first, second):
        file = competition.segmentation(uid)
        shutil.move(file, others / file.name)
    broken = next(others.glob(f"{second}*"))
    broken.write_bytes(broken.read_bytes()[:200])
    base = load_config(Path(__file__).resolve().parents[2] / "configs" / "demo.yaml")
    own = base.competition.model_copy(update={"dir": root / "c"})
    config = base.model_copy(
        update={
            "competition": own,
            "execution": base.execution.model_copy(update={"jobs": 1}),
        }
    )
    paths = RunPaths(root / "run")
    run_index(config, paths)
    return config, paths, others, (first, second, third)


def learning_from(config, folder):
    masks = PseudoMasksConfig(dir=folder, weight=0.3)
    own = config.competition.model_copy(update={"pseudo_masks": masks})
    return config.model_copy(update={"competition": own})


def test_they_lie_beside_the_truth_and_a_broken_one_costs_itself(world):
    config, paths, others, (first, _, third) = world
    run_pseudo(learning_from(config, others), paths)
    rows = read_table(paths.table("pseudo_slices"), "pseudo_slices")
    assert set(rows["study_uid"]) == {first}
    shown = rows[list(MASK_COLUMNS)].to_numpy()
    assert shown.max() == 1.0 and (shown.max(axis=0) > 0).sum() >= 5
    slices = read_table(paths.table("slices"), "slices").set_index("study_uid")
    assert len(slices.loc[first]) == len(rows)
    assert np.isnan(slices.loc[first, list(MASK_COLUMNS)].to_numpy(np.float64)).all()
    assert slices.loc[third, list(MASK_COLUMNS)].notna().all(axis=None)
    run_pseudo(config, paths)
    assert not paths.table("pseudo_slices").exists(), "the config names none any more"


def test_a_folder_that_is_not_there_or_holds_nothing_is_told(world, tmp_path):
    config, paths, *_ = world
    with pytest.raises(DataError, match=r"pseudo_masks\.dir: there is no folder .*nowhere"):
        run_pseudo(learning_from(config, tmp_path / "nowhere"), paths)
    with pytest.raises(
        DataError, match=r"holds no <study_uid>\.nii or \.nii\.gz of a training study"
    ):
        run_pseudo(learning_from(config, tmp_path), paths)

"""Near-duplicate volumes and shared patients end in one group, other necks do not."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scans import write_scan

from cspine_kit.core.config import PhantomConfig, load_config
from cspine_kit.core.errors import DataError
from cspine_kit.core.paths import RunPaths
from cspine_kit.data.reader.dicom import read_geometry, read_study
from cspine_kit.data.reader.pixels.frames import Frames
from cspine_kit.data.stages import run_folds, run_index
from cspine_kit.data.twins import (
    MOST_PER_PATIENT,
    TWIN,
    group_studies,
    make_thumbnail,
    pack,
    similarities,
    unpack,
)
from cspine_kit.phantom.competition.write import write_competition

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
SPEC = PhantomConfig(
    studies=9, test_studies=1, size_px=96, difficulty="easy", masked=0.2, boxed=0.2, seed=8
)


@pytest.fixture(scope="module")
def necks(tmp_path_factory):
    """Easy phantom studies, which are more alike than real necks."""
    return write_competition(tmp_path_factory.mktemp("necks") / "c", SPEC, jobs=1)


def thumbnail_of(study, keep=slice(None), change=lambda hu: hu):
    """Of a study in memory, some of its slices, its values changed."""
    index = np.arange(len(study.hu))[keep]
    part = dataclasses.replace(
        study, headers=tuple(study.headers[i] for i in index), z_mm=study.z_mm[index]
    )
    return make_thumbnail(part, lambda z: change(study.hu[index[z]]))


def test_copies_correlate_and_other_necks_do_not(necks):
    rng = np.random.default_rng(0)
    folders = sorted((necks.root / "train_images").iterdir())
    own = []
    for folder in folders:
        geometry = read_geometry(folder)
        own.append(make_thumbnail(geometry, Frames(folder, geometry).hu))
    assert similarities(own).max() < TWIN - 0.02
    copies = {
        "noise": {"change": lambda hu: (hu + rng.normal(0, 60, hu.shape)).astype(np.int16)},
        "window": {"change": lambda hu: hu.clip(-300, 1200) // 6 * 6},
        "slope": {"change": lambda hu: (hu * 0.8 - 100).astype(np.int16)},
        "start": {"keep": slice(5, None)},
        "end": {"keep": slice(None, -20)},
    }
    for k in (0, 4, 8):
        study = read_study(folders[k])
        for name, change in copies.items():
            alike = similarities([own[k], thumbnail_of(study, **change)])[0, 1]
            assert alike > TWIN + 0.01, (name, alike)


def test_packed_and_unpacked(tmp_path):
    write_scan(tmp_path)
    study = read_study(tmp_path)
    thumbnail = thumbnail_of(study)
    assert np.array_equal(unpack(pack(thumbnail)), thumbnail) and unpack(pack(None)) is None
    assert thumbnail.any(axis=(1, 2)).sum() == 14, "69 mm hold 14 multiples of 5"


def test_groups_of_patients():
    patients = {"1.1": "a", "1.2": "b", "1.3": "a", "1.4": "", "1.5": "", "1.6": "a"}
    groups = group_studies(patients, {}).set_index("study_uid")
    assert list(groups["group"]) == ["1.1", "1.2", "1.1", "1.4", "1.5", "1.1"]
    assert groups.loc["1.3", "reason"] == "same PatientID as 1.1"
    everyone = {f"1.{i}": "ANONYMOUS" for i in range(MOST_PER_PATIENT + 1)}
    assert group_studies(everyone, {})["group"].nunique() == len(everyone)


def test_an_id_that_names_nobody_groups_nobody(caplog):
    """One PatientID on all studies, or a placeholder on some: each study is its own patient."""
    same = group_studies(dict.fromkeys(("1.1", "1.2", "1.3"), "X1"), {})
    assert same["group"].tolist() == ["1.1", "1.2", "1.3"]
    assert "PatientID 'X1' stands on 3 of 3 studies" in caplog.text
    mixed = {
        "1.1": "ANONYMOUS",
        "1.2": "anonymous ",
        "1.3": "b",
        "1.4": "b",
        "1.5": "De-Identified",
    }
    groups = group_studies(mixed, {}).set_index("study_uid")["group"]
    assert groups.to_dict() == {uid: uid for uid in mixed} | {"1.4": "1.3"}
    assert group_studies({"1.1": "a"}, {})["group"].tolist() == ["1.1"]


def test_a_copy_shares_its_fold(tmp_path, necks):
    """Through index and folds; a CSV that parts the copies is an error that says what to do."""
    root = tmp_path / "c"
    shutil.copytree(necks.root, root)
    train = pd.read_csv(root / "train.csv")
    original, copy = train["StudyInstanceUID"].iloc[3], "1.2.3.4"
    shutil.copytree(root / "train_images" / original, root / "train_images" / copy)
    copied = train.iloc[[3]].assign(StudyInstanceUID=copy)
    pd.concat([train, copied]).to_csv(root / "train.csv", index=False)
    demo = load_config(CONFIG)
    config = demo.model_copy(
        update={"competition": demo.competition.model_copy(update={"dir": root})}
    )
    paths = RunPaths(tmp_path / "run")
    run_index(config, paths)
    run_folds(config, paths)
    folds = pd.read_csv(paths.folds).set_index("study_uid")
    first = min(original, copy)
    assert folds.loc[copy, "group"] == folds.loc[original, "group"] == first
    assert folds.loc[copy, "fold"] == folds.loc[original, "fold"]
    assert folds["group"].nunique() == SPEC.studies
    groups = pd.read_csv(paths.root / "index" / "groups.csv").set_index("study_uid")
    assert groups["reason"].notna().sum() == 2
    assert original in groups.loc[copy, "reason"]
    folds.loc[copy, ["group", "fold"]] = ["own", (folds.loc[original, "fold"] + 1) % 3]
    folds.to_csv(paths.folds)
    with pytest.raises(DataError, match=r"near-duplicates .*one fold, or leave copies out"):
        run_folds(config, paths)

"""Members that judge more than slices fill their tables in the out-of-fold run, no other does."""

import pytest
import torch
from run_folder import tiny_config, write_run

from cspine_kit.core.failures import read_failures
from cspine_kit.core.tables import read_table
from cspine_kit.vision.oof import steps
from cspine_kit.vision.oof.run import run_oof
from cspine_kit.vision.predict import Said

SMALL = {"backbone": "tiny_cnn", "pretrained": False, "in_chans": 3, "stack_step_mm": 6.0}
SMALL |= {"slice_step_mm": 6.0, "slices_per_level": 2, "field_mm": 48.0, "size_px": 16}
SMALL |= {"hidden": 8, "epochs": 1, "batch_size": 2}


@pytest.fixture(scope="module", name="ran")
def _ran(tmp_path_factory):
    """A run of one member of slices, one of levels and one of studies, which lacks a study."""
    torch.set_num_threads(1)
    config, paths = tiny_config(), write_run(tmp_path_factory.mktemp("run") / "run", 8)
    members = {
        "a": config.members["a"],
        "one": config.levels.model_copy(update=SMALL),
        "seven": config.study.model_copy(update=SMALL),
    }
    config = config.model_copy(update={"members": members})
    real = steps.predict

    def picky(models, volume, *rest, **how):
        if "seven" in models and volume.study_uid == "1.2.3":
            return {"seven": Said(None, ValueError("gave NaN"), 0.0)}
        return real(models, volume, *rest, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "predict", picky)
        run_oof(config, paths)
    return config, paths


def test_each_member_fills_its_own_tables(ran):
    _, paths = ran
    found = {n: read_table(paths.table(n), n) for n in ("oof_slices", "oof_levels", "oof_studies")}
    counts = {n: t.groupby("member")["study_uid"].nunique().to_dict() for n, t in found.items()}
    assert counts == {
        "oof_slices": {"a": 8, "one": 8, "seven": 7},
        "oof_levels": {"one": 8, "seven": 7},
        "oof_studies": {"seven": 7},
    }
    failed = read_table(paths.table("failures"), "failures")
    assert failed[["member", "study_uid"]].values.tolist() == [["seven", "1.2.3"]]
    assert "gave NaN" in read_failures(paths.model("seven", 0) / "failures.json")[0].cause


def test_a_finished_run_makes_nothing_and_a_table_without_members_goes(ran):
    config, paths = ran
    names = ("oof_slices", "oof_levels", "oof_studies")
    before = {n: paths.table(n).stat().st_mtime_ns for n in names}
    run_oof(config, paths)
    assert {n: paths.table(n).stat().st_mtime_ns for n in names} == before
    fewer = {name: config.members[name] for name in ("a", "one")}
    run_oof(config.model_copy(update={"members": fewer}), paths)
    assert paths.table("oof_levels").exists() and not paths.table("oof_studies").exists()
    assert set(read_table(paths.table("oof_levels"), "oof_levels")["member"]) == {"one"}

"""Members of kind slices off the axial plane: where they look, what they know, what they say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cspine_kit.core.anatomy import LEVELS, N_LEVELS, TARGETS
from cspine_kit.core.tables import check_table
from cspine_kit.data.volumes.volume import Held
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.training.losses import batch_weights

PLANES = ("sagittal", "coronal")


@pytest.fixture(name="standing")
def _standing(tiny):
    """`standing(plane, **changes)`: planes 8 mm apart, up to 16 mm from the middle."""
    small = {"slice_step_mm": 8.0, "across_mm": 16.0, "field_mm": 64.0, "in_chans": 3}

    def make(plane, **changes):
        return tiny.model_copy(update={**small, "plane": plane, **changes})

    return make


@pytest.fixture(scope="module", name="levels")
def _levels():
    top = 90.0 - 10.0 * np.arange(N_LEVELS)
    place = {"present": True, "z_top_mm": top, "z_bottom_mm": top - 10, "center_z_mm": top - 5}
    return pd.DataFrame({"level": LEVELS, **place, "center_y_mm": 38.0, "center_x_mm": 38.0})


@pytest.mark.parametrize("plane", PLANES)
def test_planes_stand_around_the_middle_of_the_neck(standing, levels, make_volume, plane):
    config = standing(plane)
    view = task_of(config).view(make_volume(0), levels)
    assert view.offsets_mm.tolist() == [16.0, 8.0, 0.0, -8.0, -16.0] and view.plane == plane
    assert {patch.center_mm for patch in view.patches} == {(55.0, 38.0, 38.0)}
    assert view.drawn(0, config.windows).shape == (1, 3, 32, 32)
    few = task_of(config).view(make_volume(0), levels, stride=2)
    assert few.offsets_mm.tolist() == [16.0, 0.0, -16.0]


@pytest.mark.parametrize("plane", PLANES)
def test_the_mask_tells_what_a_plane_shows_else_its_place(standing, levels, make_volume, plane):
    volume, task = make_volume(0), task_of(standing(plane))
    lesson = Lesson(pd.DataFrame(), pd.Series(dict.fromkeys(TARGETS, 0.0) | {"C2": 1.0}))
    view = task.view(volume, levels)
    known = task.targets(view, lesson)
    assert np.isnan(known["visible"][:, 0]).tolist() == [True, False, False, False, True]
    assert known["fracture"][0].tolist() == [0, 1, 0, 0, 0, 0, 0]
    mask = np.zeros(volume.voxels.shape, np.uint8)
    mask[10:15, 20:40, 20:40] = 2
    masked = task.view(replace(volume, mask=Held(mask)), levels)
    shown = task.targets(masked, lesson)["visible"]
    assert shown[:, 1].tolist() == [0, 1, 1, 1, 0] and shown[:, [0, 2]].max() == 0
    # Planes of which nobody knows what they show do not count.
    batch = {name: torch.from_numpy(value) for name, value in known.items()}
    weights = batch_weights(task, batch)
    assert weights == {"fracture": 3 * 7, "visible": 3 * 7}
    assert all(
        torch.isfinite(part).all() for part, _ in task.losses(task.blank(batch), batch).values()
    )


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("views", [(False,), (True,), (False, True)])
def test_rows_fit_the_slice_table(standing, levels, make_volume, plane, views):
    config = standing(plane)
    net = build_net(config, task_of(config).heads, pretrained=False).eval()
    said = predict({0: net}, make_volume(0), levels, 8, views=views)[0]
    rows = said.require().assign(member="a", study_uid="1.2", model_fold=0, fold=0)
    table = check_table(rows, "oof_slices")
    assert table["at_mm"].tolist() == [16.0, 8.0, 0.0, -8.0, -16.0] and not said.scores
    assert table["slice_idx"].isna().all() and table["position"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["slices", "levels", "study"])
def test_levels_out_of_the_scan_are_not_looked_at_and_without_any_the_study_fails(
    standing, levels, make_volume, config, kind
):
    own = standing("sagittal")
    if kind != "slices":
        own = getattr(config, kind).model_copy(update={"size_px": 16, "field_mm": 32.0})
    away = levels.assign(present=levels["level"] < "C4")
    places = {p.center_mm[0] for p in task_of(own).view(make_volume(0), away).patches}
    assert min(places) > 90 - 30 - 15 and max(places) < 90 + 15
    said = predict(
        {0: build_net(own, task_of(own).heads, pretrained=False).eval()},
        make_volume(0),
        levels.assign(present=False),
        8,
    )[0]
    assert said.rows is None and "shows none of C1..C7" in str(said.error)


def test_a_label_of_a_level_out_of_the_scan_teaches_nothing(standing, levels, make_volume):
    volume, task = make_volume(0), task_of(standing("sagittal"))
    lesson = Lesson(pd.DataFrame(), pd.Series(dict.fromkeys(TARGETS, 0.0) | {"C7": 1.0}))
    view = task.view(volume, levels.assign(present=levels["level"] != "C7"))
    known = {name: torch.from_numpy(v) for name, v in task.targets(view, lesson).items()}
    assert known["fracture"][:, :6].isfinite().all() and known["fracture"][:, 6].isnan().all()
    known["visible"] = torch.ones_like(known["visible"])
    said = {"visible": torch.zeros(len(view), 7), "fracture": torch.zeros(len(view), 7)}
    other = {**said, "fracture": torch.nn.functional.one_hot(torch.full((len(view),), 6), 7) * 9.0}
    loss, weight = task.losses(said, known)["fracture"]
    assert loss.isfinite() and weight == 6 * len(view)
    assert task.losses(other, known)["fracture"][0] == loss

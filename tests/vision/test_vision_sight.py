"""A fine volume keeps all that any kind of member looks at: a cut one gives the same rows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.config import FineConfig
from cspine_kit.core.tables import FRACTURE_COLUMNS
from cspine_kit.data.volumes.cut import Sight, needed_cut
from cspine_kit.data.volumes.volume import Held
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.kinds import task_of

FINE = FineConfig(spacing_mm=1.2, field_mm=20.0, margin_mm=0.0)
SMALL = {"backbone": "tiny_cnn", "in_chans": 3, "size_px": 16, "hidden": 8}
BARE = {"background": "zero", "windows": ("minmax", (0.0, 400.0)), "field_mm": 24.0}
MASKED = ((-500.0, 1500.0), "spine")
KINDS = {
    "bare slices": {"slice_step_mm": 4.0, "stack_step_mm": 4.0, **BARE},
    "bare sagittal levels": {
        "plane": "sagittal",
        "slices_per_level": 3,
        "slice_step_mm": 5.0,
        **BARE,
    },
    "masked levels": {"slices_per_level": 3, "slice_step_mm": 6.0, "windows": MASKED},
    "masked sagittal levels": {
        "plane": "sagittal",
        "slices_per_level": 3,
        "slice_step_mm": 5.0,
        "windows": MASKED,
    },
    "slices": {"slice_step_mm": 4.0, "stack_step_mm": 4.0, "field_mm": 24.0},
    "sagittal slices": {"plane": "sagittal", "across_mm": 8.0, "field_mm": 72.0},
    "coronal slices": {"plane": "coronal", "across_mm": 8.0, "field_mm": 72.0},
    "levels": {"slices_per_level": 3, "slice_step_mm": 6.0, "field_mm": 24.0},
    "sagittal levels": {"plane": "sagittal", "slices_per_level": 3, "slice_step_mm": 5.0},
    "coronal study": {"plane": "coronal", "slices_per_level": 2, "field_mm": 30.0},
}


@pytest.mark.parametrize("change", [{"background": "zero"}, {"windows": ("minmax",)}])
def test_networks_that_see_something_else_do_not_share_it(config, change):
    other = config.levels.model_copy(update=change)
    assert task_of(other).sight != task_of(config.levels).sight


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_volume_gives_the_rows_of_the_whole_one(config, make_volume, name):
    kind = name.split()[-1]
    own = next(iter(config.members.values())) if kind == "slices" else getattr(config, kind)
    own = own.model_copy(update={**SMALL, "field_mm": 24.0, **KINDS[name]})
    whole = make_volume(3, n_slices=60)
    top = 70.0 - 8.0 * np.arange(N_LEVELS)
    place = {"z_top_mm": top, "z_bottom_mm": top - 8, "center_z_mm": top - 4, "present": True}
    across = 38.0 + np.linspace(-4.0, 4.0, N_LEVELS)
    levels = pd.DataFrame({"level": LEVELS, **place, "center_y_mm": across, "center_x_mm": 38.0})
    sight = Sight.of(config.model_copy(update={"members": {"a": own}}))
    cut = needed_cut(levels.assign(model_fold=0), whole, whole.z_mm, FINE, sight)
    inside = (
        slice(cut.first, cut.last + 1),
        slice(cut.box.y0, cut.box.y1),
        slice(cut.box.x0, cut.box.x1),
    )
    part = replace(
        whole,
        voxels=Held(whole.voxels.array[inside]),
        z_mm=whole.z_mm[inside[0]],
        corner=(cut.box.y0, cut.box.x0),
        first_slice=cut.first,
    )
    assert part.voxels.array.size < 0.8 * whole.voxels.array.size
    torch.manual_seed(0)
    net = build_net(own, task_of(own).heads, pretrained=False).eval()
    one, two = (predict({0: net}, volume, levels, 8)[0] for volume in (whole, part))
    columns = list(FRACTURE_COLUMNS)
    assert one.require()["position"].tolist() == two.require()["position"].tolist()
    assert np.allclose(one.require()[columns], two.require()[columns], atol=1e-5)
    for table, rows in one.scores.items():
        assert np.allclose(rows.iloc[:, -1], two.scores[table].iloc[:, -1], atol=1e-5)

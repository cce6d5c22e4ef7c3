"""Explanations: heat that follows the network, lies where its patch lay, and a page that stands
alone."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from cspine_kit.cli import main
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import ArtifactError
from cspine_kit.data.volumes.patch import Patch, axial_box
from cspine_kit.infer.predictor import Predictor
from cspine_kit.show.explain import page
from cspine_kit.show.explain.evidence import _pasted, gather_evidence, suspects_of
from cspine_kit.show.explain.pictures import WINDOWS, slice_picture
from cspine_kit.show.exports.nifti import affine_of, write_nifti
from cspine_kit.vision.explain import Heat, _lying, _maps, last_map
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.tasks.levels import LevelsTask

pytest.importorskip("pytorch_grad_cam")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", name="predictor")
def _predictor(run):
    return Predictor(run / "oof" / "tiny" / "bundle")


@pytest.fixture(scope="module", name="folder")
def _folder(run) -> Path:
    return min((run / "competition" / "test_images").iterdir())


@pytest.fixture(scope="module", name="evidence")
def _evidence(predictor, folder):
    return gather_evidence(predictor, predictor.predict(folder))


class Corner(nn.Module):
    """Judges by what is bright: level 0 counts for a fracture, level 1 against it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False)
        nn.init.constant_(self.conv.weight, 0.1)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        said = self.conv(batch.reshape(-1, 1, *batch.shape[-2:]).float() / 255).mean(dim=(1, 2, 3))
        return {"fracture": torch.stack([said, -said], dim=1)}


def test_heat_is_where_the_network_looked():
    units = np.zeros((1, 1, 32, 32), np.uint8)
    units[0, 0, 4:10, 20:28] = 255
    model = Corner()
    (heat,) = _maps(model, units, 0)
    assert heat.shape == (32, 32) and heat.max() == pytest.approx(1.0, abs=1e-3)
    assert heat[4:10, 20:28].mean() > 0.7 and heat[18:, :14].max() < 0.05
    assert _maps(model, units, 1).max() == 0.0  # what speaks against a level is not heat
    assert all(p.grad is None for p in model.parameters())


def test_heat_in_three_dimensions_is_of_every_plane_on_one_scale():
    base = load_config(ROOT / "configs" / "base.yaml").volume
    small = {"backbone": "tiny_3d", "slices_per_level": 8, "size_px": 32, "hidden": 4}
    model = build_net(base.model_copy(update=small), LevelsTask.heads, pretrained=False).eval()
    model.backbone, model.width = nn.Conv3d(1, 1, 3, padding=1, bias=False), 1
    nn.init.constant_(model.backbone.weight, 0.1)
    model.pixels = lambda units: units.float() / 255
    model.forward = lambda units: {"level": model.features(units)[0].mean(dim=1)}
    units = np.zeros((2, 8, 1, 32, 32), np.uint8)
    units[:, 2, 0, 4:10, 20:28] = 255
    units[1, 5, 0, 20:26, 2:10] = 128
    first, second = _maps(model, units, 3).reshape(2, 8, 32, 32)
    assert first[2, 5:9, 21:27].min() > 0.7 and first[4:].max() < 0.05
    assert second[2].max() == pytest.approx(1.0, abs=1e-3)
    assert second[5, 21:25, 3:9].min() > 0.4 and second[5].max() < 0.6  # half as bright


def test_a_network_without_a_map_is_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ArtifactError, match="no map"):
        last_map(model, torch.zeros(1, 1, 4, 4))


def test_heat_lies_where_the_patch_lay(evidence):
    fine = evidence.fine
    y, x = fine.middle_mm
    patch = Patch("axial", (float(fine.z_mm[5]), y + 6.0, x - 10.0), (30.0, 20.0), (16, 16))
    heat = np.zeros((16, 16), np.float32)
    heat[8:, :8] = 1.0  # behind and to the right of its middle
    plane = _pasted(Heat("m", 0, "C3", 0, patch, heat), fine)
    rows, cols = np.nonzero(plane > 0.5)
    mm = fine.to_mm(np.column_stack([rows, cols]).astype(float))
    assert mm[:, 0].min() >= y + 6.0 - 2.0 and mm[:, 0].max() <= y + 21.0 + 2.0
    assert mm[:, 1].min() >= x - 20.0 - 2.0 and mm[:, 1].max() <= x - 10.0 + 2.0
    assert plane.shape == fine.voxels.shape[1:] and axial_box(fine, patch).shape[0] > 5


@pytest.mark.parametrize("plane", ["sagittal", "coronal"])
def test_heat_of_standing_planes_is_their_row_at_the_slice(plane):
    spread = [
        Patch(plane, (50.0, 10.0, 20.0), (40.0, 30.0), (8, 6), (o,)) for o in (5.0, 0.0, -5.0)
    ]
    maps = np.zeros((3, 8, 6), np.float32)
    maps[0, 1, 2] = 1.0  # the right or front most plane, 12.5 mm above the middle
    patch, heat = _lying(spread, maps, 50.0 + 12.5)
    z, y, x = patch.center_mm
    assert patch.plane == "axial" and (z, y, x) == (62.5, 10.0, 20.0)
    row, column = np.argwhere(heat == 1.0)[0]
    assert heat.sum() == 1.0 and heat.shape == patch.size_px
    if plane == "sagittal":
        assert patch.field_mm == (30.0, 15.0) and (row, column) == (2, 0)
    else:
        assert patch.field_mm == (15.0, 30.0) and (row, column) == (0, 2)
    assert _lying(spread, maps, 50.0)[1].sum() == 0.0
    assert _lying(spread, maps, 80.0)[1].sum() == 0.0  # above the patch
    stack = Patch(plane, (50.0, 10.0, 20.0), (40.0, 30.0), (8, 6), (6.0, 2.0, -2.0, -6.0))
    assert max(_lying([stack], maps[:1], 62.5)[0].field_mm) == 30.0
    assert min(_lying([stack], maps[:1], 62.5)[0].field_mm) == 16.0


def test_evidence_is_of_every_member_fold_and_suspect(evidence, predictor):
    members, folds = predictor.ensemble.config.members, predictor.ensemble.chains
    for level in evidence.suspects:
        seen = {(heat.member, heat.fold) for heat in evidence.heats if heat.level == level}
        assert seen == {(m, k) for m in members for k in folds}
    assert evidence.heat.shape == evidence.fine.voxels.shape
    assert evidence.top == 1.0
    for level in evidence.suspects:  # each has a place that is hot enough for a box
        assert any(evidence.boxes(k) for k in evidence.judgment.driving(level)), level
    k = int(evidence.heat.max(axis=(1, 2)).argmax()) + evidence.fine.first_slice
    for y0, x0, y1, x1 in evidence.boxes(k):
        assert evidence.plane(k)[y0:y1, x0:x1].max() >= 0.5 * evidence.top


def test_suspects_reach_their_threshold_or_are_the_likeliest(evidence):
    judgment = evidence.judgment
    table = judgment.probabilities.copy()
    table.loc[table["target"] == "C4", ["prob", "best_f1"]] = [0.9, 0.5]
    table.loc[table["target"] != "C4", "best_f1"] = 1.0
    judgment = type(judgment)(**{**vars(judgment), "probabilities": table})
    assert suspects_of(judgment) == (["C4"], True)
    table["best_f1"] = 1.0
    assert suspects_of(judgment) == (["C4"], False)


def test_pictures_show_heat_only_where_it_is(evidence):
    fine, cold = evidence.fine, evidence.fine.first_slice
    hot = int(evidence.heat.max(axis=(1, 2)).argmax()) + fine.first_slice
    plain = slice_picture(fine, hot, WINDOWS["bone"])
    warm = slice_picture(fine, hot, WINDOWS["bone"], evidence)
    assert plain.shape == warm.shape and (plain[..., 0] == plain[..., 2]).all()
    assert (warm != plain).any()
    if evidence.plane(cold).max() == 0.0:
        assert (slice_picture(fine, cold, WINDOWS["bone"], evidence)[..., 0] == 0).any()


def test_nifti_lies_where_the_patient_lies(evidence, tmp_path):
    paths = write_nifti(evidence, tmp_path)
    volume, levels, heat = (nib.load(path) for path in paths)
    assert volume.shape == levels.shape == heat.shape
    affine, scan = affine_of(evidence), evidence.judgment.scan
    row = evidence.judgment.levels.set_index("level").loc["C4"]
    patient = scan.geometry.patient_mm(row["z_mm"], row["y_mm"], row["x_mm"])
    at = np.linalg.solve(affine, [-patient[0], -patient[1], patient[2], 1.0])[:3]
    k = int(np.abs(evidence.fine.z_mm - row["z_mm"]).argmin())
    assert at[2] == pytest.approx(k, abs=1.0)
    px = evidence.fine.to_px(np.array([[row["y_mm"], row["x_mm"]]]))[0]
    assert at[:2] == pytest.approx(px[::-1], abs=0.1)
    hu = np.asarray(volume.dataobj)
    assert hu.min() >= -1100 and hu[np.asarray(levels.dataobj) > 0].min() >= 200


def test_the_page_stands_alone(evidence):
    html = page.render(evidence)
    assert "Research use only" in html and "phantoms" in html
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert "data:image/png" in shown and not re.search(r"""(src|href)=["']?http""", shown)
    for level in evidence.suspects:
        assert f"<h2>{level}</h2>" in html
    assert len(html) < 15e6


def test_the_verb_says_what_cannot_be_judged(run, folder, tmp_path, capsys):
    bundle = str(run / "oof" / "tiny" / "bundle")
    (tmp_path / "empty").mkdir()
    command = ["--bundle", bundle, "--out", str(tmp_path / "out")]
    assert main(["explain", str(tmp_path / "empty"), *command, "--phantom-bundle"]) == 3
    assert "cannot judge" in capsys.readouterr().err
    assert not (tmp_path / "out" / page.PAGE).exists()
    assert (tmp_path / "out" / page.JSON).exists()

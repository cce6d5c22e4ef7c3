"""What the report's figures count, place and pick."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from slice_tables import make_world

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.metric import metric
from cspine_kit.core.tables import FRACTURE_COLUMNS, MASK_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.infer.log import STAGES, KernelEvents
from cspine_kit.show.report import compared, fracture, kernel, pictures, stack, vertebra, worst
from cspine_kit.show.report.data import phi
from cspine_kit.show.report.figure import LEVEL_COLORS
from cspine_kit.show.report.scan import Scan, read_scan
from cspine_kit.show.views import AXIAL


@pytest.fixture(name="world", scope="module")
def _world():
    return make_world(12, step_mm=5.0)


@pytest.fixture(name="sheets")
def _sheets(monkeypatch) -> list:
    """The matplotlib figures that functions finish, kept for a look."""
    kept: list = []

    def keep(sheet, caption, **_):
        kept.append(sheet)
        return caption

    for module in (compared, fracture, kernel, stack, vertebra):
        monkeypatch.setattr(module, "drawn", keep)
    return kept


def test_phi_is_the_correlation_of_labels():
    rng = np.random.default_rng(0)
    labels = pd.DataFrame((rng.random((50, 7)) < 0.4).astype(float), columns=list(LEVELS))
    assert phi(labels) == pytest.approx(labels.corr().to_numpy())
    assert np.isnan(phi(labels.assign(C3=0.0))[2]).all()


def slices_of(world, uid: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A study's vertebra rows as the networks give them, and slices with masks where each level
    lies on the slices that its decoded span holds."""
    rows = world.slices[(world.slices["study_uid"] == uid) & (world.slices["member"] == "a")]
    spans = world.levels[world.levels["study_uid"] == uid].set_index("level")
    z = rows["at_mm"].to_numpy()
    areas = {
        column: ((z <= spans.loc[level, "z_top_mm"]) & (z >= spans.loc[level, "z_bottom_mm"])) * 9.0
        for level, column in zip(LEVELS, MASK_COLUMNS, strict=True)
    }
    masked = pd.DataFrame(areas).assign(study_uid=uid, z_mm=z, gap_mm=5.0, slice_idx=range(len(z)))
    return rows.reset_index(drop=True), masked


def test_center_errors_are_signed_and_leave_out_levels_cut_by_the_scan(world):
    _, masked = slices_of(world, "1.2.10")
    cut = masked.assign(mask_C1=np.r_[1.0, masked["mask_C1"].to_numpy()[1:]])
    levels = world.levels[world.levels["study_uid"] == "1.2.10"].copy()
    z = masked["z_mm"].to_numpy()
    truth = [float(z[masked[c] > 0].mean()) for c in MASK_COLUMNS]
    levels["center_z_mm"] = np.array(truth) + np.arange(7)
    errors = vertebra.center_errors(levels, cut).set_index("level")["error_mm"]
    assert errors.to_dict() == pytest.approx({level: i for i, level in enumerate(LEVELS) if i})


def test_the_worst_studies_come_first_and_their_losses_make_the_metric(world):
    rng = np.random.default_rng(0)
    probs = rng.uniform(0.05, 0.95, (len(world.labels), 8))
    wide = pd.DataFrame(probs, columns=list(TARGETS)).assign(study_uid=world.labels["study_uid"])
    rows = wide.melt("study_uid", var_name="target", value_name="prob").assign(model="m", fold=0)
    table = stack.worst(world.labels, rows, "m", 100)
    y = world.labels[list(TARGETS)].to_numpy()
    assert table["loss"].mean() == pytest.approx(metric(y, probs))
    assert table["loss"].is_monotonic_decreasing and len(stack.worst(world.labels, rows, "m", 3))
    first = table.iloc[0]
    i = list(world.labels["study_uid"]).index(first["study_uid"])
    assert first["said_C4"] == probs[i, 3]
    assert first["level"] == LEVELS[int(np.abs(y - probs)[i, :7].argmax())] or y[i].any()


def test_driving_slices_are_the_loudest_where_the_level_is_seen():
    z = -np.arange(0.0, 60.0, 3.0)
    quiet = dict.fromkeys((*FRACTURE_COLUMNS, *VERTEBRA_COLUMNS), -4.0)
    rows = pd.DataFrame({"member": "a", "at_mm": z, "slice_idx": np.arange(20)}).assign(**quiet)
    rows["vertebra_C5"] = np.where(np.arange(20) < 12, 5.0, -9.0)
    rows.loc[[3, 4, 10, 16], "fracture_C5"] = [2.0, 3.0, 1.0, 9.0]
    found = worst.driving(rows, "C5")
    assert [f.slice_idx for f in found[:2]] == [4, 10]
    assert found[0].prob == pytest.approx(0.946, abs=2e-3) and len(found) == worst.SLICES
    row = {"loss": 1.0, "level": "C5", **dict.fromkeys(TARGETS, 0.0), "C2": 1.0}
    said = worst.told(row | {f"said_{t}": 0.05 for t in TARGETS} | {"said_C7": 0.6})
    assert said == "loss 1.00; fractured: C2; said: C2 0.05, C5 0.05, C7 0.60, patient 0.05"


def test_a_worst_study_is_drawn_with_and_without_its_volume(world, ball):
    rows = world.slices[world.slices["study_uid"] == "1.2.10"]
    spans = world.levels[world.levels["study_uid"] == "1.2.10"]
    row = {"study_uid": "1.2.10", "loss": 1.0, "level": "C2", **dict.fromkeys(TARGETS, 1.0)}
    row |= {f"said_{t}": 0.05 for t in TARGETS}
    colors = {"a": "#117733", "b": "#aa4499"}
    bare = worst.worst_study(row, rows, spans, None, colors)
    pictured = worst.worst_study(row, rows, spans, ball, colors)
    assert bare.kind == pictured.kind == "png" and bare.image != pictured.image
    assert bare.caption == pictured.caption and bare.caption.startswith("1.2.10: loss 1.00")


def test_learning_curves_draw_whatever_was_written(sheets):
    history = pd.DataFrame({"member": "a", "fold": 0, "epoch": [1, 2], "loss": [2.0, 1.0]})
    fracture.learning(history, {"a": "#000000"})
    fracture.learning(history.assign(auc_C2=[0.5, 0.7], valid_loss=[2.0, 1.5]), {"a": "#000000"})
    titles = [[axes.get_title() for axes in sheet.axes] for sheet in sheets]
    assert titles == [
        ["training loss", "training loss, last epoch"],
        ["training loss", "loss on the fold's studies", "auc C2"],
    ]


def test_the_curves_of_a_perfect_model_reach_the_corner(sheets):
    y = np.tile((np.arange(20) < 8).astype(float)[:, None], 8)
    fracture.roc(y, np.where(y > 0, 0.9, 0.1))
    left, right = sheets[0].axes[:2]
    curve = left.lines[0].get_xydata()
    assert [0.0, 1.0] in curve.tolist()
    assert right.lines[0].get_xydata()[0].tolist() == [1.0, 1.0]


def test_the_kernels_pace_is_carried_to_the_hidden_test_set(sheets):
    seconds = dict(zip(STAGES, (1.0, 2.0, 4.0, 1.0), strict=True))
    studies = pd.DataFrame([{"study_uid": "1.2", "total_s": 8.0, **seconds}] * 3)
    log = KernelEvents(studies.assign(source="image", cause=""), {}, [])
    assert "1,500 studies take 3.3 h of the 9 h allowed" in kernel.times(log, 9.0)
    lost = studies.assign(source=["image", "header", "header"], cause=["", "no slice", "no slice"])
    told = kernel.sources(KernelEvents(lost, {}, [{"event": "fault"}]))
    assert "no slice (2)" in told and "fault 1" in told


@pytest.fixture(name="ball")
def _ball() -> Scan:
    """A study whose C3 is a cube off the middle, with a box around it."""
    grey = np.full((20, 40, 40), 100, np.uint8)
    mask = np.zeros_like(grey)
    mask[8:12, 10:14, 20:24] = 3
    z, spacing = -np.arange(20.0) * 2.0, (2.0, 1.0, 1.0)
    return Scan("1.2.3", grey, mask, z, spacing, ("C3",), {9: (20.0, 10.0, 4.0, 4.0)})


def test_a_tile_lies_around_the_spine_with_mask_and_box_in_place(ball):
    shown = pictures.tile(ball, AXIAL, 9)
    side = round(pictures.FIELD_MM[0] * pictures.PX_PER_MM)
    assert shown.shape == (side, side, 3)
    color = [int(LEVEL_COLORS["C3"][i : i + 2], 16) for i in (1, 3, 5)]
    wanted = np.round((1 - pictures.OPACITY) * 100 + pictures.OPACITY * np.array(color))
    assert shown[side // 2, side // 2].tolist() == wanted.tolist()
    red = np.argwhere((shown == pictures.BOX_RGB).all(axis=2))
    size = red.max(axis=0) - red.min(axis=0)
    assert size == pytest.approx([4.0 * pictures.PX_PER_MM] * 2, abs=3)
    assert red.mean(axis=0) == pytest.approx([side / 2] * 2, abs=3)
    bare = pictures.tile(ball, AXIAL, 9, masked=False)
    assert (bare[side // 2, side // 2] == 100).all() and not (bare == pictures.BOX_RGB).all(2).any()


def test_the_walk_shows_each_slice_of_the_mask_and_a_few_around(ball):
    film = Image.open(BytesIO(pictures.walk(ball).image))
    assert film.n_frames == 4 + 2 * pictures.BEYOND


def test_a_scan_of_a_run_has_its_mask_on_its_volume(run, monkeypatch):
    monkeypatch.chdir(run)
    tables = {n: pd.read_parquet(f"oof/tiny/tables/{n}.parquet") for n in ("studies", "slices")}
    files = pd.read_parquet("oof/tiny/tables/fine.parquet").set_index("study_uid")["path"]
    study = tables["studies"][tables["studies"]["has_mask"]].iloc[0]
    own = tables["slices"][tables["slices"]["study_uid"] == study["study_uid"]]
    scan = read_scan(Path(files[study["study_uid"]]), study, own)
    seen = np.isin(own["z_mm"].to_numpy(), scan.z_mm)
    areas = own[seen].sort_values("slice_idx")[list(MASK_COLUMNS)].to_numpy()
    pixel = np.prod(scan.spacing_mm[1:])
    counted = (scan.mask[..., None] == np.arange(1, 8)).sum(axis=(1, 2)) * pixel
    shown = areas > 0
    assert np.corrcoef(counted[shown], areas[shown])[0, 1] > 0.95
    bone, around = scan.grey[scan.mask > 0].mean(), scan.grey[scan.grey > 0].mean()
    assert bone > around + 30
    bare = tables["studies"][
        ~tables["studies"]["has_mask"] & (tables["studies"]["split"] == "train")
    ]
    for uid in bare["study_uid"]:
        assert not read_scan(
            Path(files[uid]), bare.set_index("study_uid", drop=False).loc[uid], own
        ).mask.any()


def test_backbones_are_points_of_accuracy_over_time(sheets):
    rows = [("a", 0, 0.9, 2.0), ("a", 1, 0.8, 4.0), ("b", 0, 0.7, 1.0)]
    table = pd.DataFrame(rows, columns=["backbone", "fold", "accuracy", "seconds_per_epoch"])
    table = table.assign(accuracy_decoded=0.9, parameters=10, ms_per_slice=1.0)
    compared.backbones(table)
    tables = {"axial": table.rename(columns={"accuracy": "auc"}).assign(loss=0.1, f1=0.5)}
    compared.fracture_backbones_figure(tables)
    for sheet, name in zip(sheets, ("accuracy on slices", "AUC of fractured"), strict=True):
        [axes] = sheet.axes
        assert axes.get_ylabel().startswith(name) and axes.get_xscale() == "log"
        assert {text.get_text(): text.xy for text in axes.texts} == {
            "a": (3.0, pytest.approx(0.85)),
            "b": (1.0, pytest.approx(0.7)),
        }
    assert sheets[1].axes[0].get_title() == "axial"


def test_boxes_have_a_group_of_bars_for_each_member(sheets):
    table = pd.DataFrame({"member": ["one", "two"], "boxed_slices": [9, 9], "sound_slices": [4, 4]})
    table = table.assign(iou=[0.5, 0.6], precision_30=[0.8, 0.9], precision_50=[0.3, 0.4])
    told = compared.boxes(table, {"one": "#112233"})
    assert "9 boxed slices and 4 slices" in told
    [axes] = sheets[0].axes
    assert [bar.get_width() for bar in axes.patches] == [0.8, 0.3, 0.5, 0.9, 0.4, 0.6]
    assert [t.get_text().split(":")[0] for t in axes.get_yticklabels()] == ["one"] * 3 + ["two"] * 3

"""From files to volumes: coarse, fine, both in one pass, and that all of them agree."""

import cv2
import numpy as np
import pandas as pd
import pytest
from scans import PITCH, STEP, neck_hu, neck_labels, write_mask, write_scan

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import FineConfig, GridConfig, VolumesConfig
from cspine_kit.data.masks import read_mask
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.data.reader.pixels.frames import Frames
from cspine_kit.data.volumes.curve import HuCurve
from cspine_kit.data.volumes.cut import (
    Cut,
    Sight,
    fine_lattice,
    generous_cut,
    needed_cut,
    wide_cut,
)
from cspine_kit.data.volumes.lattice import Box
from cspine_kit.data.volumes.neck import BEHIND_MM, Survey
from cspine_kit.data.volumes.patch import Patch, draw, parallel
from cspine_kit.data.volumes.read import read_both, read_coarse, read_fine
from cspine_kit.data.volumes.store import every_slice
from cspine_kit.data.volumes.volume import with_mask

CURVE = ((-1000, 0), (-200, 16), (400, 150), (1400, 240), (2500, 255))
CONFIG = VolumesConfig(
    curve=CURVE,
    coarse=GridConfig(spacing_mm=3.0, field_mm=96.0),
    fine=FineConfig(spacing_mm=1.1, field_mm=50.0, margin_mm=6.0),
)


def config_of(coarse: dict | None = None, fine: dict | None = None) -> VolumesConfig:
    """`CONFIG` with other grids."""
    return CONFIG.model_copy(
        update={
            "coarse": CONFIG.coarse.model_copy(update=coarse or {}),
            "fine": CONFIG.fine.model_copy(update=fine or {}),
        }
    )


def levels_of(folds=1, *, y_mm=80.0, x_mm=72.0, top_mm=90.0, height_mm=5.0) -> pd.DataFrame:
    """Seven levels one below the other, the same in each fold."""
    k = np.arange(7)
    own = pd.DataFrame({"level": LEVELS, "center_y_mm": y_mm + k, "center_x_mm": x_mm})
    own = own.assign(
        present=True, z_top_mm=top_mm - height_mm * k, z_bottom_mm=top_mm - height_mm * (k + 1)
    )
    own = own.assign(center_z_mm=top_mm - height_mm * (k + 0.5))
    return pd.concat([own.assign(model_fold=fold) for fold in range(folds)], ignore_index=True)


def neck_center(study):
    survey = Survey(study)
    return survey.center({z: survey.coarse(study.hu[z]) for z in survey.slices})


@pytest.mark.parametrize("shift", [(0, 0), (8, -14), (-10, 15)])
def test_square_follows_the_spine(tmp_path, shift):
    write_scan(tmp_path, neck_hu(shift=shift))
    study = read_study(tmp_path)
    y, x = neck_center(study)
    behind = BEHIND_MM / PITCH
    assert abs(y - (96 * 0.53 + shift[0] + behind)) < 6 and abs(x - (48 + shift[1])) < 4
    volume, _ = read_coarse(tmp_path, CONFIG)
    assert volume.voxels.shape == (24, 32, 32) and volume.voxels.array.dtype == np.uint8
    bone = np.argwhere(volume.voxels.array[0] > 130)
    native = volume.to_mm(bone) / PITCH
    assert (study.hu[0][tuple(native.round().astype(int).T)] > 100).mean() > 0.9


def test_values_are_codes_and_outside_is_air(tmp_path):
    hu = np.full((3, 40, 40), 500, dtype=np.int16)
    hu[1] = -2000
    hu[2] = 3000
    write_scan(tmp_path, hu)
    volume, _ = read_coarse(tmp_path, CONFIG)
    middle = volume.voxels.array[:, 14:18, 14:18]
    assert (middle[0] == 159).all() and (middle[1] == 0).all() and (middle[2] == 255).all()
    assert (volume.voxels.array[:, 0] == 0).all()  # the field is larger than the frame
    assert volume.spacing_mm == pytest.approx((STEP, 3.0, 3.0), rel=0.01)


@pytest.mark.parametrize("spacing", [1.0, 2.0, 2.6, 4.0])
def test_fine_is_the_study_encoded_resampled_and_cut(tmp_path, spacing):
    """Against plain float arithmetic on the whole study, at every ratio of the two grids."""
    write_scan(tmp_path, neck_hu(shift=(-30, 25)), reverse=True)
    volumes, geometry = read_both(tmp_path, config_of(fine={"spacing_mm": spacing}))
    coarse, fine = volumes.coarse, volumes.fine
    assert geometry.reversed and geometry.problems == ()
    codes = np.interp(read_study(tmp_path).hu, *zip(*CURVE, strict=True))
    rows, cols = fine.lattice.shape
    method = cv2.INTER_AREA if fine.lattice.zoom[0] > 1.5 else cv2.INTER_LINEAR
    whole = np.array([cv2.resize(plane, (cols, rows), interpolation=method) for plane in codes])
    y, x = fine.corner
    _, ny, nx = fine.voxels.shape
    expected = whole[:, y : y + ny, x : x + nx]
    assert fine.spacing_mm[1:] == pytest.approx((spacing, spacing), rel=0.02)
    # Both are rounded once more here: to whole codes before and after.
    assert np.abs(fine.voxels.array - expected).max() <= 1.1
    # It reaches as far as the coarse volume, inside the frame.
    low, high = (coarse.to_mm(np.array([p])) for p in (np.zeros(2), np.array([32, 32]) - 1.0))
    reach = np.clip([low[0], high[0]], 0, 95 * PITCH)
    assert np.allclose(fine.to_mm(np.array([[0, 0], [ny - 1, nx - 1]])), reach, atol=3 + spacing)


@pytest.mark.parametrize(("spacing", "group"), [(3.0, 1), (6.0, 2), (10.0, 3), (100.0, 33)])
def test_coarse_averages_whole_groups_of_slices(tmp_path, spacing, group):
    write_scan(tmp_path, neck_hu())
    config = config_of(coarse={"spacing_mm": spacing, "field_mm": 120.0})
    volume, geometry = read_coarse(tmp_path, config)
    assert volume.group == group and volume.first_slice == 0
    lattice, curve = volume.lattice, HuCurve.of(CURVE)
    planes = [volume.box.cut(lattice.resample(curve.encode(hu))) for hu in read_study(tmp_path).hu]
    starts = range(0, 24, group)
    groups = [slice(start, start + group) for start in starts]
    assert np.allclose(volume.z_mm, [geometry.z_mm[own].mean() for own in groups])
    expected = np.array([np.mean(planes[own], axis=0) for own in groups])
    assert np.abs(volume.voxels.array - expected).max() <= 0.5


def test_kernel_and_cache_hold_the_same_voxels(tmp_path, monkeypatch):
    """One pass gives both grids, each frame decoded once; a cut fine volume is a part of the wide
    one, and decodes its own slices only."""
    write_scan(tmp_path, neck_hu(shift=(5, -6)))
    decoded = []
    plain = Frames.hu
    monkeypatch.setattr(
        Frames,
        "hu",
        lambda self, index, out=None: (decoded.append(index), plain(self, index, out))[1],
    )
    volumes, geometry = read_both(tmp_path, CONFIG, "1.2")
    coarse = volumes.coarse
    wide = volumes.fine
    assert sorted(decoded) == list(range(24))
    assert np.array_equal(wide.z_mm, geometry.z_mm) and wide.first_slice == 0
    alone, _ = read_coarse(tmp_path, CONFIG, "1.2")
    assert np.array_equal(alone.voxels.array, coarse.voxels.array)
    assert (alone.box, alone.lattice, alone.study_uid) == (coarse.box, coarse.lattice, "1.2")
    cut = generous_cut(levels_of(), coarse, geometry.z_mm, CONFIG.fine, Sight(40.0, 3.0))
    decoded.clear()
    fine, _ = read_fine(tmp_path, CONFIG, cut, "1.2")
    kept = range(cut.first, cut.last + 1)
    own = [z for z in decoded if z in kept]
    assert set(own) == set(kept) and len(decoded) <= len(kept) + 5  # five show what values mean
    y, x = (a - b for a, b in zip(fine.corner, wide.corner, strict=True))
    _, ny, nx = fine.voxels.shape
    part = wide.voxels.array[cut.first : cut.last + 1, y : y + ny, x : x + nx]
    assert np.array_equal(part, fine.voxels.array) and 0 < part.size < wide.voxels.array.size
    assert np.array_equal(fine.z_mm, wide.z_mm[kept]) and fine.first_slice == cut.first
    patch = Patch(
        "axial", (float(fine.z_mm[4]), 83.0, 72.0), (40.0, 40.0), (32, 32), parallel(3, 3)
    )
    window = [(-500.0, 1500.0)]
    assert np.array_equal(draw(fine, patch, window), draw(wide, patch, window))


def test_voxels_go_where_they_are_told(tmp_path):
    write_scan(tmp_path / "scan", neck_hu())
    mapped = []

    def allocate(shape):
        memory = np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.uint8, shape)
        mapped.append(memory)
        return memory

    volumes, _ = read_both(tmp_path / "scan", CONFIG, allocate=allocate)
    fine = volumes.fine
    assert fine.voxels.array is mapped[0]
    mapped[0].flush()
    volumes, _ = read_both(tmp_path / "scan", CONFIG)
    again = volumes.fine
    assert np.array_equal(np.load(tmp_path / "v.npy"), again.voxels.array)


def test_labels_lie_on_the_grid_of_their_volume(tmp_path):
    write_scan(tmp_path / "scan", neck_hu())
    labels = neck_labels()
    labels[21:][labels[21:] > 0] = 9  # T2
    write_mask(tmp_path / "1.nii", labels)
    study = read_study(tmp_path / "scan")
    mask = read_mask(tmp_path / "1.nii", study)
    # No whole number of native pixels to one: none has two that are nearest.
    volumes, _ = read_both(tmp_path / "scan", config_of(coarse={"spacing_mm": 2.6}))
    coarse = volumes.coarse
    fine = volumes.fine
    for volume in (coarse, fine):
        placed = every_slice(with_mask(volume, mask, study.z_mm).mask)
        assert placed.shape == volume.voxels.shape
        z, y, x = np.nonzero(placed)
        at = np.rint(volume.to_mm(np.column_stack([y, x])) / PITCH).astype(int)
        native = np.minimum(mask[z * volume.group, at[:, 0], at[:, 1]], 8)
        assert (native == placed[z, y, x]).mean() > 0.95 and len(z) > 500
        assert set(np.unique(placed)) == set(range(9))


@pytest.fixture(name="coarse", scope="module")
def _coarse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    write_scan(folder, neck_hu())
    return read_coarse(folder, CONFIG)[0]


Z_MM = 100.0 - STEP * np.arange(24)


def test_a_generous_cut_holds_field_and_margin_around_the_mean_of_folds(coarse):
    levels = levels_of(3)
    lattice = fine_lattice(coarse, CONFIG.fine)
    cut = generous_cut(levels, coarse, Z_MM, CONFIG.fine, Sight(40.0, 3.0))
    low, high = lattice.to_mm(np.array([[cut.box.y0, cut.box.x0], [cut.box.y1, cut.box.x1]]))
    assert np.allclose(low, (80 - 25, 72 - 25), atol=4) and (low <= (80 - 25, 72 - 25)).all()
    assert np.allclose(high, (86 + 25, 72 + 25), atol=4) and (high >= (86 + 25, 72 + 25)).all()
    kept = Z_MM[cut.first : cut.last + 1]
    assert kept[0] >= 96 and kept[-1] <= 55 - 6 and kept[-1] > 55 - 6 - 2 * STEP
    needed = needed_cut(levels, coarse, Z_MM, CONFIG.fine, Sight(40.0, 3.0))
    assert cut.holds(needed) and not needed.holds(cut)


def test_a_fold_that_looks_beyond_makes_the_cut_larger(coarse):
    levels, sight = levels_of(3), Sight(40.0, 3.0)
    before = generous_cut(levels, coarse, Z_MM, CONFIG.fine, sight)
    near, far = levels.copy(), levels.copy()
    near.loc[near["model_fold"] == 1, "center_x_mm"] += 4.0
    far.loc[far["model_fold"] == 1, "center_x_mm"] += 25.0
    assert before.holds(needed_cut(near, coarse, Z_MM, CONFIG.fine, sight))
    needed = needed_cut(far, coarse, Z_MM, CONFIG.fine, sight)
    assert not before.holds(needed)
    assert generous_cut(far, coarse, Z_MM, CONFIG.fine, sight).holds(needed)


def test_members_that_judge_levels_or_whole_necks_have_all_they_look_at(coarse):
    levels = levels_of(1)
    center = levels["center_z_mm"]
    around = needed_cut(levels, coarse, Z_MM, CONFIG.fine, Sight(40.0, 0.0, around_mm=14.0))
    neck = needed_cut(levels, coarse, Z_MM, CONFIG.fine, Sight(40.0, 0.0, neck_mm=44.0))
    for cut, top, bottom in (
        (around, center.max() + 14, center.min() - 14),
        (neck, (center.max() + center.min()) / 2 + 22, (center.max() + center.min()) / 2 - 22),
    ):
        kept = Z_MM[cut.first : cut.last + 1]
        assert kept[0] >= min(top, Z_MM[0]) and kept[-1] <= max(bottom, Z_MM[-1])


@pytest.mark.parametrize("y_mm", [-500.0, 0.0, 80.0, 1000.0])
@pytest.mark.parametrize("top_mm", [-400.0, 110.0, 600.0])
def test_no_cut_leaves_the_coarse_volume_nor_is_empty(coarse, y_mm, top_mm):
    levels = levels_of(2, y_mm=y_mm, top_mm=top_mm)
    wide = wide_cut(coarse, fine_lattice(coarse, CONFIG.fine), 24)
    cut = generous_cut(levels, coarse, Z_MM, CONFIG.fine, Sight(40.0, 3.0))
    assert wide.holds(cut) and cut.voxels > 0


def test_boxes_add_up():
    a, b = Cut(Box(2, 3, 10, 12), 4, 9), Cut(Box(0, 5, 8, 14), 7, 20)
    both = a.union(b)
    assert both == Cut(Box(0, 3, 10, 14), 4, 20) and both.holds(a) and both.holds(b)
    assert not a.holds(b) and a.voxels == 6 * 8 * 9
    assert a.box.overlap(b.box) == Box(2, 5, 8, 12)


def test_real_ct_spine_inside(real_data):
    """A 511 mm radiotherapy field with a table: the square still holds the spine."""
    study = read_study(real_data / "head_neck_ct")
    y, x = neck_center(study)
    # From the front of the dens to the tip of C7 as seen on the frames, native pixels of 1 mm.
    assert abs(x - 250) < 8 and abs(y - (214 + 300) / 2) < 8

"""One function draws every patch: where it lies, what it shows, and that boxes do not matter."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from cspine_kit.core.errors import StudyError
from cspine_kit.data.volumes.curve import HuCurve
from cspine_kit.data.volumes.lattice import Box, Lattice
from cspine_kit.data.volumes.patch import SPINE, Patch, axial_box, draw, draw_mask, parallel
from cspine_kit.data.volumes.volume import Held, Volume, nearest_slices

CURVE = HuCurve(((-1000, 0), (-200, 16), (400, 150), (1400, 240), (2500, 255)))
WINDOW = [(-500.0, 1500.0)]
PITCH, FRAME, NZ, DZ = 0.43, (200, 220), 40, 1.25


def ramp_hu() -> np.ndarray:
    """HU that says where it is: 10 per mm to the back, 4 to the left, 6 to the head."""
    z, y, x = np.mgrid[:NZ, : FRAME[0], : FRAME[1]]
    return (PITCH * (10 * y + 4 * x) - 6 * DZ * z).astype(np.int16)


def volume_of(hu: np.ndarray, spacing: float = 0.3, box: Box | None = None, z=slice(None)):
    lattice = Lattice.of(FRAME, (PITCH, PITCH), spacing)
    box = box or lattice.whole
    voxels = np.stack([box.cut(lattice.resample(CURVE.encode(frame))) for frame in hu])[z]
    z_mm = (50.0 - DZ * np.arange(NZ))[z]
    first = z.start or 0
    held = Held(np.ascontiguousarray(voxels))
    return Volume("1.2", held, z_mm, DZ, lattice, (box.y0, box.x0), CURVE, first_slice=first)


@pytest.fixture(scope="module", name="ramp")
def _ramp() -> Volume:
    return volume_of(ramp_hu())


def hu_at(volume: Volume, z: float, y: float, x: float) -> float:
    """What the ramp is at a place in mm."""
    return 10 * y + 4 * x + 6 * (z - volume.z_mm[0])


def test_codes_follow_the_curve_and_a_window_undoes_them():
    hu = np.arange(-3000, 4000, dtype=np.int16)
    codes = CURVE.encode(hu)
    assert np.abs(codes - np.interp(hu, *zip(*CURVE.knots, strict=True))).max() <= 0.5
    assert codes[0] == 0 and codes[-1] == 255 and (np.diff(codes.astype(int)) >= 0).all()
    for low, high in ((-500, 1500), (-200, 400), (300, 2000)):
        grey = CURVE.window(low, high)[codes]
        exact = 255 * np.clip((hu - low) / (high - low), 0, 1)
        # Half a code, which is 2.3 HU in soft tissue, 5.6 in bone, 37 beyond.
        step = np.where(hu < -200, 26, np.where(hu < 400, 2.3, np.where(hu < 1400, 5.6, 37)))
        assert (np.abs(grey - exact) <= 255 * step / (high - low) + 0.51).all()


@pytest.mark.parametrize("spacing", [0.2, 0.3, 0.43, 0.7, 1.0, 3.0])
def test_a_lattice_maps_to_mm_and_back(spacing):
    lattice = Lattice.of(FRAME, (PITCH, 2 * PITCH), spacing)
    assert lattice.spacing_mm == pytest.approx((spacing, spacing), rel=0.02)
    px = np.random.default_rng(0).uniform(-20, 300, (50, 2))
    assert np.allclose(lattice.to_px(lattice.to_mm(px)), px)
    # The middle of the frame is the middle of the lattice.
    middle = (np.array(FRAME) - 1) / 2 * (PITCH, 2 * PITCH)
    assert np.allclose(lattice.to_px(middle[None]), (np.array(lattice.shape) - 1) / 2)


@pytest.mark.parametrize("spacing", [0.3, 1.0])
def test_resampling_keeps_places(spacing):
    lattice = Lattice.of(FRAME, (PITCH, PITCH), spacing)
    y, x = np.mgrid[: FRAME[0], : FRAME[1]]
    got = lattice.resample((y * 1.0 + 0.2 * x).astype(np.uint8))
    at = lattice.to_mm(np.argwhere(np.ones(lattice.shape))) / PITCH
    exact = (at @ (1.0, 0.2)).reshape(lattice.shape)
    assert np.abs(got - exact)[4:-4, 4:-4].max() < 1.6  # both were cut to whole numbers
    for axis, index in enumerate((y, x)):
        labels = lattice.resample_labels(index.astype(np.uint8))
        assert np.abs(labels - at[:, axis].reshape(lattice.shape)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_drawn_values_are_those_of_their_places(ramp, plane):
    center = (25.3, 41.0, 47.0)
    patch = Patch(plane, center, (20.0, 16.0), (40, 20), parallel(3, 2.5))
    image = draw(ramp, patch, WINDOW)
    assert image.shape == (3, 40, 20) and image.dtype == np.uint8
    rows = (np.arange(40) + 0.5) / 40 * 20.0 - 10.0
    cols = (np.arange(20) + 0.5) / 20 * 16.0 - 8.0
    for got, offset in zip(image, patch.offsets_mm, strict=True):
        z, y, x = center
        if plane == "axial":
            z = ramp.z_mm[nearest_slices(ramp.z_mm, np.array(z + offset))]
            hu = hu_at(ramp, z, y + rows[:, None], x + cols[None])
        elif plane == "sagittal":
            hu = hu_at(ramp, z - rows[:, None], y + cols[None], x - offset)
        else:
            hu = hu_at(ramp, z - rows[:, None], y - offset, x + cols[None])
        exact = 255 * (hu + 500) / 2000
        # 4 HU for codes, and half a pixel of the lattice in each direction (2.1 HU).
        assert np.abs(got - exact).max() < 255 * 9 / 2000 + 1


def test_windows_are_channels_of_each_plane(ramp):
    patch = Patch("axial", (25.0, 41.0, 47.0), (20.0, 20.0), (32, 32), parallel(3, 2.5))
    windows = [(-500.0, 1500.0), (0.0, 400.0)]
    both = draw(ramp, patch, windows)
    assert both.shape == (6, 32, 32)
    for k, window in enumerate(windows):
        assert np.array_equal(both[k::2], draw(ramp, patch, [window]))
    standing = draw(ramp, patch.turned("coronal"), windows)
    assert np.array_equal(standing[1::2], draw(ramp, patch.turned("coronal"), windows[1:]))


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_minmax_stretches_each_plane_by_itself(ramp, plane):
    patch = Patch(plane, (25.0, 41.0, 47.0), (20.0, 20.0), (64, 64), parallel(3, 2.5))
    image = draw(ramp, patch, ["minmax"])
    assert (image.min(axis=(1, 2)) <= 6).all() and (image.max(axis=(1, 2)) >= 249).all()
    wide = draw(ramp, patch, WINDOW)
    assert all(
        np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99 for a, b in zip(image, wide, strict=True)
    )
    both = draw(ramp, patch, ["minmax", *WINDOW])
    assert np.array_equal(both[::2], image) and np.array_equal(both[1::2], wide)
    flat = volume_of(np.full((NZ, *FRAME), 40, np.int16))
    assert not draw(flat, patch, ["minmax"]).any()


def pillars(spacing=0.3):
    """A pillar of hollow bone, one 30 mm beside it and one 30 mm in front, in muscle."""
    z, y, x = (
        np.mgrid[:NZ, : FRAME[0], : FRAME[1]] * np.array([DZ, PITCH, PITCH])[:, None, None, None]
    )
    hu = np.full(z.shape, 50, np.int16)
    for at_y, at_x in ((45.0, 47.0), (45.0, 77.0), (15.0, 47.0)):
        hu[np.hypot(y - at_y, x - at_x) < 6.0] = 800
        hu[np.hypot(y - at_y, x - at_x) < 2.0] = 60  # marrow stays, it is closed over
    return volume_of(hu, spacing)


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_without_background_only_the_bone_around_the_center_is_left(plane):
    volume = pillars()
    patch = Patch(plane, (25.0, 45.0, 47.0), (40.0, 76.0), (80, 152), background="zero")
    kept, whole = (
        draw(volume, patch, WINDOW)[0],
        draw(volume, replace(patch, background="keep"), WINDOW)[0],
    )
    rows, cols = (np.mgrid[:80, :152] + 0.5) / 2 - np.array([20.0, 38.0])[:, None, None]
    off = np.hypot(rows, cols) if plane == "axial" else np.abs(cols)
    assert np.array_equal(kept[off < 7], whole[off < 7]) and whole.min() > 0
    assert not kept[off > 9.5].any() and whole[off > 9.5].max() > 150


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("spacing", [0.25, 1.0])
def test_the_mask_channel_is_the_spines_bone_and_that_of_one_vertebra(plane, spacing):
    volume = pillars(spacing)
    patch = Patch(plane, (25.0, 45.0, 47.0), (40.0, 76.0), (80, 152), parallel(3, 2.0))
    image, mask = (draw(volume, patch, [*WINDOW, SPINE])[k::2] for k in (0, 1))
    assert np.array_equal(image, draw(volume, patch, WINDOW)), "the image stays as it is"
    rows, cols = (np.mgrid[:80, :152] + 0.5) / 2 - np.array([20.0, 38.0])[:, None, None]
    off = np.hypot(rows, cols) if plane == "axial" else np.abs(cols)
    assert mask[1][off < 6].min() == 255 and mask[1][off > 10].max() == 0
    # Of a vertebra from 20 to 27 mm: planes or rows beyond show nothing.
    own = draw(volume, replace(patch, own_mm=(27.0, 20.0)), [*WINDOW, SPINE])[1::2]
    if plane == "axial":
        at = volume.z_mm[nearest_slices(volume.z_mm, np.array([27.0, 25.0, 23.0]))]
        for k, z in enumerate(at):
            assert np.array_equal(own[k], mask[k] if 20.0 <= z <= 27.0 else 0 * mask[k])
    else:
        z = 25.0 - rows[:, 0]
        inside = (z < 27.0 - DZ) & (z > 20.0 + DZ)
        assert np.array_equal(own[1][inside], mask[1][inside])
        assert not own[1][(z > 27.0 + DZ) | (z < 20.0 - DZ)].any()


def test_a_vertebra_that_no_plane_shows_has_an_empty_mask():
    patch = Patch("axial", (25.0, 45.0, 47.0), (40.0, 76.0), (80, 152), own_mm=(90.0, 80.0))
    assert not draw(pillars(), patch, [SPINE]).any()


def test_an_axial_patch_is_cut_windowed_then_shrunk(ramp):
    patch = Patch("axial", (30.0, 41.0, 47.0), (40.0, 40.0), (64, 64))
    box = axial_box(ramp, patch)
    z = int(nearest_slices(ramp.z_mm, np.array(30.0)))
    part = ramp.voxels.slices([z], slice(box.y0, box.y1), slice(box.x0, box.x1))[0]
    expected = cv2.resize(CURVE.window(*WINDOW[0])[part], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.array_equal(draw(ramp, patch, WINDOW)[0], expected)


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("spacing", [0.21, 0.3, 0.8])
def test_what_is_drawn_does_not_depend_on_the_box_that_was_cut(plane, spacing):
    rng = np.random.default_rng(1)
    hu = rng.integers(-900, 2000, (NZ, *FRAME)).astype(np.int16)
    whole = volume_of(hu, spacing)
    box = whole.lattice.around(np.array([20.3, 22.1]), np.array([71.0, 77.7]))
    cut = volume_of(hu, spacing, box, slice(6, 36))
    assert cut.z_mm[0] == whole.z_mm[6] and cut.first_slice == 6
    for _ in range(20):
        center = tuple(rng.uniform(low, high) for low, high in ((20, 30), (38, 52), (38, 60)))
        patch = Patch(plane, center, (20.0, 26.0), (24, 31), parallel(5, 1.0))
        assert np.array_equal(draw(whole, patch, WINDOW), draw(cut, patch, WINDOW))


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_outside_is_air(ramp, plane):
    window = [(-1500.0, 1500.0)]
    air = CURVE.window(*window[0])[0]
    far = Patch(plane, (0.0, -200.0, -200.0), (20.0, 20.0), (16, 16), (1.0, -1.0))
    assert (draw(ramp, far, window) == air).all() and draw(ramp, far, window).shape == (2, 16, 16)
    edge = draw(ramp, Patch(plane, (25.0, 0.0, 0.0), (30.0, 30.0), (30, 30)), window)[0]
    assert (edge[:, :14] == air).all() and (edge[15, 16:] > air).all()
    if plane != "axial":
        top = draw(ramp, Patch(plane, (50.0, 40.0, 40.0), (20.0, 20.0), (20, 20)), window)[0]
        assert (top[:9] == air).all() and (top[10:] > air).all()
        above = Patch(plane, (500.0, 40.0, 40.0), (20.0, 20.0), (20, 20))
        assert (draw(ramp, above, window) == air).all()


def test_axial_ends_clamp(ramp):
    patch = Patch("axial", (50.0, 40.0, 40.0), (20.0, 20.0), (20, 20), parallel(3, 4.0))
    planes = draw(ramp, patch, WINDOW)
    assert np.array_equal(planes[0], planes[1]) and not np.array_equal(planes[1], planes[2])


def test_standing_planes_average_slices_that_lie_closer_than_rows():
    hu = np.zeros((NZ, *FRAME), np.int16)
    hu[::2] = 400
    striped = volume_of(hu)
    patch = Patch("sagittal", (25.0, 40.0, 40.0), (30.0, 20.0), (3, 20))
    even = draw(striped, patch, WINDOW)[0]
    assert np.abs(even.astype(int) - 255 * (200 + 500) / 2000).max() < 8


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_masks_lie_where_images_do(plane):
    """A mask of what is bright, drawn, covers what is bright in the drawn image."""
    hu = np.full((NZ, *FRAME), -1000, np.int16)
    hu[10:30, 60:120, 80:140] = 800
    volume = volume_of(hu)
    lattice = volume.lattice
    labels = np.stack([lattice.resample_labels((frame > 0).astype(np.uint8) * 3) for frame in hu])
    volume = replace(volume, mask=Held(labels))
    patch = Patch(plane, (25.0, 38.0, 47.0), (40.0, 40.0), (50, 60), parallel(3, 6.0))
    image, mask = draw(volume, patch, [(-1000.0, 800.0)]), draw_mask(volume, patch)
    assert mask.shape == image.shape and set(np.unique(mask)) == {0, 3}
    assert ((image > 127) == (mask > 0)).mean() > 0.985
    with pytest.raises(StudyError, match="no mask"):
        draw_mask(replace(volume, mask=None), patch)


def test_nearest_slices_clamp_and_prefer_the_upper():
    z_mm = np.array([10.0, 8.0, 5.0])
    at = np.array([[99.0, 9.0], [6.5, -99.0]])
    assert nearest_slices(z_mm, at).tolist() == [[0, 0], [1, 2]]

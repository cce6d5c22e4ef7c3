"""Pictures of studies: planes to scale, one study or several."""

import cv2
import numpy as np
import pytest

from cspine_kit.core.config import PhantomConfig
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.phantom.competition.write import write_competition
from cspine_kit.show.study import TILE_PX, draw_study, montage, write_montage
from cspine_kit.show.views import AXIAL, CORONAL, SAGITTAL, view


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One phantom study as the reader gives it."""
    spec = PhantomConfig(studies=1, test_studies=1, size_px=64, masked=0, boxed=0, seed=3)
    competition = write_competition(tmp_path_factory.mktemp("pictures"), spec, jobs=1)
    return read_study(next((competition.root / "train_images").iterdir()))


def test_planes_are_to_scale():
    voxels = np.zeros((10, 20, 30), np.uint8)
    spacing = (3.0, 0.5, 0.4)
    sizes = {AXIAL: (10.0, 12.0), CORONAL: (30.0, 12.0), SAGITTAL: (30.0, 10.0)}
    for axis, (tall_mm, wide_mm) in sizes.items():
        picture = view(voxels, spacing, axis, 0, pixel_mm=0.5)
        assert picture.shape == (tall_mm / 0.5, wide_mm / 0.5)


def test_hu_is_windowed_and_grey_stays():
    hu = np.full((2, 4, 4), 450, np.int16)
    assert (view(hu, (1.0, 1.0, 1.0), AXIAL, 0, pixel_mm=1.0) == 127).all()
    grey = np.full((2, 4, 4), 7, np.uint8)
    assert (view(grey, (1.0, 1.0, 1.0), AXIAL, 0, pixel_mm=1.0) == 7).all()


def test_montage_shows_each_study_in_a_row(study):
    image = montage([study, study])
    assert image.dtype == np.uint8
    assert image.shape[0] == 2 * TILE_PX
    assert np.array_equal(image[:TILE_PX], image[TILE_PX:])
    assert image.max() == 255


def test_pictures_are_written_as_png(study, tmp_path):
    draw_study(study, tmp_path / "one.png")
    write_montage(tmp_path / "all.png", [study])
    for name in ("one.png", "all.png"):
        assert cv2.imread(str(tmp_path / name), cv2.IMREAD_GRAYSCALE).max() == 255

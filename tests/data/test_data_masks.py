"""Masks as annotators leave them: strays are cut, fragments stay, nonsense is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
from scans import NZ, SIZE, STEP, neck_labels, write_mask, write_scan

from cspine_kit.core.errors import StudyError
from cspine_kit.data.components import keep_vertebrae
from cspine_kit.data.masks import check_mask, check_order, read_mask
from cspine_kit.data.reader.dicom import read_study


def grid(nz: int, spacing=(1.0, 0.5, 0.5)) -> SimpleNamespace:
    """What is looked at of a study."""
    z_mm = 100.0 - spacing[0] * np.arange(nz)
    return SimpleNamespace(study_uid="1.2.3", z_mm=z_mm, spacing_mm=spacing)


def tower(nz: int = 120, side: int = 40, tall: int = 12) -> np.ndarray:
    """C1..C7 as blocks of `tall` mm one below the other, T1 below them."""
    labels = np.zeros((nz, side, side), np.uint8)
    for level in range(8):
        labels[10 + tall * level : 10 + tall * (level + 1), 12:28, 10:30] = level + 1
    return labels


def test_a_clean_mask_stays_as_it_is():
    mask = tower()
    assert keep_vertebrae(mask, grid(120)) == []
    np.testing.assert_array_equal(mask, tower())


def test_strays_are_cut_and_told_with_their_distance():
    mask = tower()
    mask[116, 2, 3:5] = 2
    mask[0, 14, 14] = 5
    cuts = keep_vertebrae(mask, grid(120))
    np.testing.assert_array_equal(mask, tower())
    assert [(cut.level, cut.voxels) for cut in cuts] == [("C2", 2), ("C5", 1)]
    assert [cut.beyond_mm for cut in cuts] == [116 - 33, 58]


def test_strays_beside_each_other_over_the_gap_between_planes_do_not_merge():
    mask = tower()
    mask[100:106, 12:16, 10:30] = 1
    mask[90, 12:28, 10:30] = 1
    (cut,) = keep_vertebrae(mask, grid(120))
    assert cut.level == "C1"
    assert not (mask[22:] == 1).any()


def test_crumbs_near_by_are_cut_without_a_word():
    mask = tower()
    mask[15, 5, 20] = 1
    assert keep_vertebrae(mask, grid(120)) == []
    np.testing.assert_array_equal(mask, tower())


def test_the_pieces_of_a_broken_vertebra_stay():
    mask = tower()
    mask[34:46, 12:28, 18:24] = 0
    mask[36:40, 30:34, 12:20] = 3
    broken = mask.copy()
    assert keep_vertebrae(mask, grid(120)) == []
    np.testing.assert_array_equal(mask, broken)


def test_slices_left_out_do_not_cost_half_a_level():
    mask = tower()
    mask[51:54] = 0
    gap = mask.copy()
    assert keep_vertebrae(mask, grid(120)) == []
    np.testing.assert_array_equal(mask, gap)


def test_millimeters_are_those_of_the_slices():
    mask = tower()
    mask[118, 12, 12] = 7
    study = grid(120)
    study.z_mm[118:] -= 30.0
    (cut,) = keep_vertebrae(mask, study)
    assert cut.beyond_mm == pytest.approx(118 - 93 + 30)


def test_a_level_in_two_places_is_refused():
    mask = tower()
    mask[mask == 6] = 2
    with pytest.raises(StudyError, match="its mask shows C2 in two places, 37 mm apart"):
        keep_vertebrae(mask, grid(120))


def test_a_thoracic_level_in_two_places_keeps_the_larger():
    mask = tower()
    mask[0:9, 12:28, 10:30] = 8
    assert keep_vertebrae(mask, grid(120)) == [], "of cervical levels nothing is to be told"
    np.testing.assert_array_equal(mask, tower())


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0, 7, 6, 5, 4, 3, 2, 1), "upside down: C7 lies above C1"),
        ((0, 1, 3, 2, 4, 5, 6, 7), "wrongly numbered: C3 lies above C2"),
        ((0, 2, 1, 3, 4, 5, 7, 6), "wrongly numbered: C2 lies above C1, C7 lies above C6"),
        ((0, 4, 4, 4, 4, 4, 4, 4), "C4 is 83 mm tall, which no vertebra is"),
    ],
)
def test_a_wrong_order_is_refused_and_named(numbers, said):
    mask = np.array([*numbers, 0], np.uint8)[tower()]
    with pytest.raises(StudyError, match=said):
        check_order(mask, grid(120))


def test_levels_left_out_inside_are_named_and_those_at_the_ends_are_not():
    partial = np.array([0, 0, 2, 3, 0, 0, 6, 0, 0], np.uint8)[tower()]
    assert check_order(partial, grid(120)) == ("C4", "C5")


def test_a_mask_is_read_with_what_is_told_of_it(tmp_path):
    write_scan(tmp_path / "scan")
    study = read_study(tmp_path / "scan", "1.2.3")
    labels = neck_labels()
    labels[labels == 5] = 0
    clean = labels.copy()
    labels[-1, 51, 57:60] = 2
    write_mask(tmp_path / "m.nii", labels)
    mask = check_mask(tmp_path / "m.nii", study)
    np.testing.assert_array_equal(mask.labels, clean)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii", study), clean)
    assert mask.codes == ("mask_strays", "mask_gap")
    far = (NZ - 1 - 5) * STEP
    assert mask.remarks == (
        f"voxels of its mask far from their vertebra were left out: C2 {far:.0f} mm",
        "its mask leaves out C5 between other levels",
    )
    assert mask.labels.shape == (NZ, SIZE, SIZE)

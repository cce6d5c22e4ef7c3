"""Boxes are drawn on files as they are stored and lie in the kit's frame."""

import numpy as np
import pandas as pd
from scans import neck_hu, write_scan

from cspine_kit.data.boxes import join_boxes
from cspine_kit.data.reader.dicom import read_geometry

COLUMNS = ["line", "slice_number", "box_x", "box_y", "box_w", "box_h"]


def joined(folder, *boxes):
    """Boxes of a study whose frames are stored transposed: 64 columns run to the back."""
    frames = np.ascontiguousarray(neck_hu(8)[:, :64, :96].transpose(0, 2, 1))
    write_scan(folder, frames, ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
    geometry = read_geometry(folder, "1.2.3")
    assert geometry.shape == (64, 96)
    slices = pd.DataFrame({"slice_number": geometry.slice_numbers})
    given = pd.DataFrame(boxes, columns=COLUMNS)
    return join_boxes(slices, given, geometry.shape, geometry.to_stored)


def test_a_box_of_a_transposed_frame_is_moved_whole(tmp_path):
    # Row 80 of a stored frame lies outside of 64 rows, column 80 of the turned one does not.
    slices, remarks = joined(tmp_path, (2, 3.0, 20.0, 80.0, 10.0, 12.0))
    assert remarks == []
    own = slices.dropna()
    assert own["slice_number"].tolist() == [3]
    assert own[COLUMNS[2:]].iloc[0].tolist() == [80.0, 20.0, 12.0, 10.0]


def test_a_box_is_cut_at_the_turned_frame(tmp_path):
    slices, remarks = joined(
        tmp_path,
        (2, 3.0, 20.0, 90.0, 10.0, 12.0),
        (3, 4.0, 70.0, 10.0, 10.0, 12.0),
        (4, 99.0, 1.0, 1.0, 2.0, 2.0),
    )
    assert slices.dropna()[COLUMNS[2:]].to_numpy().tolist() == [[90.0, 20.0, 6.0, 10.0]]
    assert remarks == [
        "box of line 2: cut at the frame of 64 x 96",
        "box of line 3: outside the frame of 64 x 96",
        "box of line 4: no slice has the number 99",
    ]


def test_without_boxes_every_slice_has_none():
    slices, remarks = join_boxes(pd.DataFrame({"slice_number": [1.0, 2.0]}), None, (4, 4))
    assert slices["box_x"].isna().all() and remarks == []

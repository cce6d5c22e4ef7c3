"""The real label and box tables pass the careful reader whole."""

from cspine_kit.core.anatomy import REAL_STUDIES
from cspine_kit.data.boxes import read_boxes
from cspine_kit.data.labels import parse_labels


def test_every_real_label_is_read(real_data):
    labels, reasons = parse_labels(real_data / "train.csv")
    assert len(labels) == REAL_STUDIES and not reasons


def test_every_real_box_is_read(real_data):
    boxes, remarks = read_boxes(real_data / "train_bounding_boxes.csv")
    assert not remarks and len(boxes) == 235
    assert sum(map(len, boxes.values())) == 7_217

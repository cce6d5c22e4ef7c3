"""Labels, boxes and masks of the competition and of the folders that are learned from beside it.

In: a `Competition`. Out: labels with the source of each study, boxes, reasons and remarks.
Example::

    labels, boxes, failures, remarks = read_sources(competition)
    labels["source"].value_counts()           # "competition", and each folder of `extra`

A folder of `competition.extra` holds train.csv and train_images/ as the competition does, and
segmentations/ and train_bounding_boxes.csv where there are any; its test set is not looked at.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import pandas as pd

from cspine_kit.core.errors import DataError
from cspine_kit.core.paths import Competition
from cspine_kit.data.boxes import Remarks, read_boxes
from cspine_kit.data.labels import parse_labels


class Sources(NamedTuple):
    """What the folders say of their training studies.

    `labels` has the eight targets and `source` by study_uid, `boxes` a table by study_uid;
    `failures` are the reasons of studies whose labels cannot be used, `remarks` what is wrong with
    masks and boxes.
    """

    labels: pd.DataFrame
    boxes: dict[str, pd.DataFrame]
    failures: dict[str, str]
    remarks: Remarks


def read_sources(competition: Competition) -> Sources:
    """Read the sheets of every source; of a study in two of them the first one's count.

    Raises:
        DataError: a train.csv cannot be used; names its folder.
    """
    parts: list[pd.DataFrame] = []
    boxes: dict[str, pd.DataFrame] = {}
    failures: dict[str, str] = {}
    remarks: Remarks = {}
    owner: dict[str, str] = {}
    for name, source in competition.sources.items():
        labels, bad = parse_labels(source.train_csv)
        own_boxes, said = read_boxes(source.boxes_csv)
        twice = [uid for uid in (*labels.index, *bad) if uid in owner]
        for uid in twice:
            remarks.setdefault(uid, []).append(
                f"it is in {owner[uid]} and in {name}; the first counts"
            )
        known = {*labels.index, *bad}
        for uid, lines in _unused(source, own_boxes, known).items():
            said.setdefault(uid, []).extend(lines)
        own = known - set(twice)
        parts.append(labels[labels.index.isin(own)].assign(source=name))
        failures |= {uid: why for uid, why in bad.items() if uid in own}
        boxes |= {uid: rows for uid, rows in own_boxes.items() if uid not in twice}
        for uid, lines in said.items():
            remarks.setdefault(uid, []).extend(lines)
        owner |= dict.fromkeys(own, name)
    return Sources(pd.concat(parts), boxes, failures, remarks)


def check_extra(competition: Competition) -> None:
    """Refuse a folder of `competition.extra` that nothing can be learned from.

    Raises:
        DataError: it has no train.csv or no train_images, or is named twice.
    """
    if len(competition.sources) != 1 + len(competition.extra):
        raise DataError(
            f"competition.extra names a folder twice: {list(map(str, competition.extra))}"
        )
    for folder in competition.extra:
        source = Competition(folder)
        missing = [
            p.name for p in (source.train_csv, source.root / "train_images") if not p.exists()
        ]
        if missing:
            raise DataError(
                f"competition.extra: {folder} lacks {' and '.join(missing)}; it needs train.csv "
                "(StudyInstanceUID, patient_overall, C1..C7) and train_images/<StudyInstanceUID>/"
            )


def _unused(source: Competition, boxes: Iterable[str], known: Collection[str]) -> Remarks:
    """Masks and boxes that belong to no study with labels."""
    names = sorted(path.name for path in source.segmentations.glob("*.nii*"))
    owner = {name: name.removesuffix(".gz").removesuffix(".nii") for name in names}
    remarks: Remarks = {}
    for name, uid in owner.items():
        if uid not in known:
            remarks.setdefault(uid, []).append(f"its mask {name} has no study in train.csv")
    for uid in boxes:
        if uid not in known:
            remarks.setdefault(uid, []).append("its boxes have no study in train.csv")
    return remarks

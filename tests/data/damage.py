"""A tiny sound competition, and the ways in which people damage one.

In: a folder. Out: six training studies and one test study in the layout of the competition.
Example: `write_small(tmp_path / "c")`, then `edit(competition.train_csv, lambda t: "\\ufeff" + t)`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scans import SIZE, neck_hu, neck_labels, write_mask, write_scan

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.paths import BOXES_CSV_COLUMNS, Competition

TRAIN, TEST = tuple(f"1.2.{k}" for k in range(1, 7)), "1.2.9"
BROKEN = {"1.2.1": ("C2",), "1.2.3": ("C5", "C6"), "1.2.5": ("C7",)}
MASKED = ("1.2.1", "1.2.2", "1.2.4")
BOXES = (
    ("1.2.1", 30.5, 40, 12, 14, 4),
    ("1.2.1", 31, 40, 12, 14, 5),
    ("1.2.3", 33, 41, 10.25, 9, 14),
)


def own_neck(seed: int, nz: int = 24) -> np.ndarray:
    """A neck with tissue of its own, so that no two are near-duplicates."""
    hu = neck_hu(nz)
    blocks = np.random.default_rng(seed).integers(-200, 200, (nz, SIZE // 4, SIZE // 4))
    return (hu + blocks.repeat(4, axis=1).repeat(4, axis=2) * (hu == 50)).astype(np.int16)


def write_small(root: Path) -> Competition:
    """Six studies of which three are fractured, three masked and two boxed; one test study."""
    competition = Competition(root)
    for seed, uid in enumerate((*TRAIN, TEST)):
        folder = root / ("test_images" if uid == TEST else "train_images") / uid
        write_scan(folder, own_neck(seed), PatientID=uid, StudyInstanceUID=uid)
    for uid in MASKED:
        write_mask(root / "segmentations" / f"{uid}.nii", neck_labels())
    rows = [
        {
            "StudyInstanceUID": uid,
            OVERALL: int(uid in BROKEN),
            **{level: int(level in BROKEN.get(uid, ())) for level in LEVELS},
        }
        for uid in TRAIN
    ]
    pd.DataFrame(rows).to_csv(competition.train_csv, index=False)
    boxes = pd.DataFrame(BOXES, columns=list(BOXES_CSV_COLUMNS))
    boxes.to_csv(competition.boxes_csv, index=False)
    pd.DataFrame(
        {"row_id": [f"{TEST}_C1"], "StudyInstanceUID": [TEST], "prediction_type": ["C1"]}
    ).to_csv(competition.test_csv, index=False)
    return competition


def edit(path: Path, change: Callable[[str], str], encoding: str = "utf-8") -> None:
    """Rewrite a text file byte for byte as `change` says (a copy may be a hard link)."""
    text = change(path.read_bytes().decode())
    path.unlink()
    path.write_bytes(text.encode(encoding))


def line(text: str, number: int, change: Callable[[str], str]) -> str:
    """`text` with its line `number` (from 1) changed."""
    lines = text.splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1].rstrip("\n")) + "\n"
    return "".join(lines)


def nest(folder: Path) -> None:
    """Move a folder into one of its own name, as unzipping into it does."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.mkdir()
    aside.rename(folder / folder.name)


def pack(folder: Path) -> None:
    """Leave only the archive of a folder."""
    shutil.make_archive(str(folder), "zip", folder)
    shutil.rmtree(folder)

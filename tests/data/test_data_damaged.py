"""Every damaged competition ends in the right run, or in words that name place, value and remedy.

Each case damages one thing of a small sound competition. What the case does not name must come out
exactly as from the sound one.
"""

import gzip
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from damage import TEST, TRAIN, edit, line, nest, own_neck, pack, write_small
from scans import NZ, SIZE, neck_labels, write_mask, write_scan

from cspine_kit.core.config import Config, load_config
from cspine_kit.core.errors import DataError
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.runs import read_json
from cspine_kit.core.tables import SPINE_BOX_COLUMNS, read_table
from cspine_kit.data.stages import run_folds, run_index

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
A, B, C, D, E, F = TRAIN


@dataclass(frozen=True)
class Case:
    """A damage and all that may follow from it."""

    damage: Callable[[Competition], object]
    error: str = ""
    lost: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    unmasked: tuple[str, ...] = ()
    unboxed: tuple[str, ...] = ()
    problems: dict[str, str] = field(default_factory=dict)
    unlisted: tuple[str, ...] = ()
    box_mm: float = 0.0
    """How far the box around the spine may move."""


def train_csv(change: Callable[[str], str], **outcome: object) -> Case:
    return Case(lambda c: edit(c.train_csv, change), **outcome)


def row(number: int, change: Callable[[str], str], **outcome: object) -> Case:
    return train_csv(lambda text: line(text, number, change), **outcome)


def boxes_csv(change: Callable[[str], str], **outcome: object) -> Case:
    return Case(lambda c: edit(c.boxes_csv, change), **outcome)


def mask(change: Callable[[Path], object], said: str) -> Case:
    """A mask that costs itself: study A stays without it."""
    return Case(
        lambda c: change(c.segmentation(A)),
        remarks={A: said},
        unmasked=(A,),
        problems={A: "bad_mask"},
    )


def rewrite(path: Path, labels: np.ndarray) -> None:
    path.unlink()
    write_mask(path, labels)


def stray(labels: np.ndarray) -> np.ndarray:
    """A few voxels of C3 at the height of T1."""
    labels = labels.copy()
    labels[-2, 4, 5:8] = 3
    return labels


def compress(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def coarser(path: Path) -> None:
    """The same mask on half the pixels along x, as another program resampled it."""
    image = nibabel.load(path)
    data = np.asarray(image.dataobj)
    x = int(np.abs(image.affine[0, :3]).argmax())
    keep = tuple(slice(None, None, 2) if axis == x else slice(None) for axis in range(3))
    affine = image.affine.copy()
    affine[:, x] *= 2
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(data[keep], affine), path)


def renumber(path: Path, numbers: Callable[[np.ndarray], np.ndarray], dtype: type) -> None:
    image = nibabel.load(path)
    data = numbers(np.asarray(image.dataobj).astype(dtype))
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(data, image.affine), path)


def flat(path: Path) -> None:
    """A mask whose affine has no height."""
    data = np.asarray(nibabel.load(path).dataobj)
    path.unlink()
    header = nibabel.Nifti1Header()
    header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nibabel.save(nibabel.Nifti1Image(data, None, header), path)


def link_to_nowhere(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path.parent / "nowhere")


def one_patient(competition: Competition) -> None:
    for seed, uid in enumerate(TRAIN):
        shutil.rmtree(competition.images("train", uid))
        write_scan(
            competition.images("train", uid), own_neck(seed), PatientID="X1", StudyInstanceUID=uid
        )


def some_dead_files(competition: Competition) -> None:
    link_to_nowhere(competition.images("train", B) / "24.dcm")
    (competition.images("train", B) / "note.txt").symlink_to("nowhere")


FINE = {
    "nothing": Case(lambda c: None),
    "no test.csv": Case(lambda c: c.test_csv.unlink(), unlisted=(TEST,)),
    "test.csv with BOM, CRLF, semicolons": Case(
        lambda c: edit(c.test_csv, lambda t: "\ufeff" + t.replace(",", " ; ").replace("\n", "\r\n"))
    ),
    "BOM": train_csv(lambda t: "\ufeff" + t),
    "UTF-16": Case(lambda c: edit(c.train_csv, str, "utf-16")),
    "semicolons": train_csv(lambda t: t.replace(",", ";")),
    "tabs": train_csv(lambda t: t.replace(",", "\t")),
    "CRLF": train_csv(lambda t: t.replace("\n", "\r\n")),
    "CR alone": train_csv(lambda t: t.replace("\n", "\r")),
    "quotes": train_csv(lambda t: re.sub(r"[^,\n]+", r'"\g<0>"', t)),
    "quotes after spaces": train_csv(lambda t: re.sub(r"[^,\n]+", r' "\g<0>"', t)),
    "spaces in header and cells": train_csv(lambda t: t.replace(",", " , ")),
    "trailing blank in ids": train_csv(lambda t: re.sub(r"(?m)^(1[.\d]+)", r"\1 ", t)),
    "capitals in the header": row(1, str.lower),
    "empty lines and a trailing comma": train_csv(lambda t: "\n" + t.replace("\n", ",\n\n")),
    "0.0 and 1.0": train_csv(lambda t: re.sub(r",([01])\b", r",\1.0", t)),
    "True and False": train_csv(lambda t: re.sub(r",1\b", ",True", t).replace(",0", ",FALSE")),
    "duplicate rows": train_csv(lambda t: t + line(t, 2, str).splitlines()[1] + "\n"),
    "study_uid as the name": row(1, lambda h: h.replace("StudyInstanceUID", "study_uid")),
    "boxes with semicolons and decimal commas": boxes_csv(
        lambda t: t.replace(",", ";").replace(".5;", ",5;").replace(".25;", ",25;")
    ),
    "boxes with BOM, slice 4.0, a blank after the id": boxes_csv(
        lambda t: "\ufeff" + t.replace(",4\n", ", 4.0\n").replace("1.2.1,", "1.2.1 ,")
    ),
    "a box listed twice": boxes_csv(lambda t: t + t.splitlines()[1] + "\n"),
    "mask .nii.gz": Case(lambda c: compress(c.segmentation(A))),
    "mask on another grid": Case(lambda c: coarser(c.segmentation(A)), box_mm=1.5),
    "mask as floats": Case(lambda c: renumber(c.segmentation(A), lambda m: m, np.float32)),
    "doubled train_images": Case(lambda c: nest(c.root / "train_images")),
    "doubled test_images and segmentations": Case(
        lambda c: [nest(c.root / name) for name in ("test_images", "segmentations")]
    ),
    "one PatientID everywhere": Case(one_patient),
}

LABELS = {
    "empty cell": row(
        2, lambda r: r[:-2] + ",", lost={A: r"train.csv line 2, column C7: is empty"}
    ),
    "text": row(3, lambda r: r[:-1] + "no", lost={B: r"line 3, column C7: 'no' is not 0 or 1"}),
    "two": row(3, lambda r: r[:-1] + "2", lost={B: r"line 3, column C7: '2' is not 0 or 1"}),
    "NaN": row(3, lambda r: r[:-1] + "NaN", lost={B: r"column C7: 'NaN' is not 0 or 1"}),
    "minus": row(3, lambda r: r[:-1] + "-0", lost={}),
    "infinite": row(3, lambda r: r[:-1] + "inf", lost={B: r"column C7: 'inf' is not 0 or 1"}),
    "overall says sound": row(
        2,
        lambda r: r.replace(f"{A},1", f"{A},0"),
        lost={A: r"line 2, column patient_overall: 0, but C2 is 1; it must be the largest of C1"},
    ),
    "overall says fractured": row(
        3,
        lambda r: r.replace(f"{B},0", f"{B},1"),
        lost={B: r"line 3, column patient_overall: 1, but no level is 1; it must be the largest"},
    ),
    "contradictory rows": train_csv(
        lambda t: t + f"{B},1,1,0,0,0,0,0,0\n",
        lost={B: r"lines 3 and 8 of train.csv contradict each other in C1: '0' and '1'"},
    ),
    "a row cut short": row(3, lambda r: r[:-4], lost={B: r"train.csv line 3, column C6: is empty"}),
    "a row with more cells": row(
        7,
        lambda r: r + ",0",
        lost={"train.csv line 7": "line 7 has 10 cells, the header names 9"},
        unlisted=(F,),
    ),
    "an empty id": row(
        7,
        lambda r: r.replace(F, ""),
        lost={"train.csv line 7": "train.csv line 7: StudyInstanceUID is empty"},
        unlisted=(F,),
    ),
    "path characters in an id": train_csv(
        lambda t: t + "../1.2.1,0,0,0,0,0,0,0,0\n",
        lost={"../1.2.1": r"study '\.\./1\.2\.1': not a UID of digits and dots"},
    ),
    "a study without a folder": train_csv(
        lambda t: t + "1.2.8,0,0,0,0,0,0,0,0\n", lost={"1.2.8": r"there is no folder .*1\.2\.8"}
    ),
}

FILES = {
    "folder missing": Case(
        lambda c: shutil.rmtree(c.images("train", B)), lost={B: r"there is no folder .*1\.2\.2"}
    ),
    "folder empty": Case(
        lambda c: [p.unlink() for p in c.images("train", B).iterdir()], lost={B: r"study 1\.2\.2: "}
    ),
    "folder of rubbish": Case(
        lambda c: [(p.unlink(), p.write_bytes(b"rubbish")) for p in c.images("train", B).iterdir()],
        lost={B: r"study 1\.2\.2: "},
    ),
    "folder a dead link": Case(
        lambda c: link_to_nowhere(c.images("train", B)), lost={B: "is a link to nowhere"}
    ),
    "study still packed": Case(
        lambda c: pack(c.images("train", B)), lost={B: r"1\.2\.2\.zip is still packed; unzip it"}
    ),
    "file in the place of a folder": Case(
        lambda c: (shutil.rmtree(c.images("train", B)), c.images("train", B).write_text("x")),
        lost={B: "there is no folder"},
    ),
    "mask cut short": mask(
        lambda p: edit_bytes(p, lambda b: b[: len(b) // 2]), r"1\.2\.1\.nii cannot be read"
    ),
    "mask .nii.gz cut short": mask(
        lambda p: (compress(p), edit_bytes(p.with_name(p.name + ".gz"), lambda b: b[:-40])),
        r"1\.2\.1\.nii\.gz cannot be read",
    ),
    "mask empty file": mask(lambda p: edit_bytes(p, lambda b: b""), "cannot be read"),
    "mask without a label": mask(
        lambda p: rewrite(p, np.zeros((NZ, SIZE, SIZE), np.uint8)), "no voxel of C1..C7"
    ),
    "mask upside down": mask(
        lambda p: rewrite(p, np.where(neck_labels() > 0, 9 - neck_labels(), 0).clip(0, 7)),
        "its mask is upside down: C7 lies above C1",
    ),
    "mask with two levels swapped": mask(
        lambda p: rewrite(p, np.array([0, 1, 2, 4, 3, 5, 6, 7, 8], np.uint8)[neck_labels()]),
        "its mask is wrongly numbered: C4 lies above C3",
    ),
    "mask with a level in two places": mask(
        lambda p: rewrite(p, np.where(neck_labels() == 6, 2, neck_labels())),
        "its mask shows C2 in two places, 30 mm apart",
    ),
    "mask with a stray": Case(
        lambda c: rewrite(c.segmentation(A), stray(neck_labels())),
        problems={A: "mask_strays"},
        remarks={A: "far from their vertebra were left out: C3 62 mm"},
    ),
    "mask of another place": mask(
        lambda p: rewrite(p, np.roll(neck_labels(), 30, axis=2)), "sits on no bone"
    ),
    "mask with label 300": mask(
        lambda p: renumber(p, lambda m: m * 60, np.int16), "it holds .*labels are 0..19"
    ),
    "mask with negative labels": mask(
        lambda p: renumber(p, lambda m: -m, np.int16), "it holds -.*labels are 0..19"
    ),
    "mask with shares": mask(
        lambda p: renumber(p, lambda m: m / 2, np.float32), "it holds .*labels are 0..19"
    ),
    "mask with NaN": mask(
        lambda p: renumber(p, lambda m: np.where(m == 3, np.nan, m), np.float32), "it holds nan"
    ),
    "mask without height": mask(flat, "cannot be read: LinAlgError"),
    "mask a dead link": mask(link_to_nowhere, "cannot be read: FileNotFoundError"),
    "mask of an unknown study": Case(
        lambda c: c.segmentation(A).rename(c.segmentation("1.2.77")),
        remarks={"1.2.77": r"its mask 1\.2\.77\.nii has no study in train\.csv"},
        unmasked=(A,),
    ),
    "boxes of an unknown study": boxes_csv(
        lambda t: t + "1.2.77,1,2,3,4,5\n", remarks={"1.2.77": "its boxes have no study"}
    ),
    "box of an unknown slice": boxes_csv(
        lambda t: line(t, 4, lambda r: r.replace(",14", ",140")),
        remarks={C: "box of line 4: no slice has the number 140"},
        unboxed=(C,),
        problems={C: "bad_boxes"},
    ),
    "box outside the frame": boxes_csv(
        lambda t: line(t, 4, lambda r: r.replace(",33.0,", ",330.0,")),
        remarks={C: "box of line 4: outside the frame of 96 x 96"},
        unboxed=(C,),
        problems={C: "bad_boxes"},
    ),
    "box of negative size": boxes_csv(
        lambda t: line(t, 4, lambda r: r.replace(",9,", ",-9,")),
        remarks={C: r"bounding_boxes\.csv line 4, column height: '-9' is not above 0"},
        unboxed=(C,),
        problems={C: "bad_boxes"},
    ),
    "box with an empty cell": boxes_csv(
        lambda t: line(t, 4, lambda r: r.replace(",33.0,", ",,")),
        remarks={C: r"bounding_boxes\.csv line 4, column x: is empty"},
        unboxed=(C,),
        problems={C: "bad_boxes"},
    ),
    "box without a slice": boxes_csv(
        lambda t: line(t, 4, lambda r: r[:-2]),
        remarks={C: "line 4, column slice_number: is empty"},
        unboxed=(C,),
        problems={C: "bad_boxes"},
    ),
    "box in words": boxes_csv(
        lambda t: line(t, 4, lambda r: r.replace(",33.0,", ",left,")),
        remarks={C: r"line 4, column x: 'left' is no number"},
        unboxed=(C,),
        problems={C: "bad_boxes"},
    ),
}

STOPS = {
    "empty train.csv": train_csv(lambda t: "", error=r"train\.csv cannot be read: it is empty"),
    "header alone": train_csv(
        lambda t: t.splitlines()[0] + "\n", error=r"train\.csv lists no study"
    ),
    "another table": train_csv(lambda t: "a,b\n1,2\n", error=r"train\.csv lacks columns"),
    "a column missing": row(
        1, lambda h: h.replace(",C4", ",X4"), error=r"train\.csv lacks columns \['C4'\]"
    ),
    "a column twice": row(
        1, lambda h: h.replace(",C4", ",c3"), error=r"names columns twice: \['C3'\]"
    ),
    "a quote left open": row(
        3, lambda r: '"' + r, error=r"train\.csv line 3: a quote is opened and not closed"
    ),
    "a spreadsheet": Case(
        lambda c: edit_bytes(c.train_csv, lambda b: b"PK\x03\x04\xff\xfe\x80"),
        error=r"train\.csv cannot be read: it is no UTF-8 text .*save it as CSV",
    ),
    "every label wrong": train_csv(
        lambda t: re.sub(r",[01]\n", ",x\n", t),
        error=r"not one study succeeded \(6 failed\); the first: study 1\.2\.1: train\.csv line 2",
    ),
    "no boxes file": Case(
        lambda c: c.boxes_csv.unlink(), error=r"missing train_bounding_boxes\.csv"
    ),
    "boxes of another shape": boxes_csv(
        lambda t: t.replace("slice_number", "slice"),
        error=r"boxes\.csv lacks columns \['slice_number'\]",
    ),
    "no train_images": Case(
        lambda c: shutil.rmtree(c.root / "train_images"), error=r"missing train_images\. Accept"
    ),
    "train_images still packed": Case(
        lambda c: pack(c.root / "train_images"),
        error=r"missing train_images\. Unzip .*train_images\.zip there",
    ),
    "one folder deeper": Case(
        lambda c: deeper(c.root), error=r"set competition\.dir to .*rsna-2022-cervical"
    ),
    "all in one archive": Case(
        lambda c: whole_archive(c.root), error=r"Unzip .*rsna-2022-cervical-.*\.zip there"
    ),
    "test.csv without ids": Case(
        lambda c: edit(c.test_csv, lambda t: "row_id\n1_C1\n"),
        error=r"test\.csv lacks columns \['StudyInstanceUID'\]",
    ),
}

SLUG = load_config(CONFIG).competition.slug


def edit_bytes(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(change(data))


def deeper(root: Path) -> None:
    aside = root.with_name("aside")
    root.rename(aside)
    root.mkdir()
    aside.rename(root / SLUG)


def whole_archive(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()
    (root / f"{SLUG}.zip").write_bytes(b"PK")


@pytest.fixture(scope="module", name="sound")
def _sound(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    competition = write_small(root / "c")
    run_index(config_of(competition), RunPaths(root / "run"))
    return root


@pytest.fixture(name="competition")
def _competition(sound, tmp_path) -> Competition:
    """A copy to damage; its files are links to the sound ones."""
    shutil.copytree(sound / "c", tmp_path / "c", copy_function=os.link)
    return Competition(tmp_path / "c")


def config_of(competition: Competition) -> Config:
    demo = load_config(CONFIG)
    changes = {
        "competition": demo.competition.model_copy(update={"dir": competition.root}),
        "folds": demo.folds.model_copy(update={"n": 2}),
        "execution": demo.execution.model_copy(update={"jobs": 1}),
    }
    return demo.model_copy(update=changes)


def check_words(found: dict[str, str], expected: dict[str, str]) -> None:
    assert set(found) == set(expected)
    for uid, said in expected.items():
        assert re.search(said, found[uid]), found[uid]


@pytest.mark.parametrize("name", [*FINE, *LABELS, *FILES])
def test_a_damage_costs_what_it_damaged_and_no_more(name, sound, competition, tmp_path):
    case = {**FINE, **LABELS, **FILES}[name]
    case.damage(competition)
    competition = Competition(competition.root)
    config, paths = config_of(competition), RunPaths(tmp_path / "run")
    run_index(config, paths)
    run_folds(config, paths)
    check_words(read_json(paths.root / "index" / "failures.json"), case.lost)
    remarks = read_json(paths.root / "index" / "remarks.json")
    check_words({uid: "; ".join(lines) for uid, lines in remarks.items()}, case.remarks)
    expected = read_table(RunPaths(sound / "run").table("studies"), "studies")
    lost = {*case.lost, *case.unlisted}
    expected = expected[~expected["study_uid"].isin(lost)].set_index("study_uid")
    expected.loc[list(case.unmasked), "has_mask"] = False
    expected.loc[list(case.unboxed), "has_boxes"] = False
    for uid, code in case.problems.items():
        expected.loc[uid, "problems"] = code
    studies = read_table(paths.table("studies"), "studies").set_index("study_uid")
    pd.testing.assert_frame_equal(studies, expected)
    slices = read_table(paths.table("slices"), "slices")
    same = read_table(RunPaths(sound / "run").table("slices"), "slices")
    changed = {*lost, *case.unmasked, *case.unboxed}
    slices, same = (
        table[~table["study_uid"].isin(changed)].set_index(["study_uid", "slice_idx"])
        for table in (slices, same)
    )
    spine = list(SPINE_BOX_COLUMNS)
    pd.testing.assert_frame_equal(slices.drop(columns=spine), same.drop(columns=spine))
    pd.testing.assert_frame_equal(slices[spine], same[spine], rtol=0, atol=case.box_mm)
    training = studies.index[studies["split"] == "train"]
    folds = pd.read_csv(paths.folds, dtype=str)
    assert set(folds["study_uid"]) == set(training)
    assert set(folds["fold"]) == {"0", "1"}
    assert len(set(folds["group"])) == len(folds)


@pytest.mark.parametrize("name", list(STOPS))
def test_what_cannot_be_read_at_all_ends_in_words(name, competition, tmp_path):
    case = STOPS[name]
    case.damage(competition)
    with pytest.raises(DataError, match=case.error):
        run_index(config_of(competition), RunPaths(tmp_path / "run"))
    assert not RunPaths(tmp_path / "run").table("studies").exists()

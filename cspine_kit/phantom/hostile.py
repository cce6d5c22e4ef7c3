"""Hostile studies: one per defect that the real data has or may have, and what must come of it.

In: a folder and a seed. Out: a small competition whose test set holds one study per defect, and
`manifest.csv`. Example: `write_hostile(Path("data/hostile"), seed=0)`.

All hostile studies show one patient, so that a reader's output can be compared with the study
`clean`: `same_as_clean` says where the HU volume, head to foot, must be equal to the last bit.
Outcomes: `predicted` (from the models), `fallback` (from the priors, with a logged reason).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.config import PhantomConfig
from cspine_kit.core.paths import Competition
from cspine_kit.core.runs import derive_seed, publish, write_json
from cspine_kit.phantom import competition as plain
from cspine_kit.phantom.files import compress, decimal, set_pixels, slice_files
from cspine_kit.phantom.shapes import Grid

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

    Files = dict[str, FileDataset | bytes]
    Change = Callable[[list[FileDataset], np.random.Generator], Files]

SLICE_MM = 3.0
FIRST_NUMBER = plain.UID_NUMBERS + 1_000
LABELS = (0, 1, 0, 0, 1, 0, 0)
"""The patient of all hostile studies: C2 and C5 are fractured."""

HEALTHY_TRAINING = 6


@dataclass(frozen=True)
class Defect:
    """One defect: how files change, and what must come of the study."""

    change: Change
    what: str
    lost: int | None = 0
    """Slices that cannot be used; None where no slice count can be promised."""
    same: bool = True
    outcome: str = "predicted"


def _named(slices: list[FileDataset]) -> Files:
    return {f"{number}.dcm": file for number, file in enumerate(slices, start=1)}


def _bytes(file: FileDataset) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _stored(file: FileDataset) -> NDArray[np.int16]:
    shape = (file.Rows, file.Columns)
    return np.frombuffer(file.PixelData, np.int16).reshape(shape).copy()


def _each(change: Callable[[FileDataset, int], None]) -> Change:
    """Apply a change to every slice; it gets the dataset and its index."""

    def apply(slices: list[FileDataset], rng: np.random.Generator) -> Files:
        for index, file in enumerate(slices):
            change(file, index)
        return _named(slices)

    return apply


def _one(make: Callable[[FileDataset], FileDataset | bytes]) -> Change:
    """Replace the middle slice by something else."""

    def apply(slices: list[FileDataset], rng: np.random.Generator) -> Files:
        middle = len(slices) // 2
        files = _named(slices)
        files[f"{middle + 1}.dcm"] = make(slices[middle])
        return files

    return apply


def _keep(count: int) -> Change:
    """Keep only so many slices from the middle of the neck."""

    def apply(slices: list[FileDataset], rng: np.random.Generator) -> Files:
        first = (len(slices) - count) // 2
        return _named(slices[first : first + count])

    return apply


def _reversed(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    for number, file in enumerate(slices[::-1], start=1):
        file.InstanceNumber = number
    return _named(slices[::-1])


def _shuffled_names(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return _named([slices[i] for i in rng.permutation(len(slices))])


def _wrong_instance_numbers(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    for file, number in zip(slices, rng.permutation(len(slices)), strict=True):
        file.InstanceNumber = int(number) + 1
    return _named(slices)


def _duplicated(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    files = _named(slices)
    for extra, index in enumerate((10, 11, 25), start=1):
        number = len(slices) + extra
        twin = _copy(slices[index])
        twin.SOPInstanceUID = f"{twin.SeriesInstanceUID}.{number}"
        twin.file_meta.MediaStorageSOPInstanceUID = twin.SOPInstanceUID
        twin.InstanceNumber = number
        files[f"{number}.dcm"] = twin
    return files


def _copy(file: FileDataset) -> FileDataset:
    from copy import deepcopy

    return deepcopy(file)


def _missing(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    gap = range(20, 25)
    return {name: f for i, (name, f) in enumerate(_named(slices).items()) if i not in gap}


def _two_series(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    files = _named(slices)
    for extra, file in enumerate(slices[20:32:2], start=1):
        other = _copy(file)
        other.SeriesInstanceUID = f"{file.StudyInstanceUID}.2"
        other.SOPInstanceUID = f"{other.SeriesInstanceUID}.{extra}"
        other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
        other.InstanceNumber = extra
        set_pixels(other, _stored(file) // 2)
        files[f"{len(slices) + extra}.dcm"] = other
    return files


def _enlarge(file: FileDataset, times: int) -> None:
    """The same picture on a finer matrix, in its true place."""
    set_pixels(file, np.kron(_stored(file), np.ones((times, times), np.int16)))
    old = float(file.PixelSpacing[0])
    file.PixelSpacing = [decimal(old / times)] * 2
    x, y, z = (float(v) for v in file.ImagePositionPatient)
    back = 0.5 * old * (1.0 - 1.0 / times)
    file.ImagePositionPatient = [decimal(v) for v in (x - back, y - back, z)]


def _mixed_sizes(file: FileDataset, index: int) -> None:
    if index % 9 == 4:
        _enlarge(file, 2)


def _to_768(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    kept = slices[:: max(1, len(slices) // 12)]
    for file in kept:
        _enlarge(file, 768 // file.Rows)
    return _named(kept)


def _monochrome1(file: FileDataset, index: int) -> None:
    file.PhotometricInterpretation = "MONOCHROME1"


def _monochrome1_inverted(file: FileDataset, index: int) -> None:
    file.PhotometricInterpretation = "MONOCHROME1"
    set_pixels(file, 4095 - _stored(file))


def _own_rescale(file: FileDataset, index: int) -> None:
    hu = _stored(file).astype(np.int32) + int(file.RescaleIntercept)
    slope, intercept = ((1.0, -1024), (0.5, -1024), (1.0, -2048), (0.25, -1024))[index % 4]
    file.BitsStored, file.HighBit = 16, 15
    file.RescaleSlope, file.RescaleIntercept = slope, intercept
    set_pixels(file, np.rint((hu - intercept) / slope).astype(np.int16))


def _signed(file: FileDataset, index: int) -> None:
    set_pixels(file, (_stored(file) + int(file.RescaleIntercept)).astype(np.int16))
    file.RescaleIntercept, file.PixelRepresentation = 0, 1


def _sign_bits_cut(file: FileDataset, index: int) -> None:
    """Signed values whose unused four high bits are zero instead of repeating the sign."""
    _signed(file, index)
    set_pixels(file, _stored(file) & 0x0FFF)


def _overflow(file: FileDataset, index: int) -> None:
    """Metal beyond what BitsStored can say."""
    if 30 <= index < 34:
        values = _stored(file)
        values[4:8, 4:8] = 9000
        set_pixels(file, values)


def _windows(file: FileDataset, index: int) -> None:
    file.WindowCenter, file.WindowWidth = [40, 500], [400, 2000]


def _no_position(file: FileDataset, index: int) -> None:
    del file.ImagePositionPatient


def _some_positions(file: FileDataset, index: int) -> None:
    if index % 7 == 3:
        del file.ImagePositionPatient


def _tilt(file: FileDataset, index: int) -> None:
    angle = np.radians(12.0)
    file.ImageOrientationPatient = [decimal(v) for v in (1, 0, 0, 0, np.cos(angle), np.sin(angle))]


def _non_square(file: FileDataset, index: int) -> None:
    old = float(file.PixelSpacing[0])
    set_pixels(file, np.ascontiguousarray(_stored(file)[::2]))
    file.PixelSpacing = [decimal(2 * old), decimal(old)]


def _no_pixels(file: FileDataset) -> FileDataset:
    del file.PixelData
    return file


def _unknown_syntax(file: FileDataset) -> bytes:
    """A well-formed file that names a transfer syntax nobody knows."""
    known, unknown = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"
    return _bytes(file).replace(known, unknown, 1)


def _corrupt_jpeg(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    files = _compressed("jpeg_lossless")(slices, rng)
    middle = len(slices) // 2  # compressed in place
    data = bytearray(_bytes(slices[middle]))
    start = data.rfind(b"\xff\xda")
    data[start : start + 400] = rng.integers(0, 256, 400, dtype=np.uint8).tobytes()
    files[f"{middle + 1}.dcm"] = bytes(data)
    return files


def _compressed(syntax: str) -> Change:
    return _each(lambda file, index: compress(file, syntax))


def _localizer(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    files = _named(slices)
    scout = _copy(slices[0])
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    scout.InstanceNumber = len(slices) + 1
    scout.SOPInstanceUID = f"{scout.SeriesInstanceUID}.{len(slices) + 1}"
    scout.file_meta.MediaStorageSOPInstanceUID = scout.SOPInstanceUID
    set_pixels(scout, np.repeat(_stored(scout), 2, axis=0))
    return {**files, f"{len(slices) + 1}.dcm": scout}


def _extra_junk(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return {**_named(slices), "notes.dcm": b"This is a note and no image.\n", "Thumbs.db": b"\0\1"}


def _all_truncated(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return {f"{number}.dcm": _bytes(file)[:300] for number, file in enumerate(slices, start=1)}


def _none(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return {}


_FALLBACK = {"lost": None, "same": False, "outcome": "fallback"}

DEFECTS: dict[str, Defect] = {
    "clean": Defect(_each(lambda f, i: None), "nothing is wrong: the reference"),
    "reversed": Defect(_reversed, "file number ascends with z"),
    "shuffled_names": Defect(_shuffled_names, "file numbers in random order"),
    "wrong_instance_number": Defect(_wrong_instance_numbers, "InstanceNumbers in random order"),
    "duplicated_z": Defect(_duplicated, "three slices stored twice; one of each is kept"),
    "missing_slices": Defect(_missing, "five slices absent; the gap is reported", 5, False),
    "two_series": Defect(_two_series, "a short second series; the longer one is kept"),
    "mixed_sizes": Defect(_each(_mixed_sizes), "some slices on twice the matrix", 0, False),
    "matrix_768": Defect(_to_768, "768 x 768 pixels, few slices", None, False),
    "monochrome1": Defect(_each(_monochrome1), "MONOCHROME1; rescaled HU are HU"),
    "monochrome1_inverted": Defect(_each(_monochrome1_inverted), "MONOCHROME1, values inverted"),
    "own_rescale": Defect(_each(_own_rescale), "slope and intercept differ per file"),
    "signed": Defect(_each(_signed), "signed stored values, intercept 0"),
    "sign_bits_cut": Defect(_each(_sign_bits_cut), "signed 12 bit without sign extension"),
    "overflow": Defect(_each(_overflow), "values beyond BitsStored in one corner", 0, False),
    "windows": Defect(_each(_windows), "multi-valued WindowCenter and WindowWidth"),
    "no_position": Defect(_each(_no_position), "no ImagePositionPatient; numbers order"),
    "some_positions": Defect(_each(_some_positions), "ImagePositionPatient absent in some"),
    "gantry_tilt": Defect(_each(_tilt), "slices tilted by 12 degrees", 0, False),
    "non_square": Defect(_each(_non_square), "rows twice as far apart as columns", 0, False),
    "three_slices": Defect(_keep(3), "3 slices", None, False),
    "one_slice": Defect(_keep(1), "1 slice", None, False),
    "empty_folder": Defect(_none, "a folder without files", **_FALLBACK),  # type: ignore[arg-type]
    "truncated_file": Defect(_one(lambda f: _bytes(f)[:-3000]), "one file cut off", 1, False),
    "zero_byte_file": Defect(_one(lambda f: b""), "one file of no bytes", 1, False),
    "text_file": Defect(_one(lambda f: b"see attachment\n"), "one slice is a text", 1, False),
    "no_pixels": Defect(_one(_no_pixels), "one slice without PixelData", 1, False),
    "localizer": Defect(_localizer, "a coronal localizer among the slices"),
    "unknown_syntax": Defect(_one(_unknown_syntax), "one file of unknown syntax", 1, False),
    "corrupt_jpeg": Defect(_corrupt_jpeg, "one damaged JPEG Lossless frame", None, False),
    "extra_junk": Defect(_extra_junk, "a text named .dcm and a thumbnail file besides"),
    "all_truncated": Defect(_all_truncated, "no file is readable", **_FALLBACK),  # type: ignore[arg-type]
    "jpeg_lossless": Defect(_compressed("jpeg_lossless"), "JPEG Lossless (.70)"),
    "jpeg_2000": Defect(_compressed("jpeg_2000"), "JPEG 2000 lossless (.90)"),
    "jpeg_ls": Defect(_compressed("jpeg_ls"), "JPEG-LS lossless (.80)"),
    "rle": Defect(_compressed("rle"), "RLE"),
    "listed_twice": Defect(_each(lambda f, i: None), "each of its rows stands twice in test.csv"),
    "no_folder": Defect(_none, "listed in test.csv, no folder", **_FALLBACK),  # type: ignore[arg-type]
    "path_uid": Defect(_none, "id with path characters; refused", **_FALLBACK),  # type: ignore[arg-type]
    "extra_folder": Defect(_each(lambda f, i: None), "a folder that no row asks for"),
}
"""Every defect by name, in the order of the manifest."""

NO_FOLDER = ("no_folder", "path_uid")
PATH_UID = "../../outside/1.2.3"


def _patient(seed: int, size_px: int) -> plain.Study:
    """The one patient, with slices 3 mm apart; stored unsigned with intercept -1024."""
    plan = plain.StudyPlan("0.0", "test", LABELS, False, False, derive_seed("hostile", seed))
    study = plain.render_study(plan, size_px=size_px, difficulty="easy")
    step = max(1, round(SLICE_MM / study.scan.spacing_mm[0]))
    old = study.scan
    scan = replace(
        old,
        grid=Grid(old.grid.z[::step], old.grid.y, old.grid.x),
        spacing_mm=(old.spacing_mm[0] * step, *old.spacing_mm[1:]),
        reversed=False,
        signed=False,
        intercept=-1024,
    )
    return replace(study, scan=scan, hu=study.hu[::step])


def write_hostile(out: Path, *, seed: int = 0, size_px: int = 64, jobs: int = 1) -> Competition:
    """Write the hostile competition: a few healthy training studies, one test study per defect.

    `manifest.csv` has the columns study_uid, defect, outcome, slices (usable ones; empty where
    not promised), same_as_clean, listed (stands in test.csv), what.

    Raises:
        DataError: `out` holds something else, which is left untouched.
    """
    competition = Competition(out)
    claim = {"hostile": True, "seed": seed, "size_px": size_px}
    if plain.claim_folder(out, claim):
        return competition
    spec = PhantomConfig(
        studies=HEALTHY_TRAINING, test_studies=1, size_px=size_px, difficulty="easy", seed=seed
    )
    plain.write_studies(competition, spec, plain.plan_studies(spec)[:HEALTHY_TRAINING], jobs=jobs)
    study = _patient(seed, size_px)
    stored = study.scan.digitize(study.hu)
    rows = []
    for order, (name, defect) in enumerate(DEFECTS.items()):
        uid = PATH_UID if name == "path_uid" else f"{plain.UID_ROOT}.{FIRST_NUMBER + order}"
        promised = "" if defect.lost is None else len(stored) - defect.lost
        listed = name != "extra_folder"
        rows.append((uid, name, defect.outcome, promised, defect.same, listed, defect.what))
        if name not in NO_FOLDER and not competition.images("test", uid).exists():
            rng = np.random.default_rng(derive_seed("hostile", seed, name))
            _write_files(
                competition, uid, defect.change([*slice_files(uid, study.scan, stored)], rng)
            )
    _write_tables(competition, rows)
    write_json(out / "phantom.json", plain.marker(claim, complete=True))
    return competition


def _write_files(competition: Competition, uid: str, files: Files) -> None:
    with publish(competition.images("test", uid)) as folder:
        folder.mkdir()
        for name, file in files.items():
            path = folder / name
            if isinstance(file, bytes):
                path.write_bytes(file)
            else:
                file.save_as(path, enforce_file_format=True)


def _write_tables(competition: Competition, rows: Sequence[tuple[object, ...]]) -> None:
    names = ["study_uid", "defect", "outcome", "slices", "same_as_clean", "listed", "what"]
    manifest = pd.DataFrame(rows, columns=names)
    listed = manifest[manifest.listed]
    truth = [(uid, max(LABELS), *LABELS) for uid in listed.study_uid]
    asked = [(f"{uid}_{t}", uid, t) for uid in listed.study_uid for t in TARGETS]
    test = pd.DataFrame(asked, columns=["row_id", "StudyInstanceUID", "prediction_type"])
    twice = listed.study_uid[listed.defect == "listed_twice"]
    again = test[test.StudyInstanceUID.isin(twice)]
    solution = pd.DataFrame(truth, columns=["StudyInstanceUID", OVERALL, *LEVELS])
    plain.write_csv(manifest, competition.root / "manifest.csv")
    plain.write_csv(solution, competition.solution_csv)
    plain.write_csv(pd.concat([test, again]), competition.test_csv)
    plain.write_csv(test[["row_id"]].assign(fractured=0.5), competition.sample_submission_csv)

"""The documented list of what can be wrong with a study, and the error of one file.

In: nothing. Out: `PROBLEMS`, whose keys stand in `Study.problems`, in the `studies` table and in
`cspine inspect`. Example::

    falls_back(study.problems)      # the codes that forbid an answer from the image
    explain(study.problems)         # code, severity, what it is and what to do, the worst first
"""

from collections.abc import Iterable
from typing import NamedTuple

from cspine_kit.core.errors import DataError

HANDLED, DOUBT, WORST = "handled", "doubt", "falls back"
"""Severities. `handled`: read as it is meant, nothing is lost. `doubt`: the best that can be made
of it; look at the result. `falls back`: grey values or millimeters may be wrong, so that nothing is
answered from this image."""

LOOK = "look at the picture of cspine inspect FOLDER --png FILE"
AGAIN = "export the series again"


class Problem(NamedTuple):
    """One kind of problem: what it is and what was done, how bad it is, what the user can do."""

    what: str
    severity: str
    to_do: str

    def __str__(self) -> str:
        return f"{self.what} [{self.severity}]" + (f": {self.to_do}" if self.to_do else "")


PROBLEMS: dict[str, Problem] = {
    "implausible_hu": Problem(
        "grey values are no Hounsfield units: no air near -1000 beside tissue near 0, and no "
        "constant offset or sign explains it",
        WORST,
        "export the original CT series, not a picture or a derived map",
    ),
    "eight_bits": Problem(
        "8-bit pictures: grey values went through a display window",
        WORST,
        "export the original CT series, not a picture",
    ),
    "assumed_spacing": Problem(
        "no file tells the size of a pixel; a field of view of 200 mm assumed",
        WORST,
        f"{AGAIN} with PixelSpacing",
    ),
    "modality_conflict": Problem(
        "Modality says that this is no CT, the SOP class that it is; read as CT", DOUBT, LOOK
    ),
    "unverified_hu": Problem(
        "hardly any air near -1000 or tissue near 0, so that grey values could not be verified",
        DOUBT,
        LOOK,
    ),
    "projection": Problem(
        "slabs of greatest, least or average intensity, no plain slices",
        DOUBT,
        "give the thin slices of the scan",
    ),
    "high_air": Problem(
        "air around the body lies more than 15 HU above -1000; RescaleIntercept may be off by 24 "
        "(-1000 for -1024)",
        DOUBT,
        "compare air (-1000) and muscle (50) with another viewer",
    ),
    "offset_repaired": Problem(
        "a constant offset, which a missing or wrong RescaleIntercept explains, taken off so that "
        "air lies near -1000",
        DOUBT,
        "compare air (-1000) and muscle (50) with another viewer",
    ),
    "sign_repaired": Problem(
        "stored values have another sign than PixelRepresentation says; read as CT needs it",
        DOUBT,
        "compare air (-1000) and muscle (50) with another viewer",
    ),
    "bits_repaired": Problem(
        "values fill more bits than BitsStored says, and only so they are those of a CT; all read",
        DOUBT,
        "compare air (-1000) and muscle (50) with another viewer",
    ),
    "other_study": Problem(
        "StudyInstanceUID in the files is not the name of the folder",
        DOUBT,
        "make sure that this folder holds the patient it is named after",
    ),
    "several_patients": Problem(
        "files of more than one PatientID or StudyInstanceUID in the folder; one scan kept",
        DOUBT,
        "put each patient into a folder of their own",
    ),
    "unreadable_file": Problem("a file is not DICOM or is damaged; skipped", DOUBT, AGAIN),
    "dead_link": Problem(
        "a file is a link to nowhere; skipped", DOUBT, "fetch what the links point to"
    ),
    "no_pixels": Problem("a file holds no image; skipped", HANDLED, ""),
    "several_frames": Problem(
        "a file holds several frames and no functional groups that say where each lies; skipped",
        DOUBT,
        "export single slices, or enhanced CT",
    ),
    "wide_pixels": Problem(
        "pixels are 32-bit or floating-point numbers; the file is skipped",
        DOUBT,
        "export them as 16-bit integers",
    ),
    "not_ct_image": Problem(
        "a file holds no single grey 8- or 16-bit frame of a sane size; skipped", HANDLED, ""
    ),
    "undecodable_pixels": Problem(
        "pixels of a slice could not be decoded; slice skipped", DOUBT, AGAIN
    ),
    "other_modality": Problem(
        "files that say they are no CT (another Modality, maps, screens); skipped", HANDLED, ""
    ),
    "no_geometry": Problem(
        "files without position, orientation and spacing beside slices that have them; skipped",
        HANDLED,
        "",
    ),
    "localizer": Problem("localizer or scout among the slices; skipped", HANDLED, ""),
    "called_localizer": Problem("an axial stack that calls itself localizer; read", HANDLED, ""),
    "several_series": Problem(
        "more than one series in the folder; the thinnest axial one that covers enough kept",
        HANDLED,
        "cspine inspect lists them; give another one in a folder of its own",
    ),
    "several_scans": Problem(
        "more than one acquisition or reconstruction in one series; one kept whole",
        HANDLED,
        "cspine inspect lists them; give another one in a folder of its own",
    ),
    "joined_series": Problem(
        "one scan lies in several series or acquisitions; joined", HANDLED, ""
    ),
    "assumed_axial": Problem(
        "ImageOrientationPatient is missing or no direction; standard axial orientation assumed",
        DOUBT,
        LOOK,
    ),
    "resliced": Problem(
        "no axial series; axial slices cut from a sagittal or coronal one",
        DOUBT,
        "give the axial series where there is one",
    ),
    "reoriented": Problem(
        "rows or columns ran against the standard axial orientation; flipped", HANDLED, ""
    ),
    "turned": Problem(
        "frames lie turned in their plane by more than 20 degrees; turned upright", DOUBT, LOOK
    ),
    "moved_frames": Problem(
        "some frames lie elsewhere in their plane than the others; moved to where they belong",
        HANDLED,
        "",
    ),
    "gantry_tilt": Problem(
        "slices are tilted against the table axis; ordered along their normal", HANDLED, ""
    ),
    "duplicate_position": Problem(
        "several slices at one position; the first by file number kept", DOUBT, LOOK
    ),
    "gap": Problem(
        "a distance between neighbors exceeds 1.5 times the median: slices are missing",
        DOUBT,
        AGAIN,
    ),
    "irregular_spacing": Problem("distances between neighbors vary by more than 10 %", DOUBT, LOOK),
    "stray_position": Problem(
        "a position lies meters away from the scan; taken for missing", DOUBT, LOOK
    ),
    "rounded_position": Problem(
        "positions are rounded so far that slices coincide; placed by SliceLocation",
        DOUBT,
        LOOK,
    ),
    "missing_position": Problem(
        "ImagePositionPatient is missing in some files; filled from SliceLocation or numbers",
        DOUBT,
        LOOK,
    ),
    "no_position": Problem(
        "ImagePositionPatient is missing or the same everywhere; z from SliceLocation, or from "
        "numbers and spacing",
        DOUBT,
        LOOK,
    ),
    "ordered_by_location": Problem(
        "slices ordered by SliceLocation for lack of positions", HANDLED, ""
    ),
    "ordered_by_instance": Problem(
        "slices ordered by InstanceNumber for lack of positions", DOUBT, LOOK
    ),
    "ordered_by_file_number": Problem(
        "slices ordered by file number for lack of positions", DOUBT, LOOK
    ),
    "missing_spacing": Problem(
        "PixelSpacing is missing or absurd; taken from other slices or ReconstructionDiameter",
        DOUBT,
        LOOK,
    ),
    "missing_rescale": Problem(
        "RescaleSlope or RescaleIntercept is missing; 1 or 0 assumed", DOUBT, LOOK
    ),
    "mixed_rescale": Problem(
        "slope or intercept differ between files; applied file by file", HANDLED, ""
    ),
    "odd_numbers": Problem(
        "numbers with a decimal comma or a unit; read as they are meant", HANDLED, ""
    ),
    "mixed_shapes": Problem(
        "frames of different size or pixel spacing; resampled to the modal one", HANDLED, ""
    ),
    "shuffled_files": Problem("file numbers run neither with nor against z", HANDLED, ""),
    "shuffled_instances": Problem("InstanceNumbers run neither with nor against z", HANDLED, ""),
    "nonsquare_pixels": Problem("pixel spacing differs between rows and columns", HANDLED, ""),
    "monochrome1": Problem(
        "MONOCHROME1: values kept, their rescaled HU are those of a CT", HANDLED, ""
    ),
    "monochrome1_inverted": Problem(
        "MONOCHROME1 with inverted stored values; turned back", HANDLED, ""
    ),
    "excess_bits": Problem("bits above HighBit hold no grey values; cut off", HANDLED, ""),
    "left_justified": Problem(
        "values fill the upper bits; moved down as HighBit says", HANDLED, ""
    ),
    "sign_extended": Problem(
        "signed values were stored without sign extension; extended", HANDLED, ""
    ),
    "padding_in_tissue": Problem(
        "PixelPaddingValue is a value of tissue; only what touches a corner became air", DOUBT, LOOK
    ),
    "bad_mask": Problem(
        "the segmentation cannot be used (index/remarks.json says why); the study stays, unmasked",
        HANDLED,
        "mend or remove the mask",
    ),
    "mask_strays": Problem(
        "voxels of the segmentation lay more than 5 mm beyond their vertebra; left out "
        "(index/remarks.json says which)",
        HANDLED,
        "",
    ),
    "mask_gap": Problem(
        "the segmentation leaves out a level between two others (index/remarks.json says which)",
        DOUBT,
        "complete the mask",
    ),
    "bad_boxes": Problem(
        "fracture boxes on no slice, outside the frame or without size were left out or cut",
        HANDLED,
        "look at index/remarks.json",
    ),
    "few_slices": Problem("fewer than 10 slices", DOUBT, "give the whole series"),
}
"""Problem codes, in the order in which they are reported."""


def falls_back(codes: Iterable[str]) -> tuple[str, ...]:
    """Those of `codes` under which nothing may be answered from the image, the worst first."""
    found = set(codes)
    return tuple(code for code in PROBLEMS if code in found and PROBLEMS[code].severity == WORST)


def explain(codes: Iterable[str]) -> list[str]:
    """One line for each code: severity, what it is and what to do; the worst first."""
    order = (WORST, DOUBT, HANDLED)
    found = sorted(set(codes) & set(PROBLEMS), key=lambda c: order.index(PROBLEMS[c].severity))
    return [f"{code}: {PROBLEMS[code]}" for code in found]


class FileError(DataError):
    """One file cannot be used; costs that file and no other. `code` is a key of `PROBLEMS`."""

    def __init__(self, file: str, code: str, detail: str) -> None:
        self.file = file
        self.code = code
        self.detail = detail
        super().__init__(f"file {file}: {code}: {detail}")

    def __reduce__(self) -> tuple[type["FileError"], tuple[str, str, str]]:
        """Survive the way back from a worker process."""
        return FileError, (self.file, self.code, self.detail)

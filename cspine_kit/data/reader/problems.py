"""The documented list of what can be wrong with a study, and the error of one file.

In: nothing. Out: `PROBLEMS`, whose keys stand in `Study.problems`, in the `studies` table and in
`cspine inspect`. Example: `PROBLEMS["gap"]`.
"""

from cspine_kit.core.errors import DataError

PROBLEMS: dict[str, str] = {
    "unreadable_file": "a file is not DICOM or is damaged; skipped",
    "no_pixels": "a file holds no image; skipped",
    "not_ct_image": "a file holds no single grey 8- or 16-bit frame of a sane size; skipped",
    "undecodable_pixels": "pixels of a slice could not be decoded; slice skipped",
    "localizer": "localizer or scout among the slices; skipped",
    "several_series": "more than one series in the folder; the axial one with best coverage kept",
    "assumed_axial": "ImageOrientationPatient is missing; standard axial orientation assumed",
    "reoriented": "rows or columns ran against the standard axial orientation; flipped",
    "gantry_tilt": "slices are tilted against the table axis; ordered along their normal",
    "duplicate_position": "several slices at one position; the first by file number kept",
    "gap": "a distance between neighbors exceeds 1.5 times the median: slices are missing",
    "irregular_spacing": "distances between neighbors vary by more than 10 %",
    "missing_position": "ImagePositionPatient is missing in some files; filled from their numbers",
    "no_position": "ImagePositionPatient is missing everywhere; z from numbers and thickness",
    "ordered_by_instance": "slices ordered by InstanceNumber for lack of positions",
    "ordered_by_file_number": "slices ordered by file number for lack of positions",
    "missing_spacing": "PixelSpacing is missing; taken from other slices or assumed",
    "missing_rescale": "RescaleSlope or RescaleIntercept is missing; 1 or 0 assumed",
    "mixed_rescale": "slope or intercept differ between files; applied file by file",
    "mixed_shapes": "frames of different size or pixel spacing; resampled to the modal one",
    "shuffled_files": "file numbers run neither with nor against z",
    "shuffled_instances": "InstanceNumbers run neither with nor against z",
    "nonsquare_pixels": "pixel spacing differs between rows and columns",
    "monochrome1": "MONOCHROME1: values kept, their rescaled HU are those of a CT",
    "monochrome1_inverted": "MONOCHROME1 with inverted stored values; turned back",
    "excess_bits": "stored values exceed BitsStored; kept as they are",
    "sign_extended": "signed values were stored without sign extension; extended",
    "few_slices": "fewer than 10 slices",
}
"""Problem codes, in the order in which they are reported, with their meaning."""


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

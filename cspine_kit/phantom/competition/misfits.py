"""Defects of whole studies: other scans among them, values, planes and packings that mislead.

In: the sound slices of a study as DICOM datasets. Out: files by name. Example::

    from cspine_kit.phantom.scanner.files import slice_files

    slices = [*slice_files("1.2.3", scan, np.zeros(scan.grid.shape, np.int16))]
    files = MISFITS["two_phases"].change(slices, rng)
    len(files)           # twice as many: each place once more, with contrast

`ALL_DEFECTS` are these beside the `DEFECTS` of single files.
"""

from __future__ import annotations

from copy import deepcopy
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.competition.defects import DEFECTS, Defect
from cspine_kit.phantom.scanner.files import decimal, set_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydicom.dataset import FileDataset

    from cspine_kit.phantom.competition.defects import Change, Files

PET_CLASS = "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2.1"


def _files(slices: list[FileDataset], first: int = 1) -> Files:
    return {f"{number}.dcm": file for number, file in enumerate(slices, start=first)}


def _stored(file: FileDataset) -> NDArray[np.int16]:
    return np.frombuffer(file.PixelData, np.int16).reshape(file.Rows, file.Columns).copy()


def _each(change: Callable[[FileDataset], None]) -> Change:
    """Apply a change to every slice."""

    def apply(slices: list[FileDataset], rng: np.random.Generator) -> Files:
        for file in slices:
            change(file)
        return _files(slices)

    return apply


def _be(file: FileDataset, sop_class: str) -> None:
    """Make a file one of another SOP class."""
    from pydicom.uid import UID

    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = UID(sop_class)


def _position(file: FileDataset) -> list[float]:
    return [float(v) for v in file.ImagePositionPatient]


def _again(slices: list[FileDataset], first: int, contrast: int) -> list[FileDataset]:
    """The same places once more, numbered on, every stored value raised."""
    twins = []
    for number, file in enumerate(slices, start=first):
        twin = deepcopy(file)
        twin.InstanceNumber = number
        twin.SOPInstanceUID = f"{twin.SeriesInstanceUID}.{number}"
        twin.file_meta.MediaStorageSOPInstanceUID = twin.SOPInstanceUID
        set_pixels(twin, _stored(twin) + np.int16(contrast))
        twins.append(twin)
    return twins


def _two_phases(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    twins = _again(slices, len(slices) + 1, 120)
    for number, phase in enumerate((slices, twins), start=1):
        for file in phase:
            file.AcquisitionNumber = number
    return _files([*slices, *twins])


def _repeat_of_another_day(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    twins = _again(slices, len(slices) + 1, 60)
    for day, scan in (("20220727", slices), ("20220901", twins)):
        for file in scan:
            file.AcquisitionDate = day
    for file in twins:
        x, y, z = _position(file)
        file.ImagePositionPatient = [decimal(v) for v in (x, y, z - 1.0)]
    return _files([*slices, *twins])


def _thick_beside_thin(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    thick = _again(slices[::3], len(slices) + 1, 0)
    for number, file in enumerate(thick, start=1):
        x, y, z = _position(file)
        file.ImagePositionPatient = [decimal(v) for v in (x, y, z + 0.5)]
        file.SeriesInstanceUID = f"{file.StudyInstanceUID}.3"
        file.SOPInstanceUID = f"{file.SeriesInstanceUID}.{number}"
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    return _files([*slices, *thick])


def _no_intercept(file: FileDataset) -> None:
    file.RescaleIntercept = 0


def _sign_lost(file: FileDataset) -> None:
    set_pixels(file, _stored(file) + np.int16(int(file.RescaleIntercept)))
    file.RescaleIntercept, file.BitsStored, file.HighBit = 0, 16, 15


def _overlay(file: FileDataset) -> None:
    values = _stored(file)
    values[4:12, 4:8] |= 1 << 12
    set_pixels(file, values)


def _left_justified(file: FileDataset) -> None:
    set_pixels(file, (_stored(file).view(np.uint16) << 4).view(np.int16))
    file.HighBit = 15


def _binary_rescale(file: FileDataset) -> None:
    from pydicom.dataelem import DataElement

    for tag, value in ((0x00281052, float(file.RescaleIntercept)), (0x00281053, 1.0)):
        file[tag] = DataElement(tag, "FD", value)


def _pet(file: FileDataset) -> None:
    file.Modality = "PT"
    _be(file, PET_CLASS)


def _half_mirrored(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    for file in slices[len(slices) // 2 :]:
        pitch, (x, y, z) = float(file.PixelSpacing[1]), _position(file)
        far = x + pitch * (file.Columns - 1)
        set_pixels(file, np.ascontiguousarray(_stored(file)[:, ::-1]))
        file.ImagePositionPatient = [decimal(v) for v in (far, y, z)]
        file.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    return _files(slices)


def _moved_center(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    for file in slices[len(slices) // 2 :]:
        pitch, (x, y, z) = float(file.PixelSpacing[1]), _position(file)
        set_pixels(file, np.roll(_stored(file), -5, axis=1))
        file.ImagePositionPatient = [decimal(v) for v in (x + 5 * pitch, y, z)]
    return _files(slices)


def _one_folder_down(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return {f"SE000001/{name}": file for name, file in _files(slices).items()}


def _no_meta_header(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset

    files: Files = {}
    for number, file in enumerate(slices, start=1):
        plain, buffer = Dataset(), BytesIO()
        plain.update(file)
        dcmwrite(buffer, plain, implicit_vr=True, little_endian=True, enforce_file_format=False)
        files[f"{number}.dcm"] = buffer.getvalue()
    return files


def _enhanced(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    """All slices as the frames of one Enhanced CT file."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def holder(source: FileDataset, groups: Mapping[str, tuple[str, ...]]) -> Dataset:
        item = Dataset()
        for group, names in groups.items():
            inner = Dataset()
            for name in names:
                setattr(inner, name, getattr(source, name))
            setattr(item, group, Sequence([inner]))
        return item

    shared = {
        "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope"),
    }
    whole = deepcopy(slices[0])
    place = {"PlanePositionSequence": ("ImagePositionPatient",)}
    whole.SharedFunctionalGroupsSequence = Sequence([holder(whole, shared)])
    whole.PerFrameFunctionalGroupsSequence = Sequence([holder(file, place) for file in slices])
    for name in ("ImagePositionPatient", *(n for names in shared.values() for n in names)):
        delattr(whole, name)
    whole.NumberOfFrames = len(slices)
    _be(whole, ENHANCED_CT_CLASS)
    whole.PixelData = b"".join(file.PixelData for file in slices)
    return {"1.dcm": whole}


def _sagittal(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    """The same volume as a stack of sagittal frames, left to right."""
    volume = np.stack([_stored(file) for file in slices])
    x, y, z = _position(slices[0])
    step = z - _position(slices[1])[2]
    rows, cols = (float(v) for v in slices[0].PixelSpacing)
    frames = []
    for k in range(volume.shape[2]):
        file = deepcopy(slices[0])
        set_pixels(file, np.ascontiguousarray(volume[:, :, k]))
        file.ImagePositionPatient = [decimal(v) for v in (x + k * cols, y, z)]
        file.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        file.PixelSpacing = [decimal(step), decimal(rows)]
        file.InstanceNumber = k + 1
        file.SOPInstanceUID = f"{file.SeriesInstanceUID}.{k + 1}"
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
        frames.append(file)
    return _files(frames)


MISFITS: dict[str, Defect] = {
    "two_phases": Defect(_two_phases, "two phases in one series; the first is kept whole"),
    "another_day": Defect(_repeat_of_another_day, "a repeat scan in one series, 1 mm lower"),
    "thick_beside_thin": Defect(_thick_beside_thin, "a thick series that reaches 0.5 mm farther"),
    "no_intercept": Defect(_each(_no_intercept), "RescaleIntercept 0 though air is stored as 24"),
    "sign_lost": Defect(_each(_sign_lost), "signed values called unsigned"),
    "overlay": Defect(_each(_overlay), "an overlay in the bits above BitsStored"),
    "left_justified": Defect(_each(_left_justified), "values in the upper 12 of 16 bits"),
    "binary_rescale": Defect(_each(_binary_rescale), "rescale as binary numbers"),
    "half_mirrored": Defect(_half_mirrored, "half of the frames are stored mirrored"),
    "moved_center": Defect(_moved_center, "half of the frames lie 5 pixels left", 0, False),
    "one_folder_down": Defect(_one_folder_down, "all files in a folder of their series"),
    "no_meta_header": Defect(_no_meta_header, "files without preamble and meta group"),
    "enhanced": Defect(_enhanced, "one Enhanced CT file of all frames"),
    "sagittal": Defect(_sagittal, "sagittal frames only; axial slices are cut from them", 0, False),
    "pet": Defect(_each(_pet), "a PET series, refused", None, False, "fallback"),
}

ALL_DEFECTS: dict[str, Defect] = {**DEFECTS, **MISFITS}
"""Every defect by name, in the order of the manifest."""

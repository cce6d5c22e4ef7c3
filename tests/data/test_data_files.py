"""Files as they come: folders below, links, archives, odd headers, enhanced CT."""

import gzip
import io
import zipfile

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian
from scans import PITCH, STEP, dataset, neck_hu, positions, write_scan

from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.dicom import list_files, read_study
from cspine_kit.data.reader.headers.decimals import meant, several
from cspine_kit.data.reader.headers.files import read_header, read_headers

HU = neck_hu()


def rewrite(folder, change):
    """Apply `change` to every dataset of a folder."""
    for path in sorted(folder.rglob("*.dcm")):
        ds = pydicom.dcmread(path)
        change(ds)
        ds.save_as(path)


def retyped(path, tag, vr, value):
    """Replace an explicit element's value representation and value in the bytes of a file."""
    data = path.read_bytes()
    group, element = divmod(tag, 1 << 16)
    head = group.to_bytes(2, "little") + element.to_bytes(2, "little")
    at = data.index(head)
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    new = head + vr + len(value).to_bytes(2, "little") + value
    path.write_bytes(data[:at] + new + data[at + 8 + length :])


def test_folders_one_level_down_belong_to_the_study(tmp_path):
    write_scan(tmp_path)
    for number in range(1, 25):
        (tmp_path / f"SE{number % 2}.1").mkdir(exist_ok=True)
        (tmp_path / f"{number}.dcm").rename(tmp_path / f"SE{number % 2}.1" / f"{number}.dcm")
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and study.problems == ()
    assert study.files[0] == "SE1.1/1.dcm" and study.slice_numbers[1] == 2
    assert len(list_files(tmp_path)) == 24


def test_a_folder_of_studies_is_no_study(tmp_path):
    for number in range(3):
        write_scan(tmp_path / f"{number}", neck_hu(2), StudyInstanceUID=f"1.2.{number}")
    with pytest.raises(StudyError, match=r"its 3 folders hold studies of their own; give one"):
        read_study(tmp_path)
    write_scan(tmp_path / "2", neck_hu(2), StudyInstanceUID="1.2.1")
    assert "several_patients" in read_study(tmp_path).problems


def test_dead_links_are_named(tmp_path):
    write_scan(tmp_path)
    for number in (10, 11):
        (tmp_path / f"{number}.dcm").unlink()
        (tmp_path / f"{number}.dcm").symlink_to(tmp_path / "nowhere")
    study = read_study(tmp_path)
    assert len(study.hu) == 22 and {"dead_link", "gap"} <= set(study.problems)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "1.dcm").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StudyError, match=r"1\.dcm: dead_link: .*; fetch what the links point to"):
        read_study(tmp_path / "links")


def test_archives_are_taken_for_folders(tmp_path):
    write_scan(tmp_path / "plain")
    files = sorted((tmp_path / "plain").iterdir())
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as packed:
        for path in files:
            packed.write(path, f"../../outside/{path.name}")
        packed.writestr("__MACOSX/._1.dcm", b"no")
    (tmp_path / "gz").mkdir()
    for path in files:
        (tmp_path / "gz" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "in").mkdir()
    (tmp_path / "s.zip").rename(tmp_path / "in" / "s.zip")
    for place in ("in/s.zip", "in", "gz"):
        study = read_study(tmp_path / place)
        assert np.array_equal(study.hu, HU) and study.problems == (), place
    assert not (tmp_path.parent / "outside").exists()
    (tmp_path / "in" / "s.zip").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(StudyError, match=r"s\.zip: the archive cannot be unpacked"):
        read_study(tmp_path / "in" / "s.zip")


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("preamble", [True, False])
def test_files_without_meta_header(tmp_path, implicit, preamble):
    write_scan(tmp_path)
    for path in tmp_path.iterdir():
        plain, buffer = Dataset(), io.BytesIO()
        plain.update(pydicom.dcmread(path))
        pydicom.dcmwrite(
            buffer, plain, implicit_vr=implicit, little_endian=True, enforce_file_format=False
        )
        path.write_bytes((b"\0" * 128 + b"DICM" if preamble else b"") + buffer.getvalue())
    assert np.array_equal(read_study(tmp_path).hu, HU)


@pytest.mark.parametrize(
    ("element", "field", "expected"),
    [
        ((0x00281052, b"FD", np.float64(-1024).tobytes()), "intercept", -1024.0),
        ((0x00281052, b"SS", np.int16(-1024).tobytes()), "intercept", -1024.0),
        ((0x00281052, b"DS", b"-1024,0 "), "intercept", -1024.0),
        ((0x00281053, b"DS", b"1 HU"), "slope", 1.0),
        ((0x00280030, b"DS", b"0.5,0.25"), "spacing_mm", (0.5, 0.25)),
        ((0x00280030, b"DS", b"0,5\\0,25"), "spacing_mm", (0.5, 0.25)),
        ((0x00280030, b"UT", None), "spacing_mm", (0.5, 0.25)),
        ((0x00200032, b"FD", np.array([1.0, 2, 3]).tobytes()), "position_mm", (1.0, 2.0, 3.0)),
        ((0x00280010, b"UL", np.uint32(96).tobytes()), "rows", 96),
    ],
    ids=["FD", "SS", "comma", "unit", "two", "commas", "UT", "position", "UL"],
)
def test_values_of_another_kind_than_usual(tmp_path, element, field, expected):
    tag, vr, value = element
    ds = dataset(HU[0], (0, 0, 0), PixelSpacing=[0.5, 0.25], RescaleIntercept=-1024)
    path = tmp_path / "1.dcm"
    if value is None:
        ds[tag].VR = "UT"
        ds[tag]._value = "0.5\\0.25"
    ds.save_as(path, enforce_file_format=True)
    if value is not None:
        retyped(path, tag, vr, value)
    assert getattr(read_header(tmp_path, "1.dcm"), field) == expected


def test_numbers_are_understood_only_where_one_way_is_left():
    assert several(["1", "2"], 2) == (1.0, 2.0) and several("12", 2) is None
    assert meant("1;2", 2) == (1.0, 2.0) and meant("1,5,2,5", 2) == (1.5, 2.5)
    assert meant("1,5 mm", 1) == (1.5,) and meant("1e3", 1) == (1000.0,)
    for text in ("", "one", "1,2,3", "1.2.3", "NaN", "inf"):
        assert meant(text, 1) is None
    assert meant("1,2,3", 2) is None and meant(None, 1) is None


def test_headers_read_in_a_row_are_those_read_alone(tmp_path):
    write_scan(tmp_path, AcquisitionTime="101500", SliceLocation="1.5", KVP="120")
    changes = {
        3: {"RescaleIntercept": "-1024"},
        5: {"SliceLocation": None},
        7: {"ImagePositionPatient": None},
        9: {"ContentTime": "101501.5", "InstanceNumber": None},
        11: {"SliceThickness": "2.5", "Modality": None},
        13: {"PixelSpacing": None},
    }
    for number, change in changes.items():
        path = tmp_path / f"{number}.dcm"
        ds = pydicom.dcmread(path)
        for name, value in change.items():
            if value is None:
                ds.pop(name, None)
            else:
                setattr(ds, name, value)
        ds.save_as(path)
    comma = tmp_path / "15.dcm"
    comma.write_bytes(comma.read_bytes().replace(b"-70.0\\-60.0", b"-70,0\\-60,0"))
    found, errors = read_headers(tmp_path)
    assert len(found) == 24 and not errors
    for header in found:
        # NaN is no equal of itself: texts are compared.
        assert str(header) == str(read_header(tmp_path, header.file)), header.file
    odd = {header.file for header in found if "odd_numbers" in header.notes}
    assert odd == {"15.dcm"}


def test_better_tags_stand_in_for_missing_ones(tmp_path):
    write_scan(tmp_path / "a", SliceThickness=2 * STEP, SpacingBetweenSlices=STEP)
    rewrite(tmp_path / "a", lambda ds: delattr(ds, "ImagePositionPatient"))
    assert read_study(tmp_path / "a").spacing_mm[0] == STEP
    write_scan(tmp_path / "b", ReconstructionDiameter=PITCH * 96, PixelSpacing=None)
    study = read_study(tmp_path / "b")
    assert study.spacing_mm[1:] == (PITCH, PITCH) and study.problems == ("missing_spacing",)
    write_scan(tmp_path / "c", PixelSpacing=[1e-6, 1e-6])
    assert "assumed_spacing" in read_study(tmp_path / "c").problems


@pytest.mark.parametrize("sign", [1, -1])
def test_slice_location_stands_in_for_positions(tmp_path, sign):
    def located(folder, which):
        write_scan(folder)
        z = dict(zip(range(1, 25), [p[2] for p in positions(24)], strict=True))

        def change(ds):
            ds.SliceLocation = sign * z[ds.InstanceNumber] + 7
            if which(ds.InstanceNumber):
                ds.ImagePositionPatient = [-70, -60, 40]
            ds.InstanceNumber = 1

        rewrite(folder, change)
        return read_study(folder)

    some = located(tmp_path / "some", lambda n: n in (5, 6, 7))
    assert np.array_equal(some.hu, HU) and "missing_position" in some.problems
    assert np.allclose(some.origins_mm, positions(24))
    if sign == 1:
        whole = located(tmp_path / "all", lambda n: True)
        assert np.array_equal(whole.hu, HU)
        assert {"no_position", "ordered_by_location"} <= set(whole.problems)
        assert np.allclose(whole.z_mm, [p[2] + 7 for p in positions(24)])


def test_rounded_positions_give_way_to_slice_location(tmp_path):
    write_scan(tmp_path)

    def change(ds):
        x, y, z = ds.ImagePositionPatient
        ds.SliceLocation, ds.ImagePositionPatient = z, [x, y, 4 * round(z / 4)]

    rewrite(tmp_path, change)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and study.problems == ("rounded_position",)
    assert np.allclose(study.spacing_mm[0], STEP)


def test_one_position_a_kilometer_away_is_taken_for_missing(tmp_path):
    write_scan(tmp_path)
    ds = pydicom.dcmread(tmp_path / "9.dcm")
    ds.ImagePositionPatient = [-70, -60, 1e6]
    ds.save_as(tmp_path / "9.dcm")
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and "stray_position" in study.problems
    assert np.allclose(study.z_mm, [p[2] for p in positions(24)])


def enhanced(slices, *, number=1):
    """An Enhanced CT file of the given slices of the neck."""
    ds = dataset(HU[slices[0]], (0, 0, 0))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, name)
    del ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept
    shared, measures, way, rescale = (Dataset() for _ in range(4))
    measures.PixelSpacing, measures.SliceThickness = [PITCH, PITCH], STEP
    way.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = -1024, 1, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = (
        Sequence([measures]),
        Sequence([way]),
    )
    shared.PixelValueTransformationSequence = Sequence([rescale])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    items = []
    for z in slices:
        item, place = Dataset(), Dataset()
        place.ImagePositionPatient = list(positions(24)[z])
        item.PlanePositionSequence = Sequence([place])
        items.append(item)
    ds.PerFrameFunctionalGroupsSequence = Sequence(items)
    ds.NumberOfFrames, ds.InstanceNumber, ds.PixelRepresentation = len(slices), number, 0
    ds.PixelData = (HU[slices] + 1024).astype("<u2").tobytes()
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.1.{number}"
    return ds


@pytest.mark.parametrize("parts", [1, 2, 24])
def test_enhanced_ct(tmp_path, parts):
    for number, slices in enumerate(np.array_split(np.arange(24), parts), start=1):
        ds = enhanced(slices.tolist(), number=number)
        ds.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and study.problems == ()
    assert np.allclose(study.origins_mm, positions(24)) and len(set(study.files)) == 24


def classic(**changes):
    """A file of all slices whose frames say nothing about their places."""
    ds = dataset(HU[0], positions(1)[0], NumberOfFrames=len(HU), **changes)
    ds.PixelData = HU.astype("<i2").tobytes()
    return ds


def wide():
    ds = dataset(HU[0], positions(1)[0], BitsAllocated=32, BitsStored=32, HighBit=31)
    ds.PixelData = HU[0].astype("<i4").tobytes()
    return ds


def floating():
    ds = dataset(HU[0], positions(1)[0], BitsAllocated=32, BitsStored=None, HighBit=None)
    del ds.PixelData, ds.PixelRepresentation
    ds.FloatPixelData = HU[0].astype("<f4").tobytes()
    return ds


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (classic, "several_frames: 24 frames of 96 x 96.*; export single slices, or enhanced CT"),
        (wide, "wide_pixels: .* of 32 bits; export them as 16-bit integers"),
        (floating, "wide_pixels: pixels are floating-point numbers; export them as 16-bit"),
    ],
)
def test_pixels_that_are_not_read_are_named(tmp_path, made, said):
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    alone.mkdir()
    made().save_as(alone / "1.dcm", enforce_file_format=True)
    (alone / "notes.txt").write_text("no image")
    (alone / "2.dcm").write_bytes((alone / "1.dcm").read_bytes())
    with pytest.raises(StudyError, match=said):
        read_study(alone)
    write_scan(beside)
    (beside / "99.dcm").write_bytes((alone / "1.dcm").read_bytes())
    study = read_study(beside, "1.2.3")
    assert study.problems == (said.split(":")[0],) and np.array_equal(study.hu, HU)


def test_frames_of_a_compressed_enhanced_file(tmp_path):
    codecs = pytest.importorskip("imagecodecs")
    ds = enhanced(list(range(24)))
    frames = [codecs.jpegls_encode((hu + 1024).astype(np.uint16)) for hu in HU]
    ds.PixelData = pydicom.encaps.encapsulate(frames)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"
    ds.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    assert np.array_equal(read_study(tmp_path).hu, HU)


def test_frames_of_a_deflated_enhanced_file(tmp_path):
    ds = enhanced(list(range(24)))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    assert np.array_equal(read_study(tmp_path).hu, HU)


def test_htj2k_where_imagecodecs_has_it(tmp_path):
    codecs = pytest.importorskip("imagecodecs")
    if not codecs.HTJ2K.available:
        pytest.skip("this imagecodecs has no HTJ2K")
    write_scan(tmp_path, RescaleIntercept=-1024, PixelRepresentation=0)
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        stored = (ds.pixel_array.view(np.int16) + 1024).astype(np.uint16)
        ds.PixelData = pydicom.encaps.encapsulate([codecs.htj2k_encode(stored, reversible=True)])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        ds.save_as(path)
    assert np.array_equal(read_study(tmp_path).hu, HU)


def test_refusals_never_send_round_in_circles(tmp_path):
    (tmp_path / "1.dcm").write_text("no")
    for place in (tmp_path, tmp_path / "absent", tmp_path / "1.dcm"):
        with pytest.raises(StudyError) as error:
            read_study(place)
        assert "see cspine inspect" not in str(error.value) and "; " in str(error.value)

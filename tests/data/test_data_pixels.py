"""Every transfer syntax, by every decoder, to the pixel."""

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from scans import dataset

from cspine_kit.data.reader.headers.files import read_header
from cspine_kit.data.reader.headers.parsed import parse
from cspine_kit.data.reader.pixels import decode as decoding
from cspine_kit.data.reader.pixels import isolated
from cspine_kit.data.reader.pixels.decode import decode
from cspine_kit.data.reader.pixels.streams import frame_bytes, stream_size
from cspine_kit.data.reader.pixels.values import Meaning, hounsfield
from cspine_kit.data.reader.problems import FileError

GDCM_SYNTAX = {
    "1.2.840.10008.1.2.5": "RLELossless",
    "1.2.840.10008.1.2.4.57": "JPEGLosslessProcess14",
    "1.2.840.10008.1.2.4.70": "JPEGLosslessProcess14_1",
    "1.2.840.10008.1.2.4.80": "JPEGLSLossless",
    "1.2.840.10008.1.2.4.90": "JPEG2000Lossless",
}
NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)
KINDS = {"unsigned12": (12, 0), "unsigned16": (16, 0), "signed16": (16, 1), "signed12": (12, 1)}


def frame_of(kind):
    """Stored values (64, 80) that use the whole range of their kind."""
    bits, signed = KINDS[kind]
    rng = np.random.default_rng(5)
    smooth = np.add.outer(np.arange(64.0), np.arange(80.0)) / 144 * (1 << bits)
    values = smooth + rng.normal(0, 20, (64, 80))
    values -= (1 << (bits - 1)) * signed
    low = -(1 << (bits - 1)) if signed else 0
    return values.clip(low, low + (1 << bits) - 1).astype(np.int16 if signed else np.uint16)


def write_native(path, frame, kind, syntax=ExplicitVRLittleEndian):
    bits, signed = KINDS[kind]
    ds = dataset(frame, (0, 0, 0), InstanceNumber=1)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, signed
    ds.file_meta.TransferSyntaxUID = syntax
    big = syntax == ExplicitVRBigEndian
    ds.PixelData = frame.astype(frame.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds["PixelData"].VR = "OW"
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return ds


def write_compressed(path, frame, kind, uid):
    """Compressed by gdcm, wrapped by pydicom; skipped where gdcm cannot write it."""
    import gdcm

    write_native(path, frame, kind)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, GDCM_SYNTAX[uid])))
    change.SetInput(reader.GetImage())
    if not change.Change():
        pytest.skip(f"gdcm cannot write {kind} as {uid}")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_native(tmp_path, syntax, kind):
    frame = frame_of(kind)
    write_native(tmp_path / "1.dcm", frame, kind, syntax)
    header = read_header(tmp_path, "1.dcm")
    assert header.syntax == syntax
    assert np.array_equal(decode(tmp_path / "1.dcm", header), frame)
    out = np.zeros(frame.shape, np.int16)
    stored = decode(tmp_path / "1.dcm", header, out=out)
    hu, _ = hounsfield(stored, header, Meaning(header.signed), out=out)
    assert np.array_equal(hu, frame.astype(np.int32).clip(-32768, 32767))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uid", GDCM_SYNTAX)
def test_compressed_by_both_decoders(tmp_path, uid, kind, monkeypatch):
    frame, path = frame_of(kind), tmp_path / "1.dcm"
    write_compressed(path, frame, kind, uid)
    header = read_header(tmp_path, path.name)
    assert header.syntax == uid
    assert np.array_equal(decode(path, header), frame)
    monkeypatch.setattr(decoding, "CODECS", {})
    assert np.array_equal(decode(path, header), frame)


@pytest.mark.parametrize("uid", GDCM_SYNTAX)
def test_each_fast_decoder_alone(tmp_path, uid):
    """Without the others to fall back on."""
    if uid not in decoding.CODECS:
        pytest.skip("no fast decoder is installed (pip install 'cspine-kit[fast]')")
    for decoder in decoding.CODECS[uid]:
        for kind in ("unsigned12", "unsigned16", "signed16"):
            frame, path = frame_of(kind), tmp_path / "1.dcm"
            write_compressed(path, frame, kind, uid)
            header = read_header(tmp_path, path.name)
            data = frame_bytes(path.read_bytes(), header.pixels_at)
            assert np.array_equal(decoding._fast(data, header, decoder), frame), (decoder, kind)


@pytest.mark.parametrize("kind", ["unsigned8", "unsigned12"])
def test_lossy_jpeg_agrees_with_the_decoder_of_record(tmp_path, kind, monkeypatch):
    codecs = pytest.importorskip("imagecodecs")
    bits = int(kind.removeprefix("unsigned"))
    frame = (frame_of("unsigned12") >> (12 - bits)).astype(np.uint8 if bits == 8 else np.uint16)
    stream = codecs.jpeg8_encode(frame, level=95, bitspersample=bits)
    ds = dataset(frame.astype(np.int16), (0, 0, 0), InstanceNumber=1)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    ds.PixelRepresentation = 0
    ds.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{50 if bits == 8 else 51}"
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].VR = "OB"
    path = tmp_path / "1.dcm"
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    header = read_header(tmp_path, path.name)
    fast = decode(path, header)
    if bits == 8:  # gdcm and Pillow have no 12-bit decoder
        monkeypatch.setattr(decoding, "CODECS", {})
        assert np.array_equal(fast, decode(path, header))
    assert np.abs(fast.astype(int) - frame).max() < (1 << bits) / 20


def test_walk_and_pydicom_read_the_same_header(tmp_path, real_data):
    paths = sorted((real_data / "head_neck_ct").iterdir())[::30]
    for syntax in NATIVE[:2]:
        path = tmp_path / f"{syntax}.dcm"
        ds = write_native(path, frame_of("signed16"), "signed16", syntax)
        ds.add_new("PixelPaddingValue", "SS", -2000)
        ds.ImageType, ds.WindowCenter = ["ORIGINAL", "PRIMARY", "AXIAL"], [40, 500]
        pydicom.dcmwrite(path, ds, enforce_file_format=True)
        paths.append(path)
    for path in paths:
        walked, parsed = read_header(path.parent, path.name), parse(str(path), path.name)[0]
        assert walked.pixels_at > 0 and walked.pixels_length > 0
        for name in walked._fields:
            if not name.startswith("pixels"):
                assert repr(getattr(walked, name)) == repr(getattr(parsed, name)), name


def test_nested_headers_go_through_pydicom(tmp_path):
    ds = write_native(tmp_path / "1.dcm", frame_of("signed16"), "signed16")
    item = pydicom.Dataset()
    item.Rows = 7
    ds.ReferencedStudySequence = [item]
    ds["ReferencedStudySequence"].is_undefined_length = True
    pydicom.dcmwrite(tmp_path / "1.dcm", ds, enforce_file_format=True)
    header = read_header(tmp_path, "1.dcm")
    assert header.rows == 64
    assert np.array_equal(decode(tmp_path / "1.dcm", header), frame_of("signed16"))


def test_streams_of_another_size_never_reach_a_decoder(tmp_path):
    path, uid = tmp_path / "1.dcm", "1.2.840.10008.1.2.4.70"
    write_compressed(path, frame_of("unsigned16"), "unsigned16", uid)
    data = path.read_bytes()
    at = data.index(b"\xff\xc3")
    assert stream_size(data[data.index(b"\xff\xd8") :]) == (64, 80)
    path.write_bytes(data[: at + 5] + b"\x7f\xff" + data[at + 7 :])
    with pytest.raises(FileError, match="the stream is"):
        decode(path, read_header(tmp_path, path.name))


@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        (3.0, [[-1024, 10976], [32767, 32767]]),
        (1.0, [[-1024, 2976], [32767, 28976]]),
    ],
)
def test_extreme_rescale_is_clipped(tmp_path, slope, expected):
    frame = np.array([[0, 4000], [65535, 30000]], np.uint16)
    ds = write_native(tmp_path / "1.dcm", frame, "unsigned16")
    ds.RescaleSlope, ds.RescaleIntercept = slope, -1024
    pydicom.dcmwrite(tmp_path / "1.dcm", ds, enforce_file_format=True)
    header = read_header(tmp_path, "1.dcm")
    assert hounsfield(frame, header, Meaning(header.signed))[0].tolist() == expected


def test_a_dead_decoder_costs_one_file(tmp_path, monkeypatch):
    path, uid = tmp_path / "1.dcm", "1.2.840.10008.1.2.4.70"
    write_compressed(path, frame_of("unsigned16"), "unsigned16", uid)
    isolated.end_children()
    first = isolated.decode_isolated(str(tmp_path), "1.dcm")
    assert np.array_equal(first, frame_of("unsigned16")) and len(isolated._idle) == 1
    isolated._idle[0].process.kill()
    isolated._idle[0].process.wait()
    with pytest.raises(ChildProcessError):
        isolated.decode_isolated(str(tmp_path), "1.dcm")
    assert np.array_equal(isolated.decode_isolated(str(tmp_path), "1.dcm"), first)


def test_a_relative_folder_is_the_callers_also_after_it_moved(tmp_path, monkeypatch):
    """A kept child was started where an earlier caller stood."""
    frame, study = frame_of("unsigned16"), tmp_path / "elsewhere" / "study"
    study.mkdir(parents=True)
    write_compressed(study / "1.dcm", frame, "unsigned16", "1.2.840.10008.1.2.4.70")
    isolated.end_children()
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(isolated.decode_isolated("elsewhere/study", "1.dcm"), frame)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert np.array_equal(isolated.decode_isolated("study", "1.dcm"), frame)

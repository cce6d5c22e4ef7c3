"""Reader, cache and headers against the common way, side by side in one run.

Run: `python tests/benchmarks/bench_data_reader.py [SLICES]`. Prints medians in milliseconds and
ratios; the ratio is what counts, an absolute time says nothing on a shared machine.

Common is what public solutions do: dcmread, pixel_array, float32 rescale, one file after the other.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom

from cspine_kit.core.config import CacheConfig
from cspine_kit.data.dicom import read_headers, read_study
from cspine_kit.data.volumes import make_volume

SIZE, REPEATS = 512, 3
CONFIG = CacheConfig(spacing_mm=0.5, field_mm=192.0, hu_low=-500, hu_high=1500)
GDCM_NAMES = {
    "explicit": None,
    "rle": "RLELossless",
    "jpeg_lossless": "JPEGLosslessProcess14_1",
    "jpeg_ls": "JPEGLSLossless",
    "jpeg_2000": "JPEG2000Lossless",
}


def write_study(folder: Path, slices: int, syntax: str | None) -> None:
    """A noisy neck of 512 x 512, unsigned 12 bit."""
    import gdcm
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    neck = ((y - 250) / 150) ** 2 + ((x - 256) / 130) ** 2 < 1
    bone = (y - 280) ** 2 + (x - 256) ** 2 < 30**2
    base = np.where(bone, 1500, np.where(neck, 1070, 24)).astype(np.float32)
    noise = cv2.GaussianBlur(rng.normal(0, 60, (SIZE, SIZE)).astype(np.float32), (0, 0), 1)
    folder.mkdir(parents=True)
    for z in range(slices):
        frame = (base + np.roll(noise, 7 * z, 0)).clip(0, 4095).astype("<u2")
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = (
            CTImageStorage,
            ExplicitVRLittleEndian,
        )
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{z}"
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"1.2.3.{z}"
        ds.Modality, ds.PatientID, ds.StudyInstanceUID = "CT", "p", "1.2.3"
        ds.SeriesInstanceUID, ds.InstanceNumber, ds.SliceThickness = "1.2.4", z + 1, 0.6
        ds.ImagePositionPatient = [-100, -100, round(-0.6 * z, 3)]
        ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.4, 0.4]
        ds.Rows = ds.Columns = SIZE
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.WindowCenter, ds.WindowWidth = [40, 500], [400, 2000]
        ds.PixelData = frame.tobytes()
        path = folder / f"{z + 1}.dcm"
        ds.save_as(path, enforce_file_format=True)
        if syntax is not None:
            reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
            reader.SetFileName(str(path))
            reader.Read()
            change = gdcm.ImageChangeTransferSyntax()
            change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
            change.SetInput(reader.GetImage())
            change.Change()
            writer.SetFileName(str(path))
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            writer.Write()


def common_read(folder: Path) -> np.ndarray:
    """Every file by pydicom, rescaled in float32."""
    frames = []
    for path in sorted(folder.iterdir(), key=lambda p: int(p.stem)):
        ds = pydicom.dcmread(path)
        frames.append(
            ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        )
    return np.stack(frames)


def common_volume(folder: Path) -> np.ndarray:
    """The common read, windowed in float, resized slice by slice."""
    hu = common_read(folder)
    side = CONFIG.side_px
    out = np.empty((len(hu), side, side), np.uint8)
    for z, frame in enumerate(hu):
        share = np.clip((frame - CONFIG.hu_low) / (CONFIG.hu_high - CONFIG.hu_low), 0, 1)
        out[z] = cv2.resize((share * 255), (side, side), interpolation=cv2.INTER_AREA)
    return out


def common_headers(folder: Path) -> list[pydicom.Dataset]:
    """Every header by pydicom."""
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.iterdir())]


def say(text: str) -> None:
    """Write one line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def median_ms(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median milliseconds of a call, after one that warms the page cache."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def line(name: str, common: float, ours: float, goal: float) -> None:
    """One row of the table."""
    ratio = common / ours
    mark = "" if ratio >= goal else "  below the goal"
    say(f"{name:34s} {common:10.2f} {ours:10.2f} {ratio:8.1f}x  goal {goal:g}x{mark}")


def bench_stacks(root: Path, volume: np.ndarray) -> None:
    """A random 5-slice stack from the memory-mapped cache against five PNG files."""
    np.save(root / "v.npy", volume)
    (root / "png").mkdir()
    for z, plane in enumerate(volume):
        cv2.imwrite(str(root / "png" / f"{z}.png"), plane)
    mapped = np.load(root / "v.npy", mmap_mode="r")
    starts = np.random.default_rng(0).integers(0, len(volume) - 5, 200)

    def pngs() -> None:
        for z in starts:
            np.stack([cv2.imread(str(root / "png" / f"{z + k}.png"), 0) for k in range(5)])

    def cache() -> None:
        for z in starts:
            np.array(mapped[z : z + 5])

    line("random 5-slice stack", median_ms(pngs) / 200, median_ms(cache) / 200, 100)


def bench_growth(root: Path) -> None:
    """Cost per slice and memory of studies of 50 to 1,000 slices."""
    ds = pydicom.dcmread(root / "explicit" / "1.dcm")
    for count in (50, 200, 1000):
        folder = root / f"long{count}"
        folder.mkdir()
        for z in range(count):
            ds.ImagePositionPatient = [-100, -100, round(-0.1 * z, 1)]
            ds.save_as(folder / f"{z + 1}.dcm")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ms = median_ms(lambda folder=folder: read_study(folder), 1)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        volume = count * SIZE * SIZE * 2 / 1e6
        say(
            f"{count:5d} slices {ms / count:8.3f} ms per slice, {volume:.0f} MB of HU, peak memory "
            f"grew by {grown:.0f} MiB"
        )


def main(slices: int) -> None:
    """Print the whole table."""
    say(f"{'ms per study of ' + str(slices):34s} {'common':>10s} {'here':>10s} {'ratio':>9s}")
    goals = {"explicit": 8, "rle": 3, "jpeg_lossless": 5, "jpeg_ls": 2.5, "jpeg_2000": 1}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, syntax in GDCM_NAMES.items():
            folder = root / name
            write_study(folder, slices, syntax)
            if not np.array_equal(common_read(folder), read_study(folder).hu):
                raise SystemExit(f"{name}: the readers disagree")
            common = median_ms(lambda folder=folder: common_read(folder))
            ours = median_ms(lambda folder=folder: read_study(folder))
            line(f"read {name}", common, ours, goals[name])
        for name, goal in (("explicit", 4.0), ("jpeg_lossless", 5.0)):
            folder = root / name
            common = median_ms(lambda folder=folder: common_volume(folder))
            ours = median_ms(lambda folder=folder: make_volume(read_study(folder), CONFIG))
            line(f"files to cached volume {name}", common, ours, goal)
        folder = root / "explicit"
        common = median_ms(lambda: common_headers(folder))
        line("headers", common, median_ms(lambda: read_headers(folder)), 8)
        bench_stacks(root, make_volume(read_study(folder), CONFIG).voxels)
        bench_growth(root)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)

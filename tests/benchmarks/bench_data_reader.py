"""Reader, volumes and headers against the common way, side by side in one run.

Run: `python tests/benchmarks/bench_data_reader.py [SLICES]`. Both ways run in turns; printed are
medians in milliseconds and the median ratio of a turn, which is what counts: an absolute time says
nothing on a shared machine. The ratio of processor time does not see other programs, nor that this
reader uses all cores: on two idle ones, nearly twice as much is gained in wall time.

Common is what public solutions do: dcmread, pixel_array, float32 rescale, one file after the other.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pydicom
from goals import record

from cspine_kit.core.config import load_config
from cspine_kit.core.execution import tune_process, usable_cores
from cspine_kit.data.reader.dicom import read_headers, read_study
from cspine_kit.data.volumes.read import read_both

SIZE, REPEATS = 512, 5
BASE = load_config(Path(__file__).parents[2] / "configs" / "base.yaml")
CONFIG = BASE.volumes
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
    """The common read, windowed in float, resized slice by slice to one volume."""
    hu = common_read(folder)
    side = CONFIG.fine.side_px
    low, high = BASE.model.windows[0]
    out = np.empty((len(hu), side, side), np.uint8)
    for z, frame in enumerate(hu):
        share = np.clip((frame - low) / (high - low), 0, 1)
        out[z] = cv2.resize((share * 255), (side, side), interpolation=cv2.INTER_AREA)
    return out


def common_headers(folder: Path) -> list[pydicom.Dataset]:
    """Every header by pydicom."""
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.iterdir())]


def say(text: str) -> None:
    """Write one line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def line(
    name: str,
    common: Callable[[], object],
    ours: Callable[[], object],
    goal: float,
    per: int,
) -> None:
    """Measure both in turns and print one row; the ratio is the median over turns."""
    common(), ours()  # the page cache and compiled code are warm
    walls, works = [], []
    for _ in range(REPEATS):
        marks = [(time.perf_counter(), time.process_time())]
        for function in (common, ours):
            function()
            marks.append((time.perf_counter(), time.process_time()))
        wall, work = np.diff(np.array(marks), axis=0).T * 1e3 / per
        walls.append(wall)
        works.append(work)
    ratio, saved = (float(np.median([a / b for a, b in turns])) for turns in (walls, works))
    slow, fast = np.median(walls, axis=0)
    mark = "" if ratio >= goal else "  below the goal"
    say(f"{name:36s} {slow:9.3f} {fast:9.3f} {ratio:8.1f}x {saved:8.1f}x  goal {goal:g}x{mark}")
    record(f"times the common way: {name}", ratio, goal)


def both_bytes(folder: Path) -> int:
    """Size of both volumes of a study."""
    volumes, _ = read_both(folder, CONFIG)
    return sum(int(np.prod(v.voxels.shape)) for v in (volumes.coarse, volumes.fine))


def memory_of(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0]) * 1024


def bench_memory(kind: str, folder: str, warm: str) -> None:
    """Print milliseconds, peak memory and size of one call; run in a process of its own."""
    work = {"read_study": lambda path: read_study(path).hu.nbytes}
    work["read_both"] = both_bytes
    work[kind](Path(warm))
    before = memory_of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    size = work[kind](Path(folder))
    took = time.perf_counter() - start
    say(json.dumps([took * 1e3, memory_of("VmHWM") - before, size]))


def bench_growth(root: Path) -> None:
    """Cost per slice and memory of studies of 50 to 1,000 slices, each in a new process."""
    say("\nlong studies, each in a new process; the peak counts what is returned")
    ds = pydicom.dcmread(root / "explicit" / "1.dcm")
    for count in (50, 200, 1000):
        folder = root / f"long{count}"
        folder.mkdir()
        for z in range(count):
            ds.ImagePositionPatient = [-100, -100, round(-0.6 * z, 1)]
            ds.save_as(folder / f"{z + 1}.dcm")
        for kind in ("read_study", "read_both"):
            done = [
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__, kind, str(folder), str(root / "explicit")],
                        capture_output=True,
                        check=True,
                    ).stdout
                )
                for _ in range(REPEATS)
            ]
            took, grown, size = np.median(np.array(done), axis=0)
            say(
                f"{kind:12s} {count:5d} slices {took / count:8.3f} ms per slice  "
                f"{size / 1e6:6.0f} MB returned, peak memory grew by {grown / 1e6:6.0f} MB "
                f"({100 * (grown / size - 1):+.0f} %)"
            )


def main(slices: int) -> None:
    """Print the whole table."""
    # As in every process that reads many studies: else each turn pays for fresh pages, or does not.
    tune_process()
    codecs = [name for name in ("imagecodecs", "numba") if importlib.util.find_spec(name)]
    say(f"{usable_cores()} cores, fast decoders: {', '.join(codecs) or 'none'}")
    say(f"{'ms per slice':36s} {'common':>9s} {'here':>9s} {'ratio':>9s} {'cpu ratio':>9s}")
    goals = {"explicit": 8, "rle": 3, "jpeg_lossless": 5, "jpeg_ls": 2.5, "jpeg_2000": 1}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, syntax in GDCM_NAMES.items():
            folder = root / name
            write_study(folder, slices, syntax)
            if not np.array_equal(common_read(folder), read_study(folder).hu):
                raise SystemExit(f"{name}: the readers disagree")
            line(
                f"read {name}",
                partial(common_read, folder),
                partial(read_study, folder),
                goals[name],
                slices,
            )
        for name, goal in (("explicit", 1.0), ("jpeg_lossless", 2.0)):
            folder = root / name
            line(
                f"files to both volumes {name}",
                partial(common_volume, folder),
                partial(read_both, folder, CONFIG),
                goal,
                slices,
            )
        folder = root / "explicit"
        line("headers", partial(common_headers, folder), partial(read_headers, folder), 8, slices)
        bench_growth(root)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        bench_memory(*sys.argv[1:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 100)

"""Levels and probabilities as DICOM objects beside the source series.

In: a `Judgment` and the study's folder. Out: a segmentation of the levels' bone (PS3.3 A.51), and a
structured report of TID 1500 with a probability for each level. Example::

    from cspine_kit.infer.predictor import Predictor

    judgment = Predictor(bundle).predict(folder)
    write_segmentation(judgment, folder, Path("levels.seg.dcm"))
    write_report(judgment, folder, Path("report.sr.dcm"))

Both say that they are for research use only, which bundle they come from, and refer to the slices
they speak of. The same scan and bundle give the same ids.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cspine_kit import __version__
from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.runs import publish
from cspine_kit.data.volumes.curve import Grey
from cspine_kit.data.volumes.lattice import Lattice
from cspine_kit.infer.judgment import FIXED, USE, Judgment, Scan
from cspine_kit.show.explain.bones import bone_labels
from cspine_kit.show.exports.source import derived_uid, require_highdicom, source_series
from cspine_kit.show.report.figure import LEVEL_COLORS
from cspine_kit.stack.scores.operating import NEVER

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAKER, MODEL = "cspine_kit", "cspine_kit"
SEG_NUMBER, SR_NUMBER = 9101, 9102
"""Series numbers beyond those of scanners."""

VERTEBRA_CODES = (
    "14806007",
    "39976000",
    "113205007",
    "5329002",
    "36978003",
    "36054005",
    "87391001",
)
"""SNOMED CT: C1..C7 vertebra (PS3.16 CID 7603)."""

KEY_IMAGES = 3


def native_labels(scan: Scan, labels: Grey) -> Grey:
    """Labels of the fine volume on the study's own grid, (slices, rows, columns)."""
    fine, geometry = scan.volumes.fine, scan.geometry
    rows, cols = geometry.shape
    lattice: Lattice = fine.lattice
    y = np.rint(lattice.to_px(_along(rows, lattice.pitch_mm[0], 0))[:, 0]).astype(int)
    x = np.rint(lattice.to_px(_along(cols, lattice.pitch_mm[1], 1))[:, 1]).astype(int)
    y, x = y - fine.corner[0], x - fine.corner[1]
    _, ny, nx = labels.shape
    inside_y, inside_x = (y >= 0) & (y < ny), (x >= 0) & (x < nx)
    native = np.zeros((len(geometry.z_mm), rows, cols), np.uint8)
    for k, plane in enumerate(labels):
        part = plane[y[inside_y][:, None], x[inside_x]]
        native[fine.first_slice + k][np.ix_(inside_y, inside_x)] = part
    return native


def _along(count: int, pitch_mm: float, axis: int) -> "np.ndarray":
    places = np.zeros((count, 2))
    places[:, axis] = pitch_mm * np.arange(count)
    return places


def _level_code(index: int) -> Any:
    from pydicom.sr.coding import Code

    return Code(VERTEBRA_CODES[index], "SCT", f"{LEVELS[index]} vertebra")


def write_segmentation(judgment: Judgment, folder: Path, path: Path) -> None:
    """Write the levels' bone as a binary DICOM segmentation.

    Raises:
        ArtifactError: highdicom is not installed.
        StudyError: the slices are not files of their own.
    """
    require_highdicom()
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    scan = _scan(judgment)
    series = source_series(folder, scan.geometry)
    labels = native_labels(scan, bone_labels(scan.volumes.fine, judgment.levels))
    present = [j for j in range(len(LEVELS)) if (labels == j + 1).any()]
    numbered = np.zeros(len(LEVELS) + 1, np.uint8)
    numbered[[j + 1 for j in present]] = np.arange(1, len(present) + 1)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=MODEL, version=_version(judgment), family=codes.cid7162.ArtificialIntelligence
    )
    uid = str(series[0].SeriesInstanceUID)
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=LEVELS[j],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=_level_code(j),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_id=LEVELS[j],
            tracking_uid=_tracking(judgment, uid, LEVELS[j]),
            display_color=hd.color.CIELabColor.from_rgb(*_rgb(LEVEL_COLORS[LEVELS[j]])),
        )
        for number, j in enumerate(present, start=1)
    ]
    geometry = scan.geometry
    down, right = geometry.axes
    made = hd.seg.Segmentation(
        source_images=series,
        pixel_array=numbered[labels],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=derived_uid(uid, judgment.bundle, "seg series"),
        series_number=SEG_NUMBER,
        sop_instance_uid=derived_uid(uid, judgment.bundle, "seg"),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MODEL,
        software_versions=_version(judgment),
        device_serial_number=judgment.bundle[:16],
        content_description=USE,
        content_label="LEVELS",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        pixel_measures=hd.PixelMeasuresSequence(
            pixel_spacing=[float(v) for v in geometry.spacing_mm[1:]],
            slice_thickness=float(geometry.spacing_mm[0]),
            spacing_between_slices=float(geometry.spacing_mm[0]),
        ),
        plane_orientation=hd.PlaneOrientationSequence(
            hd.CoordinateSystemNames.PATIENT, [float(v) for v in (*right, *down)]
        ),
        plane_positions=[
            hd.PlanePositionSequence(hd.CoordinateSystemNames.PATIENT, [float(v) for v in origin])
            for origin in geometry.origins_mm
        ],
        series_description="cspine_kit levels (research use only)",
    )
    with publish(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)


def write_report(judgment: Judgment, folder: Path, path: Path) -> None:
    """Write the probabilities as a structured report of TID 1500.

    Raises:
        ArtifactError: highdicom is not installed.
        StudyError: the slices are not files of their own.
    """
    require_highdicom()
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    scan = _scan(judgment)
    series = source_series(folder, scan.geometry)
    uid = str(series[0].SeriesInstanceUID)
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid(judgment.bundle, "device"),
            name=f"{MODEL}, research use only",
            manufacturer_name=MAKER,
            model_name=MODEL,
        ),
    )
    table = judgment.probabilities.set_index("target")
    shown = [level for level in LEVELS if table.loc[level, "in_scan"]]
    groups = [_group(judgment, uid, target, series) for target in (*shown, OVERALL)]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=Code("241577003", "SCT", "Computed tomography of spine"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=series,
    )
    keys = sorted({k for level in shown for k in judgment.driving(level, KEY_IMAGES)})
    made = sr.EnhancedSR(
        evidence=series,
        content=content[0],
        series_instance_uid=derived_uid(uid, judgment.bundle, "sr series"),
        series_number=SR_NUMBER,
        sop_instance_uid=derived_uid(uid, judgment.bundle, "sr"),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MODEL,
        software_versions=_version(judgment),
        is_complete=True,
        series_description=f"cspine_kit fractures, {len(keys)} key images (research use only)",
    )
    with publish(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)


def _group(judgment: Judgment, uid: str, target: str, series: "list[Dataset]") -> Any:
    """The measurements of one level, or of the patient."""
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    row = judgment.probabilities.set_index("target").loc[target]
    whole = target == OVERALL
    fracture = Code("125605004", "SCT", "Fracture of bone")
    site = (
        Code("122494005", "SCT", "Cervical spine") if whole else _level_code(LEVELS.index(target))
    )
    measures = [
        sr.Measurement(
            name=codes.DCM.Probability, value=float(row["prob"]), unit=codes.UCUM.NoUnits
        )
    ]
    for point in [c for c in row.index if c not in FIXED]:
        if row[point] < NEVER:
            told = Code(f"threshold-{point}"[:16], "99CSPINE", f"Threshold {point}")
            measures.append(
                sr.Measurement(name=told, value=float(row[point]), unit=codes.UCUM.NoUnits)
            )
    slices = [] if whole else judgment.driving(target, KEY_IMAGES)
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_tracking(judgment, uid, target), identifier=target
        ),
        finding_type=fracture,
        finding_sites=[sr.FindingSite(anatomic_location=site)],
        algorithm_id=sr.AlgorithmIdentification(
            name=MODEL,
            version=_version(judgment),
            parameters=[f"bundle sha256 {judgment.bundle}", USE, *judgment.notes],
        ),
        measurements=measures,
        source_images=[
            sr.SourceImageForMeasurementGroup.from_source_image(series[k]) for k in slices
        ],
    )


def _scan(judgment: Judgment) -> Scan:
    if judgment.scan is None or not judgment.ok:
        raise ValueError(f"{judgment.study} was not judged: {judgment.reason}")
    return judgment.scan


def _version(judgment: Judgment) -> str:
    return f"{__version__} bundle {judgment.bundle[:12]}"


def _tracking(judgment: Judgment, uid: str, target: str) -> str:
    return derived_uid(uid, judgment.bundle, target)


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))

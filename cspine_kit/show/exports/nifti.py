"""A judged scan as NIfTI, for Slicer or ITK-SNAP: volume in HU, levels, heat.

In: an `Evidence`. Out: `volume.nii.gz`, `levels.nii.gz`, `heat.nii.gz`, one grid. Example::

    from cspine_kit.infer.predictor import Predictor
    from cspine_kit.show.explain.evidence import gather_evidence

    predictor = Predictor(bundle)
    evidence = gather_evidence(predictor, predictor.predict(folder))
    [path.name for path in write_nifti(evidence, Path("nifti"))]

Coordinates are NIfTI's: x to the right, y to the front, z to the head. Slices that lie irregularly
keep their median distance here.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.runs import publish
from cspine_kit.data.volumes.store import every_slice
from cspine_kit.infer.judgment import USE
from cspine_kit.show.explain.bones import bone_labels
from cspine_kit.show.explain.evidence import Evidence

NAMES = ("volume.nii.gz", "levels.nii.gz", "heat.nii.gz")


def affine_of(evidence: Evidence) -> FloatArray:
    """From voxel (x, y, z; z 0 the most cranial slice) to mm of NIfTI's frame, (4, 4)."""
    fine, scan = evidence.fine, evidence.judgment.scan
    if scan is None:
        raise ValueError(f"{evidence.judgment.study} was not read")

    def place(z_mm: float, y_px: float, x_px: float) -> FloatArray:
        y_mm, x_mm = fine.to_mm(np.array([[y_px, x_px]]))[0]
        return scan.geometry.patient_mm(z_mm, float(y_mm), float(x_mm))

    z = fine.z_mm
    origin = place(float(z[0]), 0.0, 0.0)
    last = place(float(z[-1]), 0.0, 0.0)
    affine = np.eye(4)
    affine[:3, 0] = place(float(z[0]), 0.0, 1.0) - origin
    affine[:3, 1] = place(float(z[0]), 1.0, 0.0) - origin
    affine[:3, 2] = (last - origin) / max(1, len(z) - 1)
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def write_nifti(evidence: Evidence, folder: Path) -> list[Path]:
    """Write the three volumes; their paths in the order of `NAMES`."""
    nib: Any = import_module("nibabel")  # untyped
    fine, affine = evidence.fine, affine_of(evidence)
    hu = np.rint(fine.curve.hu).astype(np.int16)[every_slice(fine.voxels)]
    labels = bone_labels(fine, evidence.judgment.levels)
    volumes: tuple[NDArray[np.generic], ...] = (hu, labels, evidence.heat)
    paths = []
    for name, voxels in zip(NAMES, volumes, strict=True):
        image = nib.Nifti1Image(np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine)
        image.header["descrip"] = USE.encode()[:79]
        image.header.set_xyzt_units("mm")
        path = folder / name
        with publish(path) as temporary:
            packed = temporary.with_name(f"{temporary.name}.nii.gz")
            nib.save(image, packed)
            packed.replace(temporary)
        paths.append(path)
    return paths

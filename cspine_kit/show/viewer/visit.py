"""One visit: a scan given, read, judged, explained, and forgotten.

In: a `Predictor`, files. Out: what the page shows, stage by stage. Example::

    from cspine_kit.infer.predictor import Predictor

    visit = Visit(Path("visit"))
    visit.run(lambda: Predictor(bundle), folder, phantom=True)
    state = visit.state()
    state["stage"], [row["name"] for row in state["result"]["rows"]][:2]
    visit.forget()

Numbers are there as soon as the networks have spoken; heat and the 3D view follow.
"""

import contextlib
import io
import json
import logging
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cspine_kit.core.errors import CSpineError
from cspine_kit.data.reader.dicom import gather, headers_of
from cspine_kit.data.reader.pixels.frames import Frames
from cspine_kit.data.reader.problems import PROBLEMS, explain
from cspine_kit.infer.answer import cause_of
from cspine_kit.infer.judgment import USE, Judgment, Scan
from cspine_kit.infer.predictor import Predictor
from cspine_kit.show.explain.evidence import Evidence, gather_evidence
from cspine_kit.show.explain.page import JSON, PAGE, render, table_rows
from cspine_kit.show.explain.pictures import WINDOWS, Rgb, levels_figure, png, slice_picture
from cspine_kit.show.explain.spine3d import spine_html
from cspine_kit.show.exports.nifti import write_nifti
from cspine_kit.show.viewer.uploads import Uploads

log = logging.getLogger(__name__)

NAME = "scan"
"""What every visitor's scan is called: no name or id of it is shown or written."""

STAGES = ("receiving", "reading", "judging", "explaining", "done")
"""In their order; "failed" ends a visit at any of them."""


class Visit:
    """One scan of one visitor.

    Args:
        folder: of the visit; made on demand, gone after `forget`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploads = Uploads(folder / "upload")
        self.seen_s = time.monotonic()
        self.stage, self.cause = STAGES[0], ""
        self.seconds: dict[str, float] = {}
        self.unreadable: list[str] = []
        self.preview: Rgb | None = None
        self.scan: Scan | None = None
        self.judgment: Judgment | None = None
        self.evidence: Evidence | None = None
        self._lock = threading.Lock()
        self._made: dict[str, bytes] = {}

    @contextlib.contextmanager
    def _at(self, stage: str) -> Iterator[None]:
        self.stage, start = stage, time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - start, 2)

    def run(
        self,
        predictor: Callable[[], Predictor],
        folder: Path | None = None,
        *,
        phantom: bool = False,
    ) -> None:
        """Read, judge and explain; `state` tells how far it is. Nothing is raised.

        Args:
            predictor: waits for the models where they are still loading.
            folder: a study's files; what was uploaded by default.
            phantom: it is a phantom, or the visitor wants a phantom bundle's numbers all the same.
        """
        try:
            self._run(predictor, folder or self.uploads.folder, phantom)
        except CSpineError as error:
            self.stage, self.cause = "failed", cause_of(error).replace(str(self.folder), "")
        except Exception as error:
            log.exception("a visit failed")
            self.stage, self.cause = "failed", f"{type(error).__name__}: {error}"

    def _run(self, predictor: Callable[[], Predictor], folder: Path, phantom: bool) -> None:
        with self._at("reading"):
            self._look(folder)
            ready = predictor()
            if ready.note and not phantom:
                self.stage, self.cause = "failed", f"{ready.note}. {CONSENT}"
                return
            scan = ready.read(folder, NAME)
            self.scan = scan
        with self._at("judging"):
            self.judgment = ready.judge(scan, folder)
        if not self.judgment.ok:
            self.stage, self.cause = "failed", self.judgment.reason
            return
        with self._at("explaining"):
            self.evidence = gather_evidence(ready, self.judgment)
        self.stage = "done"

    def _look(self, folder: Path) -> None:
        """A first picture, and the files that cannot be read."""
        _, errors = headers_of(folder)
        self.unreadable = [
            f"{self.uploads.names.get(error.file, error.file)}: {PROBLEMS[error.code].what}"
            for error in errors
        ]

        def middle(frames: Frames) -> Rgb:
            hu = frames.hu(len(frames.geometry.headers) // 2)
            low, high = WINDOWS["bone"]
            grey = (255 * np.clip((hu - low) / (high - low), 0.0, 1.0)).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)

        _, self.preview = gather(folder, NAME, middle)

    # ---- what the page asks for ------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """JSON-ready: stage, what the scan does not hold, numbers in words; no tag of the files."""
        self.seen_s = time.monotonic()
        scan, judgment, evidence = self.scan, self.judgment, self.evidence
        found: dict[str, Any] = {
            "stage": self.stage,
            "cause": self.cause,
            "files": self.uploads.count,
            "seconds": self.seconds,
            "unreadable": self.unreadable[:20],
            "unreadable_count": len(self.unreadable),
            "preview": self.preview is not None,
            "problems": explain(scan.geometry.problems) if scan else [],
            "slices": len(scan.geometry.z_mm) if scan else 0,
            "spacing_mm": [round(float(v), 2) for v in scan.geometry.spacing_mm] if scan else [],
            "result": None,
        }
        if judgment is not None and judgment.ok:
            found["result"] = {
                "notes": list(judgment.notes),
                "absent": judgment.absent,
                "rows": [{**row, "words": in_words(row)} for row in table_rows(judgment)],
                "driving": {row: judgment.driving(row) for row in judgment.levels["level"]},
                "faults": len(judgment.faults),
                "suspects": evidence.suspects if evidence else [],
                "called": evidence.called if evidence else False,
                "explained": evidence is not None,
            }
        return found

    def picture(
        self, name: str, slice_idx: int = 0, window: str = "bone", heat: bool = True
    ) -> bytes:
        """A PNG: "preview", "levels" or "slice".

        Raises:
            KeyError: there is none yet.
        """
        if name == "preview" and self.preview is not None:
            return png(self.preview)
        if name == "slice" and self.scan is not None:
            shown = self.evidence if heat else None
            return png(slice_picture(self.scan.volumes.fine, slice_idx, WINDOWS[window], shown))
        if name == "levels" and self.judgment is not None and self.judgment.ok:
            judgment = self.judgment
            return self._once("levels", lambda: levels_figure(judgment).image)
        raise KeyError(name)

    def spine(self) -> bytes:
        """The turning view as a part of a page.

        Raises:
            KeyError: there is none yet.
        """
        evidence = self.evidence
        if evidence is None:
            raise KeyError("spine")
        return self._once("spine", lambda: spine_html(evidence, alone=False).encode())

    def download(self) -> bytes:
        """A .zip: prediction.json, the page, NIfTI; written in the visit's folder, then gone.

        Raises:
            KeyError: there is none yet.
        """
        judgment, evidence = self.judgment, self.evidence
        if judgment is None or evidence is None:
            raise KeyError("download")
        with self._lock:
            place = self.folder / "download"
            try:
                paths = write_nifti(evidence, place)
                buffer = io.BytesIO()
                with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
                    packed.writestr("README.txt", "\n".join([USE, *judgment.notes]))
                    packed.writestr(JSON, json.dumps(judgment.as_dict(), indent=2))
                    packed.writestr(PAGE, render(evidence, paths))
                    for path in paths:
                        packed.write(path, path.name)
            finally:
                shutil.rmtree(place, ignore_errors=True)
        return buffer.getvalue()

    def _once(self, name: str, make: Callable[[], bytes]) -> bytes:
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    def forget(self) -> None:
        """Delete every file of the visit and let go of the scan."""
        self.stage, self.cause = "failed", "this visit is over"
        self.scan = self.judgment = self.evidence = self.preview = None
        self._made.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


CONSENT = (
    "Its numbers would mean nothing for a patient. To see them all the same, tick the box under "
    "the upload"
)


def in_words(row: dict[str, Any]) -> str:
    """One target's probability in words, from a row of `table_rows`."""
    if row["kind"] == "quiet":
        return "not in this scan: nothing is said of it"
    if row["kind"] == "called":
        return f"fracture suspected: at or above the threshold of {row['threshold']}"
    if row["threshold"] == "none":
        return "no threshold: the bundle saw no fracture of this level to choose one on"
    return f"no fracture suspected: below the threshold of {row['threshold']}"

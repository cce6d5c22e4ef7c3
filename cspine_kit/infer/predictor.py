"""A bundle opened once, and scans judged by it one after the other: the kernel's code path.

In: a bundle; folders of DICOM files, .zip files of them, NIfTI files. Out: `Judgment`s. Example::

    predictor = Predictor(bundle)
    judgment = predictor.predict(folder)
    judgment.probabilities.set_index("target")["prob"]

`from cspine_kit import Predictor` is the same. What cannot be judged says so in `status` and
`reason`; nothing is raised for one bad scan.
"""

import tempfile
import time
from pathlib import Path

from cspine_kit.core.errors import ArtifactError, CSpineError
from cspine_kit.core.runs import file_hash
from cspine_kit.data.volumes.read import read_both
from cspine_kit.infer.answer import cause_of
from cspine_kit.infer.judgment import (
    Judgment,
    Scan,
    level_table,
    named,
    probability_table,
    slice_table,
)
from cspine_kit.infer.levels import NO_NECK, UPSIDE_DOWN, StudyLevels, find_levels
from cspine_kit.infer.log import IMAGE
from cspine_kit.infer.manifest import MANIFEST, open_bundle
from cspine_kit.infer.origin import (
    NOTE_OF_FINDER,
    note_of,
    origin_of,
    refuse_phantom_bundle,
)
from cspine_kit.infer.studies.worker import refusal


class Predictor:
    """The models of a bundle, ready to judge scans.

    Attributes:
        bundle: its folder.
        sha256: of its manifest, which hashes every file.
        ensemble: its networks and stack, as the kernel holds them.
    """

    def __init__(
        self, bundle: str | Path, *, phantom_bundle: bool = False, device: str | None = None
    ) -> None:
        """Verify every file of a bundle and load its models.

        Args:
            bundle: the folder that `cspine bundle` wrote.
            phantom_bundle: a bundle born on phantoms may judge other scans too; every output then
                says what it is.
            device: where networks run; the first GPU, else the CPU.

        Raises:
            ArtifactError: not a sound bundle.
        """
        from cspine_kit.infer.chains.ensemble import Ensemble

        self.bundle, self._allowed = Path(bundle), phantom_bundle
        if not self.bundle.is_dir():
            raise ArtifactError(f"there is no bundle {self.bundle}; make kernel builds one")
        with tempfile.TemporaryDirectory() as scratch:
            self.ensemble = Ensemble(open_bundle(self.bundle, Path(scratch)), device)
        self.sha256 = file_hash(self.bundle / MANIFEST)

    @property
    def note(self) -> str:
        """The words that mark every output of this bundle; empty for one of real studies."""
        return note_of(origin_of(self.bundle))

    def read(self, folder: Path, study: str | None = None) -> Scan:
        """Read a scan as the kernel does.

        Args:
            folder: its files, a .zip of them, or a NIfTI file.
            study: its name in results; the folder's own by default.

        Raises:
            StudyError: nothing can be read.
        """
        start = time.monotonic()
        volumes, geometry = read_both(folder, self.ensemble.config.volumes, study or named(folder))
        return Scan(volumes, geometry, time.monotonic() - start)

    def levels(self, folder: str | Path) -> StudyLevels:
        """The seven levels of one scan by the vertebra models, without judging fractures.

        Args:
            folder: its files, a .zip of them, or a NIfTI file.

        Raises:
            StudyError: nothing can be read.
        """
        return find_levels(self.ensemble.finder, Path(folder))

    def predict(self, folder: str | Path, *, phantom_bundle: bool = False) -> Judgment:
        """Judge one scan.

        Args:
            folder: its files, a .zip of them, or a NIfTI file.
            phantom_bundle: as of the constructor, for this scan.
        """
        place, study = Path(folder), named(Path(folder))
        try:
            allowed = self._allowed or phantom_bundle
            refuse_phantom_bundle(self.bundle, place, allowed=allowed)
            scan = self.read(place, study)
        except (CSpineError, OSError) as error:
            return self._cannot(study, cause_of(error))
        return self.judge(scan, place)

    def judge(self, scan: Scan, folder: Path) -> Judgment:
        """Judge a scan that was read.

        Args:
            scan: of `read`.
            folder: its files.
        """
        study, geometry = scan.volumes.study_uid, scan.geometry
        if reason := refusal(geometry.problems):
            return self._cannot(study, reason, scan)
        try:
            said = self.ensemble.predict(scan.volumes, folder)
        except Exception as error:  # noqa: BLE001 - one scan costs itself
            return self._cannot(study, cause_of(error), scan)
        if said.levels_from != IMAGE:
            cause = next(iter(said.faults.values()), NO_NECK)
            return self._cannot(study, f"no levels from the image: {cause}", scan)
        levels = level_table(said.levels, scan)
        absent = [str(level) for level in levels.loc[~levels["in_scan"], "level"]]
        if len(absent) == len(levels):
            return self._cannot(study, NO_NECK, scan)
        if not levels.loc[levels["in_scan"], "z_mm"].is_monotonic_decreasing:
            return self._cannot(study, UPSIDE_DOWN, scan)
        shipped = said.table[said.table["model"] == self.ensemble.ships]
        points = self.ensemble.stack.points if self.ensemble.stack else {}
        costs = said.costs
        return Judgment(
            *(study, "ok", "", self.sha256),
            notes=self._notes,
            scan=scan,
            probabilities=probability_table(shipped.set_index("target")["prob"], points, absent),
            levels=levels,
            slices=slice_table(said.slices),
            rows=said.slices,
            fold_levels=said.levels,
            faults=said.faults,
            seconds={
                "read": scan.read_s,
                "vertebra": costs.vertebra_s,
                **costs.members_s,
                "stack": costs.stack_s,
            },
        )

    @property
    def _notes(self) -> tuple[str, ...]:
        levels = NOTE_OF_FINDER if self.ensemble.by_finder else ""
        return tuple(note for note in (self.note, levels) if note)

    def _cannot(self, study: str, reason: str, scan: Scan | None = None) -> Judgment:
        return Judgment(*(study, "cannot_judge", reason, self.sha256), notes=self._notes, scan=scan)

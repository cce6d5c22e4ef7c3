"""What a run has left so far, each table read once and only where it is asked for.

In: a config and its run folder, in any state. Out: tables, None for what is not there. Example::

    run = Run(config, paths, Path("submissions"))
    run.train[["study_uid", "C2", "fold"]], run.scores, run.faults

A table that breaks its contract is read all the same and named in `faults`: the report is for
finding out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from cspine_kit.core.anatomy import AXIAL, OVERALL, TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.paths import KERNEL_LOG, RESULTS, SUBMISSION, RunPaths
from cspine_kit.core.runs import read_json
from cspine_kit.core.tables import MASK_COLUMNS, read_table
from cspine_kit.infer.log import read_kernel_log
from cspine_kit.show.presence import judge_presence, systems_of
from cspine_kit.show.report.figure import PLAIN_COLOR, SHIPS_COLOR, member_colors
from cspine_kit.show.report.scan import Scan, read_scan
from cspine_kit.vision.compare.backbones import BACKBONES
from cspine_kit.vision.compare.detection import DETECTIONS
from cspine_kit.vision.compare.fracture_backbones import FOLDER
from cspine_kit.vision.names import VERTEBRA, WEIGHTS_FILE
from cspine_kit.vision.oof.lineage import check_lineage
from cspine_kit.vision.tasks.vertebra import combined

Table: TypeAlias = Any
"""A frame, or None for what is not there: plans look before they draw."""

SCANS = 3
"""Studies that are shown as pictures."""


@dataclass(frozen=True)
class Run:
    """One run folder. `faults`: what could not be read as it should, by table."""

    config: Config
    paths: RunPaths
    submissions: Path
    faults: dict[str, str] = field(default_factory=dict)

    @cached_property
    def colors(self) -> dict[str, str]:
        """A color for each member, the vertebra stage and the stack."""
        own = member_colors(list(self.config.members))
        stage = dict.fromkeys(set(self.config.trained) - set(own), PLAIN_COLOR)
        return {**stage, "stack": SHIPS_COLOR, **own}

    def _table(self, name: str, parts: Sequence[Path] = ()) -> Table:
        """A table of the run; before it is collected, the parts that fold models have left."""
        path = self.paths.table(name)
        if path.exists():
            try:
                return read_table(path, name)
            except CSpineError as error:
                self.faults[name] = str(error)
                return pd.read_parquet(path)
        found = [pd.read_parquet(part) for part in parts if part.exists()]
        if not found or self.folds is None:
            return None
        fold = self.folds.set_index("study_uid")["fold"]
        joined = pd.concat(found, ignore_index=True)
        return joined.assign(fold=joined["study_uid"].map(fold).fillna(-1).astype("int64"))

    def _parts(self, members: Sequence[str], file: str) -> list[Path]:
        folds = range(self.config.folds.n)
        return [self.paths.model(member, k) / file for member in members for k in folds]

    def _csv(self, path: Path, text: Sequence[str] = ()) -> Table:
        return pd.read_csv(path, dtype=dict.fromkeys(text, str)) if path.exists() else None

    @cached_property
    def studies(self) -> Table:
        """Table `studies`, training and test."""
        return self._table("studies")

    @cached_property
    def slices(self) -> Table:
        """Table `slices`."""
        return self._table("slices")

    @cached_property
    def masked(self) -> Table:
        """Slices of studies that have a mask."""
        rows = None if self.slices is None else self.slices.dropna(subset=list(MASK_COLUMNS))
        return None if rows is None or rows.empty else rows

    @cached_property
    def ablation(self) -> Table:
        """Rows of every grid that was run (`cspine ablate`), without the config's own."""
        files = sorted(self.paths.ablation.glob("*.csv"))
        found = [pd.read_csv(file).iloc[1:].assign(grid=file.stem) for file in files]
        return pd.concat(found, ignore_index=True) if found else None

    @cached_property
    def backbones(self) -> Table:
        """Vertebra networks of several backbones (`cspine backbones`)."""
        return self._csv(self.paths.root / BACKBONES)

    @cached_property
    def fracture_backbones(self) -> Table:
        """By member, the same of the fracture stage."""
        files = sorted((self.paths.root / FOLDER).glob("*.csv"))
        return {file.stem: pd.read_csv(file) for file in files} or None

    @cached_property
    def detections(self) -> Table:
        """How well boxes were found out-of-fold."""
        return self._csv(self.paths.root / DETECTIONS)

    @cached_property
    def coarse(self) -> Table:
        """Table `coarse`."""
        return self._table("coarse")

    @cached_property
    def fine(self) -> Table:
        """Table `fine`."""
        return self._table("fine")

    @cached_property
    def folds(self) -> Table:
        """folds.csv."""
        return self._csv(self.paths.folds, ("study_uid", "group", "stratum"))

    @cached_property
    def train(self) -> Table:
        """Training rows of `studies` that have labels, with their fold (-1 before there is one)."""
        if self.studies is None:
            return None
        rows = self.studies[self.studies["split"] == "train"].dropna(subset=list(TARGETS))
        if self.folds is None:
            return rows.assign(fold=-1)
        fold = self.folds.set_index("study_uid")["fold"]
        return rows.assign(fold=rows["study_uid"].map(fold).fillna(-1).astype("int64"))

    def scan(self, study_uid: str, volumes: Table) -> Scan | None:
        """One of the volumes of a training study; None where it cannot be read, with a fault."""
        if self.train is None or self.slices is None or volumes is None:
            return None
        files, studies = (
            volumes.set_index("study_uid")["path"],
            self.train.set_index("study_uid", drop=False),
        )
        own = self.slices[self.slices["study_uid"] == study_uid]
        try:
            return read_scan(Path(str(files[study_uid])), studies.loc[study_uid], own)
        except (CSpineError, OSError, KeyError) as error:
            self.faults[f"pictures of {study_uid}"] = str(error)
            return None

    @cached_property
    def scans(self) -> Any:
        """A few masked studies with their masks, those with a fracture box first."""
        if self.train is None or self.slices is None or self.coarse is None:
            return None
        masked = self.train[self.train["has_mask"]]
        order = masked.sort_values(
            ["has_boxes", OVERALL, "study_uid"], ascending=[False, False, True]
        )
        found: list[Scan] = []
        for uid in order["study_uid"].head(2 * SCANS):
            scan = self.scan(uid, self.coarse)
            found += [scan] if scan is not None else []
            if len(found) == SCANS:
                break
        return found or None

    @cached_property
    def vertebra(self) -> Table:
        """What the vertebra stage says of studies that it did not learn from: where several
        networks speak, what the decode takes from them."""
        table = self.stage
        if table is None or len(self.config.stage) == 1:
            return table
        order = {name: k for k, name in enumerate(self.config.stage)}
        rows = table.sort_values("member", key=lambda m: m.map(order), kind="stable")
        by_study = rows.groupby("study_uid", sort=True)
        joined = [
            combined([p for _, p in own.groupby("member", sort=False)]) for _, own in by_study
        ]
        return pd.concat(joined, ignore_index=True)

    @cached_property
    def stage(self) -> Table:
        """Rows of every network of the vertebra stage on studies that it did not learn from."""
        names = list(self.config.stage)
        table = self._table(VERTEBRA, self._parts(names, "slices.parquet"))
        if table is None:
            return None
        return table[(table["fold"] == table["model_fold"]) & table["member"].isin(names)]

    @cached_property
    def judged(self) -> Table:
        """What headers, networks and decode say of the masked studies' slices."""
        if self.stage is None or self.masked is None or self.studies is None:
            return None
        names = systems_of(self.config)
        found = judge_presence(self.slices, self.studies, self.stage, names, seed=self.config.seed)
        return found or None

    @cached_property
    def levels(self) -> Table:
        """Decoded levels of every training study, by the vertebra model that did not see it."""
        table = self._table("levels", self._parts([VERTEBRA], "levels.parquet"))
        if table is None or self.folds is None:
            return None
        fold = table["study_uid"].map(self.folds.set_index("study_uid")["fold"])
        return table[table["model_fold"] == fold]

    @cached_property
    def oof_slices(self) -> Table:
        """Table `oof_slices`."""
        parts = self._parts(list(self.config.members), "slices.parquet")
        return self._table("oof_slices", parts)

    @cached_property
    def axial(self) -> Table:
        """Its rows of the axial plane."""
        rows = self.oof_slices
        return None if rows is None else rows[rows["plane"] == AXIAL]

    @cached_property
    def lineage(self) -> dict[str, str]:
        """By trained model: what is wrong with its own list of studies, "" for nothing."""
        if self.folds is None:
            return {}
        found = {}
        for name in self.config.trained:
            for k, rows in self.folds.groupby("fold"):
                folder = self.paths.model(name, int(str(k)))
                if not (folder / WEIGHTS_FILE).exists():
                    continue
                try:
                    check_lineage(folder, rows["study_uid"])
                    found[f"{name} fold {k}"] = ""
                except CSpineError as error:
                    found[f"{name} fold {k}"] = str(error)
        return found

    @cached_property
    def features(self) -> Table:
        """Table `features`."""
        return self._table("features")

    @cached_property
    def predictions(self) -> Table:
        """Table `predictions`, out-of-fold."""
        return self._table("predictions")

    @cached_property
    def failures(self) -> Table:
        """Table `failures`."""
        return self._table("failures")

    @cached_property
    def scores(self) -> Table:
        """The score table: `submissions/<name>/results.csv` where the test set was scored too."""
        results = self._csv(self.submissions / self.config.name / RESULTS)
        own = self._csv(self.paths.stack / "scores.csv")
        if own is None or results is None or "test_per_exam" not in results:
            return own
        tested = results[["model", "test_per_exam", "test_global"]]
        return own.merge(tested, on="model", how="left")

    @cached_property
    def tested(self) -> Table:
        """`scores` where a hidden truth is known, with test_per_exam and test_global."""
        known = self.scores is not None and "test_per_exam" in self.scores
        return self.scores if known else None

    @cached_property
    def worth(self) -> Table:
        """The members' worth."""
        return self._csv(self.paths.stack / "worth.csv")

    @cached_property
    def operating(self) -> Table:
        """Operating points."""
        return self._csv(self.paths.stack / "operating.csv")

    @cached_property
    def submission(self) -> Table:
        """row_id, fractured of the kernel's submission."""
        return self._csv(self.submissions / self.config.name / SUBMISSION, ("row_id",))

    @cached_property
    def stack(self) -> Any:
        """The fitted `Stack`."""
        from cspine_kit.stack.model.stack import Stack

        folder = self.paths.stack / "models"
        return Stack.load(folder) if (folder / "stack.json").exists() else None

    @cached_property
    def history(self) -> Table:
        """Training curves: member, fold, epoch, loss and whatever else the run has written."""
        found: list[pd.DataFrame] = []
        for member in self.config.trained:
            for k in range(self.config.folds.n):
                own = self._csv(self.paths.model(member, k) / "history.csv")
                if own is not None:
                    found.append(own.assign(member=member, fold=k))
        return pd.concat(found, ignore_index=True) if found else None

    @property
    def vertebra_history(self) -> Table:
        """Training curves of the vertebra networks."""
        return self._history(of_members=False)

    @property
    def member_history(self) -> Table:
        """Training curves of the members."""
        return self._history(of_members=True)

    def _history(self, *, of_members: bool) -> Table:
        if self.history is None:
            return None
        rows = self.history[self.history["member"].isin(list(self.config.fracture)) == of_members]
        return None if rows.empty else rows

    @cached_property
    def contributions(self) -> Any:
        """`Contributions` to the stack's answers on training studies."""
        if self.stack is None or self.features is None or not self.stack.heads:
            return None
        from cspine_kit.stack.model.contributions import level_contributions

        return level_contributions(self.stack, self.features)

    @cached_property
    def effort(self) -> Table:
        """What each step took: name, fold (-1 for none), seconds, peak_memory_mib, device."""
        names, folds = self.config.trained, range(self.config.folds.n)
        files = {(name, k): self.paths.model(name, k) / "run.json" for name in names for k in folds}
        files["stack", -1] = self.paths.stack / "run.json"
        rows = [
            {"name": name, "fold": k}
            | {key: record.get(key) for key in ("seconds", "peak_memory_mib", "device", "status")}
            for (name, k), file in files.items()
            if file.exists()
            for record in [read_json(file)]
        ]
        return pd.DataFrame(rows) if rows else None

    @cached_property
    def kernel(self) -> Any:
        """`KernelEvents` of the kernel's log."""
        path = self.submissions / self.config.name / KERNEL_LOG
        if not path.exists():
            return None
        try:
            return read_kernel_log(path)
        except CSpineError as error:
            self.faults["kernel log"] = str(error)
            return None

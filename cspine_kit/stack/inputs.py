"""What the stack is fitted on: a run's tables and other people's files, checked and complete.

In: tables `slices`, `studies`, `levels`, `oof_slices` and folds.csv of a run folder, `oof_levels`,
`oof_studies` and `oof_boxes` where there, and the files that `stack.external` and `stack.columns`
name. Out: `Inputs`. Example::

    inputs = read_inputs(config.stack, paths)
    features = inputs.features(())                  # of all members
    inputs.features(("axial",))                     # as if that member did not exist

A study that some member lacks is imputed from another member, and counted in `imputed`; one that no
member has seen is in `labels` only.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.tables import read_table
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.external.read import (
    Scores,
    check_scores,
    read_columns,
    read_scores,
)
from cspine_kit.stack.fallback.headers import Headers, read_headers
from cspine_kit.stack.fallback.imputer import Imputer, fit_imputer
from cspine_kit.stack.fallback.lying import Lying
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.features.names import RAW, SITE, own_members, score_columns_of, signal_of
from cspine_kit.stack.features.scores import MemberScores
from cspine_kit.stack.features.units import SHOWN

log = logging.getLogger(__name__)

SCORE_TABLES = ("oof_levels", "oof_studies", "oof_boxes")
"""Tables that are there where some member judges more than a slice."""


def read_training(paths: RunPaths, slices: pd.DataFrame) -> pd.DataFrame:
    """Labels, fold and group of every study of folds.csv, whether a network has seen it or not.

    Raises:
        ArtifactError: no folds.csv.
        TableError: a study of the slice table without fold or in another fold than its slices say,
            or a study without labels.
    """
    if not paths.folds.exists():
        raise ArtifactError(f"no folds at {paths.folds}; run make oof (cspine folds) first")
    folds = pd.read_csv(paths.folds, dtype={"study_uid": str, "group": str})
    seen = slices[["study_uid", "fold"]].drop_duplicates().sort_values("study_uid")
    joined = seen.merge(folds, on="study_uid", how="left", suffixes=("_slices", ""))
    lost = joined.loc[joined["fold"].isna(), "study_uid"].head(SHOWN).tolist()
    if lost:
        raise TableError(f"folds.csv: studies of the slice table in no fold: {lost}")
    moved = joined.loc[joined["fold"] != joined["fold_slices"], "study_uid"].head(SHOWN).tolist()
    if moved:
        raise TableError(
            f"folds.csv: studies in another fold than their out-of-fold slices: {moved}; "
            "the folds changed since make oof"
        )
    studies = read_table(paths.table("studies"), "studies")
    joined = folds.merge(studies[["study_uid", *TARGETS]], on="study_uid", how="left")
    bare = joined.loc[joined[list(TARGETS)].isna().any(axis=1), "study_uid"].head(SHOWN).tolist()
    if bare:
        raise TableError(f"studies: no labels for {bare}")
    keep = ["study_uid", *TARGETS, "fold", *(c for c in ("group",) if c in joined)]
    return joined[keep].astype({"fold": "int64"}).sort_values("study_uid", ignore_index=True)


@dataclass(frozen=True)
class Inputs:
    """Everything read.

    `labels`: study_uid, the targets, fold and optionally group, of every study in folds.csv;
    `slices`: complete, every member has every study in it; `scores`: what members say of levels,
    studies and boxes, with gaps; `imputed`: studies by member for which
    that is not its own word.
    """

    labels: pd.DataFrame
    slices: pd.DataFrame
    levels: pd.DataFrame
    scores: MemberScores
    headers: dict[str, Headers]
    imputer: Imputer
    given: list[Scores]
    columns: pd.DataFrame | None
    imputed: dict[str, int] = field(default_factory=dict)

    @property
    def fold(self) -> pd.Series:
        """Fold by study_uid."""
        return self.labels.set_index("study_uid")["fold"]

    @property
    def y(self) -> FloatArray:
        """The targets of `labels`, (n, 8)."""
        return self.labels[list(TARGETS)].to_numpy(np.float64)

    @cached_property
    def seen(self) -> pd.DataFrame:
        """The rows of `labels` whose studies some member has seen."""
        return self.labels[self.labels["study_uid"].isin(set(self.slices["study_uid"]))]

    @property
    def lost(self) -> int:
        """Studies that no member has seen."""
        return len(self.labels) - len(self.seen)

    @cached_property
    def _statistics(self) -> pd.DataFrame:
        return aggregate(self.slices, self.levels, self.scores)

    def features(self, dropped: tuple[str, ...] = ()) -> pd.DataFrame:
        """Out-of-fold features without the dropped members."""
        base = self._base(dropped)
        features, imputed = self.extras(dropped).add(base)
        self.imputed.update(imputed)
        return features

    def extras(self, dropped: tuple[str, ...] = ()) -> Extras:
        """External members and raw columns that stay, as the kernel will join them."""
        given = [s for s in self.given if s.name not in dropped]
        columns = None if RAW in dropped else self.columns
        return Extras.fit(self._base(dropped), given, columns)

    def _base(self, dropped: tuple[str, ...]) -> pd.DataFrame:
        """Statistics of the members that stay; where no slices do, their scores and headers."""
        rest, scores = self.slices[~self.slices["member"].isin(dropped)], self.scores
        if rest.empty:
            whole = self._statistics
            judged = score_columns_of(whole.columns)
            kept = [c for c in judged if c.split("__")[0] not in dropped]
            return whole[[c for c in whole if "__" not in c or signal_of(c) == SITE or c in kept]]
        if not set(dropped) & set(own_members(self._statistics.columns)):
            return self._statistics
        return aggregate(rest, self.levels, scores.without(dropped))

    def labelled(self, features: pd.DataFrame) -> pd.DataFrame:
        """Features with the label of each level, as contract `features` wants them."""
        label_of = self.labels.set_index("study_uid")[list(TARGETS)].stack()
        at = pd.MultiIndex.from_frame(features[["study_uid", "level"]])
        return features.assign(label=label_of.reindex(at).to_numpy(np.float64))


def _read_some(paths: RunPaths, name: str) -> pd.DataFrame | None:
    """A table that not every run has."""
    path = paths.table(name)
    return read_table(path, name) if path.exists() else None


def read_inputs(config: StackConfig, paths: RunPaths) -> Inputs:
    """Read and check everything.

    Raises:
        ArtifactError: an input table is absent.
        DataError: an external file cannot be used.
        TableError: an input breaks its contract, or a study has no fold or labels.
    """
    slices = read_table(paths.table("oof_slices"), "oof_slices")
    levels = read_table(paths.table("levels"), "levels")
    labels = read_training(paths, slices)
    studies = read_table(paths.table("studies"), "studies")
    studies = studies[studies["study_uid"].isin(set(labels["study_uid"]))]
    headers = read_headers(read_table(paths.table("slices"), "slices"), studies)
    given = [read_scores(e.name, e.oof) for e in config.external]
    for own in given:
        for line in check_scores(own, labels):
            log.warning("%s", line)
    columns = None if config.columns is None else read_columns(config.columns)
    imputer = fit_imputer(slices)

    def lying(study_uid: str, model_fold: int) -> Lying:
        own = (levels["study_uid"] == study_uid) & (levels["model_fold"] == model_fold)
        z_mm = headers[study_uid].z_mm
        return Lying(np.arange(len(z_mm)), z_mm, levels[own])

    complete, imputed = imputer.complete(slices, lying)
    scores = MemberScores(*(_read_some(paths, name) for name in SCORE_TABLES))
    return Inputs(labels, complete, levels, scores, headers, imputer, given, columns, imputed)

"""Every fold chain of a bundle on a study: vertebra k -> levels k -> members k -> stack k.

In: a bundle laid out by `open_bundle` or `lay_out`, `Volumes`. Out: a `Prediction`. Example::

    from cspine_kit.infer.manifest import open_bundle

    ensemble = Ensemble(open_bundle(bundle, Path("opened")))
    prediction = ensemble.predict(volumes, folder)
    prediction.table                      # contract `predictions`: what ships, and every baseline

The out-of-fold run calls the same `vision.predict`, `decode_study` and
`aggregate`. What fails on the way is replaced by the next best thing and named in `faults`: a
member by rows imputed from another, a vertebra model by another fold's levels and then by levels
from headers alone, a chain by the chains that are left, the stack by the plain mean of the members.

All of this is written for one study, as generators that yield what they ask of the networks
(`Asking`): studies that are predicted together share batches where they ask the same.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from cspine_kit.core.anatomy import AXIAL
from cspine_kit.core.errors import StudyError
from cspine_kit.core.tables import SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.levels import by_finder
from cspine_kit.data.reader.dicom import read_geometry
from cspine_kit.data.volumes.volume import Volume, Volumes
from cspine_kit.infer.answer import cause_of
from cspine_kit.infer.chains.asking import Ask, Asking, alone, answered
from cspine_kit.infer.chains.governor import Costs, Effort
from cspine_kit.infer.chains.loaded import Loaded
from cspine_kit.infer.chains.prediction import Prediction, Question, Trace
from cspine_kit.stack.fallback.lying import Lying
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.features.scores import MemberScores
from cspine_kit.stack.scores.baselines import all_predictions, formulas
from cspine_kit.vision.names import SLICES, VERTEBRA
from cspine_kit.vision.tasks.vertebra import combined, decode_study


class Ensemble(Loaded):
    """The models of a bundle, and what they say of studies."""

    def levels(
        self, volume: Volume, folds: Sequence[int], stride: int, trace: Trace
    ) -> Asking[dict[int, pd.DataFrame | Exception]]:
        """The seven ordered levels of a coarse volume by the vertebra model of each of these folds,
        or why there are none; `trace` gets the seconds."""
        said = yield Ask(self.stage(folds), volume, None, stride=stride)
        trace.spent(VERTEBRA, sum(one.seconds for one in said.values()))
        found: dict[int, pd.DataFrame | Exception] = {}
        with trace.stage(VERTEBRA):
            for fold in folds:
                own = [one for (_, k), one in said.items() if k == fold]
                try:
                    # Of several networks those that speak are enough.
                    spoken = [one.rows for one in own if one.rows is not None]
                    rows = combined(spoken or [own[0].require()])
                    decoded = self.calibrations[fold].applied(decode_study(rows))
                    found[fold] = by_finder(decoded) if self._synthetic([fold]) else decoded
                except Exception as error:  # noqa: BLE001 - another fold's levels will do
                    found[fold] = error
        return found

    def header_levels(self, volume: Volume, folder: Path) -> pd.DataFrame:
        """The seven levels from headers alone, in the middle of the coarse volume.

        Raises:
            StudyError: the bundle's header model could not be loaded.
        """
        if self.headers is None:
            raise StudyError(volume.study_uid, f"no levels: {self.faults.get('headers')}")
        geometry = read_geometry(folder, volume.study_uid)
        y, x = volume.middle_mm
        logits = self.headers.vertebra_logits(geometry)
        rows = pd.DataFrame(logits, columns=list(VERTEBRA_COLUMNS))
        rows[list(SPINE_BOX_COLUMNS)] = (y, x, y, x)
        rows.insert(0, "at_mm", geometry.z_mm)
        return decode_study(rows)

    def _levels_by_fold(
        self, volume: Volume, folder: Path, effort: Effort, trace: Trace
    ) -> Callable[[int], Asking[pd.DataFrame]]:
        """Levels for a fold: its own, else those of the best other fold, else from headers."""
        found: dict[int, pd.DataFrame | Exception] = {}

        def look(folds: Sequence[int]) -> Asking[None]:
            new = [k for k in folds if k not in found and self.stage([k])]
            if new:
                found.update((yield from self.levels(volume, new, effort.stride, trace)))
                trace.faults |= {
                    f"{VERTEBRA} fold {k}": cause_of(found[k])
                    for k in new
                    if isinstance(found[k], Exception)
                }

        def levels(fold: int) -> Asking[pd.DataFrame]:
            yield from look(self.chains[: effort.folds])
            for k in (fold, *(k for k in self.chains if k != fold)):
                yield from look([k])
                mine = found.get(k)
                if isinstance(mine, pd.DataFrame):
                    return mine
            trace.levels_from = "header_levels"
            return self.header_levels(volume, folder)

        return levels

    def _fold_rows(
        self, volume: Volume, levels: pd.DataFrame, *, fold: int, effort: Effort, trace: Trace
    ) -> Asking[dict[str, list[pd.DataFrame]]]:
        """Rows by table of every member of one fold: slices of those that did not run are imputed,
        their scores are left to the stack's stand-ins.

        Empty where no member gave anything: the other folds may.
        """
        found: dict[str, pd.DataFrame] = {}
        tables: dict[str, list[pd.DataFrame]] = {}
        here = [name for name in self.config.members if (name, fold) in self.models]
        # Members that time would give up speak where those it would keep are not there.
        chosen = [name for name in here if name in effort.members] or here
        models = {name: self.models[name, fold] for name in chosen}
        views = self.config.kernel.views_of(fold)[: effort.views]
        said = yield Ask(models, volume, levels, views, effort.stride)
        for name, one in said.items():
            trace.spent(name, one.seconds)
            if one.rows is not None:
                found[name] = one.rows
                for table, scores in one.scores.items():
                    tables.setdefault(table, []).append(scores.assign(member=name))
            elif one.error is not None:
                trace.faults[f"{name} fold {fold}"] = cause_of(one.error)
        if not found:
            return {}
        lying = Lying(volume.slice_idx, volume.z_mm, levels)
        rows = {
            name: found[name]
            if name in found
            else self.imputer.rows(name, found, lying if member.plane == AXIAL else None)
            for name, member in self.config.members.items()
        }
        slices = [own.assign(member=name) for name, own in rows.items()]
        return {SLICES: slices, **tables}

    def tables(
        self,
        volumes: Volumes,
        folder: Path,
        effort: Effort | None = None,
        trace: Trace | None = None,
    ) -> Asking[tuple[pd.DataFrame, pd.DataFrame, MemberScores]]:
        """Slice rows of all members, the levels, and what members say of more than slices, of one
        study (fold -1).

        As many chains as the effort allows, the best first; one that fails is replaced by the next.

        Args:
            volumes: of the study.
            folder: its files, whose headers give levels where no vertebra model does.
            effort: folds, members, views and stride; full by default.
            trace: gets seconds and faults.

        Raises:
            StudyError: no fold chain gave anything.
        """
        effort, trace = effort or self.efforts[0], trace or Trace()
        levels_of = self._levels_by_fold(volumes.coarse, folder, effort, trace)
        parts: dict[str, list[pd.DataFrame]] = {}
        levels: list[pd.DataFrame] = []
        for fold in self.chains:
            if len(levels) == effort.folds:
                break
            try:
                found = yield from levels_of(fold)
                rows = yield from self._fold_rows(
                    volumes.fine, found, fold=fold, effort=effort, trace=trace
                )
            except Exception as error:  # noqa: BLE001 - the other chains must still speak
                trace.faults[f"chain {fold}"] = cause_of(error)
                continue
            if rows:
                own = {"study_uid": volumes.study_uid, "model_fold": fold}
                levels.append(found.assign(**own))
                for table, made in rows.items():
                    parts.setdefault(table, []).extend(p.assign(**own, fold=-1) for p in made)
        if not parts:
            raise StudyError(volumes.study_uid, "; ".join(dict.fromkeys(trace.faults.values())))
        slices, all_levels = (pd.concat(p, ignore_index=True) for p in (parts.pop(SLICES), levels))
        return slices, all_levels, MemberScores.of(parts)

    def _speak(self, features: pd.DataFrame) -> pd.DataFrame:
        """Rows of contract `predictions`: the stack's, or the fixed formulas where it is lost."""
        if self.stack is not None:
            return self.stack.predict_all(features)
        units = features[["study_uid", "model_fold"]].drop_duplicates()
        fold = features.drop_duplicates("study_uid").set_index("study_uid")["fold"]
        ordered = units.sort_values(["study_uid", "model_fold"])
        return all_predictions(ordered["study_uid"].to_numpy(), formulas(features), fold)

    def predict(self, volumes: Volumes, folder: Path, effort: Effort | None = None) -> Prediction:
        """Predictions of the stack and of every named baseline for one study.

        Raises:
            StudyError: nothing but headers can speak for this study.
        """
        asking = self._prediction(Question(volumes, folder, effort or self.efforts[0]))
        return alone(asking, self.config.kernel.batch_size)

    def predict_all(self, questions: Sequence[Question]) -> list[Prediction | Exception]:
        """`predict` of several studies that share batches: for each what it gives or raises."""
        askings = [self._prediction(question) for question in questions]
        return answered(askings, self.config.kernel.batch_size)

    def _prediction(self, question: Question) -> Asking[Prediction]:
        volumes, trace = question.volumes, Trace()
        slices, levels, scores = yield from self.tables(
            volumes, question.folder, question.effort, trace
        )
        with trace.stage("stack"):
            features = aggregate(slices, levels, scores)
            if self.extras is not None:
                features, _ = self.extras.add(features)
            table = self._speak(features)
        if not table["prob"].between(0, 1, inclusive="neither").all():
            raise StudyError(volumes.study_uid, "a probability outside (0, 1)")
        seconds = trace.seconds
        costs = Costs(
            vertebra_s=seconds.get(VERTEBRA, 0.0),
            members_s={name: seconds[name] for name in self.config.members if name in seconds},
            stack_s=seconds["stack"],
        )
        chains = int(levels["model_fold"].nunique())
        return Prediction(
            *(table, features, costs, trace.faults, trace.levels_from, chains),
            slices=slices,
            levels=levels,
        )

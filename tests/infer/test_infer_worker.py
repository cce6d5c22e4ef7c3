"""Graded fallback: what each study is given when something under it gives way."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.errors import StudyError
from cspine_kit.data.confidence import PLAIN
from cspine_kit.data.reader.problems import PROBLEMS, WORST
from cspine_kit.data.volumes.curve import HuCurve
from cspine_kit.data.volumes.lattice import Lattice
from cspine_kit.data.volumes.volume import Held, Volume, Volumes
from cspine_kit.infer.answer import Answer
from cspine_kit.infer.chains.asking import alone
from cspine_kit.infer.chains.ensemble import Ensemble
from cspine_kit.infer.chains.governor import Costs, Effort, Governor
from cspine_kit.infer.chains.prediction import Prediction, Trace
from cspine_kit.infer.studies.reading import Reading
from cspine_kit.infer.studies.worker import Worker
from cspine_kit.stack.features.aggregate import aggregate

UID = "1.2.3"
EFFORT = Effort(1, 1, ("a",))


class FakeEnsemble:
    """Answers 0.3 from the image, or fails as it is told."""

    def __init__(self, image=None, source="image"):
        self.ships, self.image, self.source = "stack", image, source

    def predict_all(self, questions):
        return [self.image or self.found for _ in questions]

    @property
    def found(self):
        rows = [(m, UID, t, p, -1) for m, p in (("stack", 0.3), ("mean", 0.9)) for t in TARGETS]
        table = pd.DataFrame(rows, columns=["model", "study_uid", "target", "prob", "fold"])
        faults = {} if self.source == "image" else {"vertebra fold 0": "no neck"}
        return Prediction(table, table, Costs(0, 0.1, {"a": 0.2}, 0.01), faults, self.source)


def bare() -> Volumes:
    """Three slices whose voxels lie elsewhere."""
    lattice, curve = Lattice((4, 4), (1.0, 1.0), (4, 4)), HuCurve(((-1000, 0), (1500, 255)))
    nothing, z_mm = Held(np.zeros((3, 4, 4), np.uint8)), np.array([2.0, 1.0, 0.0])
    volume = Volume(UID, nothing, z_mm, 1.0, lattice, (0, 0), curve)
    return Volumes(volume, volume)


@pytest.fixture(name="make")
def _make(tmp_path):
    file = tmp_path / "v.npy"
    np.save(file, np.zeros((3, 4, 4), np.uint8))
    read = Reading(UID, 0.5, bare(), (file, file), ("gap",))
    header = Answer(UID, "header", probs=pd.Series(dict.fromkeys(TARGETS, 0.1)))

    def make(reading=read, deadline=100.0, fallback=header, **changes):
        governor = Governor([EFFORT], deadline_s=deadline, files=3, studies=1, clock=lambda: 0.0)
        studies = SimpleNamespace(
            folders={UID: tmp_path}, files={UID: 3}, fallback=lambda uid: fallback
        )
        worker = Worker(FakeEnsemble(**changes), governor, studies)
        return worker if reading is None else worker.answers([reading])[0]

    make.read = read
    return make


def test_the_image_chain_answers_with_what_ships(make):
    answer = make()
    assert answer.source == "image" and answer.cause is None
    assert answer.probs.to_dict() == dict.fromkeys(TARGETS, 0.3)
    assert set(answer.table["model"]) == {"stack", "mean"}
    assert answer.details["slices"] == 3 and answer.details["decode_s"] == 0.5
    assert answer.details["members_s"] == {"a": 0.2} and answer.details["problems"] == ("gap",)


def test_levels_from_headers_are_said(make):
    answer = make(source="header_levels")
    assert answer.source == "header_levels" and answer.cause == "no neck"
    assert answer.probs["C1"] == 0.3


@pytest.mark.parametrize("error", [StudyError(UID, "NaN"), MemoryError("no"), KeyError("x")])
def test_networks_that_fail_say_so(make, error):
    assert make(image=error) is error


def test_each_of_several_studies_is_answered_for_itself(make):
    lost = replace(make.read, files=())
    dead = Reading(UID, 0.1, cause="the reading process died")
    found, failed, unread = make(None).answers([make.read, lost, dead])
    assert (found.source, unread.source) == ("image", "header")
    assert isinstance(failed, ValueError), "its voxels are gone"


def test_pixels_that_cannot_be_read_leave_it_to_headers(make):
    answer = make(Reading(UID, 0.1, cause="the reading process died"))
    assert answer.source == "header" and "died" in answer.cause and answer.probs["C7"] == 0.1


def test_headers_that_fail_leave_the_priors(make):
    nothing = Answer(UID, "priors", cause=f"study {UID}: no file can be read")
    answer = make(Reading(UID, 0.1, cause="broken"), fallback=nothing)
    assert answer.source == "priors" and answer.probs is None
    assert answer.cause == f"broken; headers: study {UID}: no file can be read"


def test_no_time_is_a_cause(make):
    answer = make(deadline=-1.0)
    assert "no time" in answer.cause
    assert answer.source == "header" and answer.probs["C1"] == 0.1


def test_a_problem_under_which_pixels_mean_nothing_leaves_it_to_headers(make, monkeypatch):
    assert make().source == "image"
    worst = PROBLEMS["gap"]._replace(severity=WORST)
    monkeypatch.setitem(PROBLEMS, "gap", worst)
    answer = make()
    assert answer.source == "header"
    assert answer.cause.startswith("not usable as an image: gap: a distance between neighbors")


BOTH = ("a", "b")


class Named(str):
    """A network that is no more than its name."""

    synthetic = False


def ensemble_of(
    monkeypatch, *, vertebra=(), member=None, folds=2, losses=None, missing=(), standing=()
) -> Ensemble:
    """An ensemble of two members whose networks are names; those of `vertebra` find no neck, those
    of `standing` see a single sagittal plane."""
    from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
    from cspine_kit.infer.chains import asking
    from cspine_kit.infer.chains import ensemble as module
    from cspine_kit.stack.fallback.imputer import Imputer
    from cspine_kit.vision.predict import Said

    def say(model, levels):
        if model in vertebra:
            return Said(None, StudyError(UID, f"{model}: no neck"), 0.0)
        if member is not None and model == member:
            return Said(None, StudyError(UID, f"{model} gave NaN"), 0.0)
        if levels is None:
            return Said(model, None, 0.0)
        rows = pd.DataFrame(0.5, range(2), [*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS])
        place = {"plane": "axial", "position": [0, 2], "slice_idx": [0, 2], "at_mm": [2.0, 0.0]}
        if model[0] in standing:
            rows = rows.head(1)
            place = {"plane": "sagittal", "position": [0], "slice_idx": pd.NA, "at_mm": [0.0]}
        scores = pd.DataFrame({"level": LEVELS, "fracture": 0.5}) if model[0] == "b" else None
        tables = {} if scores is None else {"oof_levels": scores}
        return Said(rows.assign(**place), None, 0.0, tables)

    def predict_all(models, studies, batch, *, views=(False,), stride=1):
        return [{n: say(model, levels) for n, model in models.items()} for _, levels in studies]

    def levels_of(source):
        ends = {"z_top_mm": 2.0, "z_bottom_mm": 0.0, "center_z_mm": 1.0}
        rows = pd.DataFrame({"level": LEVELS, "present": True, **ends, "confidence": 0.9})
        return rows.assign(source=source)

    monkeypatch.setattr(asking, "predict_all", predict_all)
    monkeypatch.setattr(module, "decode_study", levels_of)
    made = Ensemble.__new__(Ensemble)
    made.calibrations = dict.fromkeys(range(folds), PLAIN)
    made.config = SimpleNamespace(
        kernel=SimpleNamespace(batch_size=4, views_of=lambda fold: (False,)),
        folds=SimpleNamespace(n=folds),
        members={
            name: SimpleNamespace(plane="sagittal" if name in standing else "axial")
            for name in BOTH
        },
        stage={"vertebra": None},
    )
    made.models = {
        (name, k): Named(f"{name[0]}{k}")
        for name in ("vertebra", "a", "b")
        for k in range(folds)
        if f"{name[0]}{k}" not in missing
    }
    made.stack, made.faults, made._losses = None, {}, losses or {}
    made.imputer, made.extras = Imputer({}), None
    monkeypatch.setattr(
        made, "header_levels", lambda volume, folder: levels_of("headers"), raising=False
    )
    return made


def run_tables(made, effort):
    trace = Trace()
    slices, levels, _ = alone(made.tables(bare(), None, effort, trace), 4)
    top = levels[levels["level"] == "C1"]
    return slices.groupby(["model_fold", "member"]).size(), top, trace


def test_a_member_that_fails_in_one_fold_is_imputed_there(monkeypatch):
    made = ensemble_of(monkeypatch, member="b1")
    rows, _, trace = run_tables(made, Effort(1, 2, BOTH))
    assert rows.to_dict() == {(k, m): 2 for k in (0, 1) for m in BOTH}
    assert trace.faults == {"b fold 1": f"study {UID}: b1 gave NaN"}


def test_members_of_which_only_a_standing_one_speaks_leave_the_stack_all_its_columns(monkeypatch):
    made = ensemble_of(monkeypatch, standing=("b",), folds=1)

    def columns(effort):
        return set(aggregate(*alone(made.tables(bare(), None, effort, Trace()), 4)))

    whole = columns(Effort(1, 1, BOTH))
    assert {"all__study__slices", "all__site__step"} <= whole
    assert columns(Effort(1, 1, ("b",))) == whole
    del made.models["a", 0]
    assert columns(Effort(1, 1, BOTH)) == whole


def test_what_members_say_of_levels_stays_with_its_fold_and_is_not_imputed(monkeypatch):
    made = ensemble_of(monkeypatch, member="b1")
    scores = alone(made.tables(bare(), None, Effort(1, 2, BOTH), Trace()), 4)[2]
    own = scores.levels[["member", "model_fold", "fold"]]
    assert len(own) == 7 and own.drop_duplicates().values.tolist() == [["b", 0, -1]]
    assert scores.studies is None and scores.boxes is None


def test_a_fold_in_which_every_member_fails_is_left_out(monkeypatch):
    made = ensemble_of(monkeypatch, member="a1")
    rows, levels, trace = run_tables(made, Effort(1, 2, ("a",)))
    assert set(levels["model_fold"]) == {0} and list(trace.faults) == ["a fold 1"]
    assert rows.to_dict() == {(0, "a"): 2, (0, "b"): 2}


def test_after_a_failure_the_remaining_folds_are_tried(monkeypatch):
    made = ensemble_of(monkeypatch, member="a0", folds=3)
    _, levels, trace = run_tables(made, Effort(1, 2, ("a",)))
    assert levels["model_fold"].tolist() == [1, 2] and list(trace.faults) == ["a fold 0"]


def test_chains_are_kept_by_their_loss(monkeypatch):
    losses = {0: 0.5, 1: 0.3, 2: 0.4}
    made = ensemble_of(monkeypatch, folds=3, losses=losses)
    assert made.chains == [1, 2, 0]
    _, levels, _ = run_tables(made, Effort(1, 2, BOTH))
    assert levels["model_fold"].tolist() == [1, 2]


def test_no_fold_left_is_an_error_that_names_the_causes(monkeypatch):
    made = ensemble_of(monkeypatch, member="a0", missing=("a1", "b1"))
    with pytest.raises(StudyError, match="a0 gave NaN"):
        run_tables(made, Effort(1, 1, ("a",)))


def test_another_folds_levels_come_before_those_of_headers(monkeypatch):
    made = ensemble_of(monkeypatch, vertebra=("v0",))
    rows, levels, trace = run_tables(made, Effort(1, 2, BOTH))
    assert levels["source"].tolist() == ["v1", "v1"] and len(rows) == 4
    assert trace.levels_from == "image" and list(trace.faults) == ["vertebra fold 0"]


def test_even_the_levels_of_a_fold_that_time_gave_up_come_before_headers(monkeypatch):
    made = ensemble_of(monkeypatch, vertebra=("v0", "v1"), folds=3)
    _, levels, trace = run_tables(made, Effort(1, 1, BOTH))
    assert levels["source"].tolist() == ["v2"] and levels["model_fold"].tolist() == [0]
    assert trace.levels_from == "image"


def test_vertebra_models_that_all_fail_leave_the_levels_to_headers(monkeypatch):
    made = ensemble_of(monkeypatch, vertebra=("v0", "v1"))
    rows, levels, trace = run_tables(made, Effort(1, 2, BOTH))
    assert len(rows) == 4 and list(trace.faults) == ["vertebra fold 0", "vertebra fold 1"]
    assert levels["source"].tolist() == ["headers", "headers"]
    assert trace.levels_from == "header_levels"


def test_a_chain_without_its_vertebra_model_falls_out_unless_all_do(monkeypatch):
    made = ensemble_of(monkeypatch, folds=3, missing=("v1",))
    assert made.chains == [0, 2]
    made = ensemble_of(monkeypatch, missing=("v0", "v1"))
    assert made.chains == [0, 1]
    _, levels, trace = run_tables(made, Effort(1, 2, BOTH))
    assert levels["source"].tolist() == ["headers", "headers"]
    assert trace.levels_from == "header_levels"


def test_a_member_that_is_missing_in_one_fold_has_a_stand_in_there(monkeypatch):
    made = ensemble_of(monkeypatch, missing=("b1",))
    rows, _, trace = run_tables(made, Effort(1, 2, BOTH))
    assert rows.to_dict() == {(k, m): 2 for k in (0, 1) for m in BOTH} and not trace.faults


def test_members_that_time_gave_up_speak_where_the_kept_ones_are_missing(monkeypatch):
    made = ensemble_of(monkeypatch, missing=("a0",))
    rows, levels, _ = run_tables(made, Effort(1, 1, ("a",)))
    assert levels["model_fold"].tolist() == [0] and len(rows) == 2

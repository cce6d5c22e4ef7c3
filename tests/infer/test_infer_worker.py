"""Graded fallback: what each study is given when something under it gives way."""

import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import StudyError
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.infer import worker
from cspine_kit.infer.ensemble import Ensemble, Prediction
from cspine_kit.infer.governor import Costs, Effort, Governor
from cspine_kit.infer.reading import Reading
from cspine_kit.infer.worker import Worker, answers, header_answers

UID = "1.2.3"
EFFORT = Effort(1, 1, ("a",))


class FakeEnsemble:
    """Answers 0.3 from the image and 0.1 from headers; either may be told to fail."""

    def __init__(self, image=None, header=None, source="image"):
        self.stack = SimpleNamespace(ships="stack")
        self.headers = SimpleNamespace(predict=self._header)
        self.image, self.header, self.source = image, header, source
        self.efforts_asked = []

    def predict(self, volume, folder, effort):
        self.efforts_asked.append(effort)
        if self.image is not None:
            raise self.image
        rows = [(m, UID, t, p, -1) for m, p in (("stack", 0.3), ("mean", 0.9)) for t in TARGETS]
        table = pd.DataFrame(rows, columns=["model", "study_uid", "target", "prob", "fold"])
        faults = {} if self.source == "image" else {"vertebra fold 0": "no neck"}
        return Prediction(table, table, Costs(0, 0.1, {"a": 0.2}, 0.01), faults, self.source)

    def _header(self, geometry):
        if isinstance(self.header, Exception):
            raise self.header
        return dict.fromkeys(TARGETS, 0.1 if self.header is None else self.header)


@pytest.fixture(name="make")
def _make(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "read_geometry", lambda folder, uid: None)
    np.save(tmp_path / "v.npy", np.zeros((3, 4, 4), np.uint8))
    volume = Volume(UID, np.zeros(0), np.array([2.0, 1.0, 0.0]), (1, 1, 1), (0, 0), (1, 1))
    read = Reading(UID, 0.5, volume, tmp_path / "v.npy", ("gap",))

    def make(reading=read, deadline=100.0, **changes):
        ensemble = FakeEnsemble(**changes)
        governor = Governor([EFFORT], deadline_s=deadline, files=3, studies=1, clock=lambda: 0.0)
        fallbacks = header_answers(ensemble.headers, {UID: tmp_path}, wait_s=60.0)
        return Worker(ensemble, governor, {UID: tmp_path}, {UID: 3}, fallbacks).answer(reading)

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
def test_networks_that_fail_leave_it_to_headers(make, error):
    answer = make(image=error)
    assert answer.source == "header" and answer.probs["C7"] == 0.1 and answer.table is None
    assert str(error) in answer.cause


def test_pixels_that_cannot_be_read_leave_it_to_headers(make):
    answer = make(Reading(UID, 0.1, cause="the reading process died"))
    assert answer.source == "header" and "died" in answer.cause


def test_headers_that_fail_leave_the_priors(make):
    answer = make(image=ValueError("broken"), header=StudyError(UID, "no file can be read"))
    assert answer.source == "priors" and answer.probs is None
    assert "broken" in answer.cause and "no file can be read" in answer.cause


def test_a_header_probability_out_of_range_is_not_taken(make):
    answer = make(image=ValueError("broken"), header=float("nan"))
    assert answer.source == "priors" and "outside" in answer.cause


def test_no_time_is_a_cause(make):
    answer = make(deadline=-1.0)
    assert "no time" in answer.cause
    assert answer.source == "header" and answer.probs["C1"] == 0.1


def test_headers_that_hang_cost_only_the_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "read_geometry", lambda folder, uid: uid)
    hang = threading.Event()

    def predict(uid):
        if uid == "1.2":
            hang.wait()
        return dict.fromkeys(TARGETS, 0.1)

    folders = dict.fromkeys(["1.1", "1.2", "1.3"], tmp_path)
    found = header_answers(SimpleNamespace(predict=predict), folders, wait_s=0.3)
    hang.set()
    assert [a.source for a in found.values()] == ["header", "priors", "priors"]
    assert "0.3 s" in found["1.2"].cause and "0.3 s" in found["1.3"].because("no GPU").cause


def test_every_reading_gets_one_answer_from_some_device(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "read_geometry", lambda folder, uid: None)
    uids = [f"1.{i}" for i in range(20)]
    governor = Governor([EFFORT], deadline_s=1e9, files=60, studies=20)
    folders, files = dict.fromkeys(uids, tmp_path), dict.fromkeys(uids, 3)
    fallbacks = header_answers(FakeEnsemble().headers, folders, wait_s=60.0)
    workers = [Worker(FakeEnsemble(), governor, folders, files, fallbacks) for _ in range(2)]
    waiting = iter([Reading(uid, 0.1, cause="unread") for uid in uids])
    seen = [a.study_uid for a in answers(workers, waiting, len(uids))]
    assert sorted(seen) == sorted(uids)


def ensemble_of(monkeypatch, *, vertebra=None, member=None) -> Ensemble:
    """An ensemble of two folds and two members whose networks are functions."""
    from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
    from cspine_kit.infer import ensemble as module
    from cspine_kit.stack.fallback.imputer import Imputer

    levels = pd.DataFrame({"level": ["C1"], "z0": [0], "z1": [2]})

    def fracture(model, volume, crops, batch, *, views, stride):
        if member is not None and model == member:
            raise StudyError(UID, f"{model} gave NaN")
        rows = pd.DataFrame(0.5, range(2), [*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS])
        return rows.assign(slice_idx=[0, 2], z_mm=[2.0, 0.0])

    def predict_vertebra(model, volume, batch, *, stride):
        if vertebra is not None:
            raise StudyError(UID, vertebra)
        return pd.DataFrame()

    monkeypatch.setattr(module, "predict_fracture", fracture)
    monkeypatch.setattr(module, "predict_vertebra", predict_vertebra)
    monkeypatch.setattr(module, "decode_study", lambda rows, volume: levels)
    made = Ensemble.__new__(Ensemble)
    made.config = SimpleNamespace(kernel=SimpleNamespace(batch_size=4))
    made.vertebra = ["v0", "v1"]
    made.members = {"a": ["a0", "a1"], "b": ["b0", "b1"]}
    made.imputer = Imputer({})
    monkeypatch.setattr(made, "header_levels", lambda volume, folder: levels, raising=False)
    return made


def run_tables(made, effort):
    from cspine_kit.infer.ensemble import Trace

    trace = Trace()
    volume = Volume(UID, np.zeros(0), np.array([2.0, 1.0, 0.0]), (1, 1, 1), (0, 0), (1, 1))
    slices, crops = made.tables(volume, None, effort, trace)
    return slices.groupby(["model_fold", "member"]).size(), crops, trace.faults


def test_a_member_that_fails_in_one_fold_is_imputed_there(monkeypatch):
    made = ensemble_of(monkeypatch, member="b1")
    rows, _, faults = run_tables(made, Effort(1, 2, ("a", "b")))
    assert rows.to_dict() == {(k, m): 2 for k in (0, 1) for m in ("a", "b")}
    assert faults == {"b fold 1": f"study {UID}: b1 gave NaN"}


def test_a_fold_in_which_every_member_fails_is_left_out(monkeypatch):
    made = ensemble_of(monkeypatch, member="a1")
    rows, crops, faults = run_tables(made, Effort(1, 2, ("a",)))
    assert set(crops["model_fold"]) == {0} and list(faults) == ["a fold 1"]
    assert rows.to_dict() == {(0, "a"): 2, (0, "b"): 2}


def test_no_fold_left_is_an_error_that_names_the_causes(monkeypatch):
    made = ensemble_of(monkeypatch, member="a0")
    with pytest.raises(StudyError, match="a0 gave NaN"):
        run_tables(made, Effort(1, 1, ("a",)))


def test_vertebra_models_that_fail_leave_the_levels_to_headers(monkeypatch):
    made = ensemble_of(monkeypatch, vertebra="no neck")
    rows, _, faults = run_tables(made, Effort(1, 2, ("a", "b")))
    assert len(rows) == 4 and list(faults) == ["vertebra fold 0", "vertebra fold 1"]

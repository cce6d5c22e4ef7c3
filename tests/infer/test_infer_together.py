"""Studies asked together: each gets what it would get alone, and what fails costs its study."""

from dataclasses import replace

import pandas as pd
import pytest

from cspine_kit.core.errors import StudyError
from cspine_kit.data.volumes.read import read_both
from cspine_kit.data.volumes.volume import Volumes
from cspine_kit.infer.chains import asking
from cspine_kit.infer.chains.asking import Ask, alone, answered
from cspine_kit.infer.chains.ensemble import Ensemble
from cspine_kit.infer.chains.prediction import Question
from cspine_kit.infer.manifest import open_bundle
from cspine_kit.vision.predict import Said
from cspine_kit.vision.tasks.vertebra import VertebraTask


@pytest.fixture(scope="module", name="ensemble")
def _ensemble(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("together")
    return Ensemble(open_bundle(run / "oof" / "tiny" / "bundle", root), "cpu")


@pytest.fixture(scope="module", name="questions")
def _questions(run, ensemble):
    """Three studies of different heights."""
    found = []
    for folder in sorted((run / "competition" / "test_images").iterdir())[:3]:
        volumes, _ = read_both(folder, ensemble.config.volumes, folder.name)
        found.append(Question(volumes, folder, ensemble.efforts[0]))
    assert len({len(q.volumes.fine.z_mm) for q in found}) == len(found)
    return found


@pytest.fixture(scope="module", name="expected")
def _expected(ensemble, questions):
    return [ensemble.predict(q.volumes, q.folder, q.effort) for q in questions]


@pytest.fixture(name="asked")
def _asked(monkeypatch):
    """How many studies shared each question to networks."""
    real, counts = asking.predict_all, []

    def counted(models, studies, *arguments, **options):
        counts.append(len(studies))
        return real(models, studies, *arguments, **options)

    monkeypatch.setattr(asking, "predict_all", counted)
    return counts


def assert_same(found, expected):
    assert (found.faults, found.levels_from, found.chains) == ({}, "image", expected.chains)
    for name in ("slices", "levels", "table"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        pd.testing.assert_frame_equal(mine, theirs, rtol=1e-5, atol=1e-5)


def test_each_study_gets_the_rows_that_it_gets_alone(ensemble, questions, expected, asked):
    found = ensemble.predict_all(questions)
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)
        assert mine.costs.vertebra_s > 0 and mine.costs.members_s.keys() == set(
            ensemble.config.members
        )
    assert asked == [3, 3, 3], "levels of both folds, then the members of each"


def test_efforts_may_differ(ensemble, questions, expected, asked):
    least = replace(questions[1], effort=ensemble.efforts[-1])
    found = ensemble.predict_all([questions[0], least, questions[2]])
    assert_same(found[0], expected[0])
    assert_same(found[2], expected[2])
    assert found[1].chains == 1 and len(found[1].slices) < len(expected[1].slices)
    assert sorted(asked) == [1, 1, 2, 2, 2]


def test_a_study_without_levels_from_its_image_costs_itself(
    ensemble, questions, expected, monkeypatch
):
    real, bad = VertebraTask.view, questions[1].volumes.study_uid

    def blind(self, volume, *arguments):
        if volume.study_uid == bad:
            raise StudyError(bad, "nothing to see")
        return real(self, volume, *arguments)

    monkeypatch.setattr(VertebraTask, "view", blind)
    found = ensemble.predict_all(questions)
    assert_same(found[0], expected[0])
    assert_same(found[2], expected[2])
    assert found[1].levels_from == "header_levels"
    assert sorted(found[1].faults) == ["vertebra fold 0", "vertebra fold 1"]


class Torn:
    """Voxels that cannot be read."""

    def __init__(self, voxels):
        self.shape = voxels.shape

    def slices(self, *_):
        raise OSError("Input/output error")


def test_a_study_of_which_nothing_can_be_drawn_raises_and_costs_itself(
    ensemble, questions, expected
):
    volumes = questions[1].volumes
    parts = (volumes.coarse, volumes.fine)
    torn = Volumes(*(replace(part, voxels=Torn(part.voxels)) for part in parts))
    found = ensemble.predict_all([questions[0], replace(questions[1], volumes=torn), questions[2]])
    assert_same(found[0], expected[0])
    assert_same(found[2], expected[2])
    with pytest.raises(StudyError, match="Input/output error"):
        raise found[1]


# ---- how questions are put together --------------------------------------------------------------


@pytest.fixture(name="echo")
def _echo(monkeypatch):
    """Networks that say which study they were asked of; those named "dead" raise."""
    calls = []

    def predict_all(models, studies, batch_size, *, views, stride):
        calls.append([volume for volume, _ in studies])
        if "dead" in models:
            raise MemoryError("no thread can be started")
        return [{n: Said(f"{n} {volume}", None, 0.0) for n in models} for volume, _ in studies]

    monkeypatch.setattr(asking, "predict_all", predict_all)
    return calls


def asks(study, *names, stride=1):
    """A study that asks one network after the other, and notes what it is told."""
    told = []
    for name in names:
        try:
            said = yield Ask({name: name}, study, None, stride=stride)
            told.append(said[name].require())
        except MemoryError as error:
            told.append(str(error))
    if study == "bad":
        raise StudyError(study, "nothing is left")
    return told


def test_equal_questions_are_asked_once_for_all(echo):
    found = answered([asks("1", "a", "b"), asks("2", "a", "b"), asks("3", "b")], 4)
    assert found == [["a 1", "b 1"], ["a 2", "b 2"], ["b 3"]]
    assert echo == [["1", "2"], ["3"], ["1", "2"]]
    echo.clear()
    answered([asks("1", "a"), asks("2", "a", stride=2)], 4)
    assert echo == [["1"], ["2"]]


def test_what_a_question_raises_every_study_hears_and_goes_on(echo):
    found = answered([asks("1", "dead", "a"), asks("2", "dead", "a")], 4)
    assert found == [["no thread can be started", f"a {k}"] for k in "12"]


def test_a_study_that_raises_costs_itself(echo):
    found = answered([asks("1", "a"), asks("bad", "a"), asks("3")], 4)
    assert found[::2] == [["a 1"], []] and isinstance(found[1], StudyError)
    with pytest.raises(StudyError, match="nothing is left"):
        alone(asks("bad", "a"), 4)

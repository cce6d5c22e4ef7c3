"""Listing and headers: a folder that is broken or hangs costs itself, whatever the others do."""

import errno
import threading
import time
from types import SimpleNamespace

import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.paths import Competition
from cspine_kit.infer.patience import run_all, within
from cspine_kit.infer.studies import listing
from cspine_kit.infer.studies.listing import Survey

UIDS = [f"1.{i}" for i in range(40)]


@pytest.fixture(name="survey")
def _survey(tmp_path, monkeypatch):
    """Three files in every folder; `broken` maps a study to what listing it does."""
    broken = {}

    def list_files(folder):
        broken.get(folder.name, lambda: None)()
        return ["1.dcm", "2.dcm", "3.dcm"]

    monkeypatch.setattr(listing, "list_files", list_files)
    monkeypatch.setattr(listing, "read_geometry", lambda folder, uid: uid)

    def survey(headers=None, uids=UIDS, **changes):
        broken.update(changes.pop("broken", {}))
        model = SimpleNamespace(predict=headers or (lambda uid: dict.fromkeys(TARGETS, 0.1)))
        made = Survey(Competition(tmp_path), uids, model)
        made.look(**{"wait_s": 20.0, "patience_s": 0.3, **changes})
        return made

    return survey


def eio():
    raise OSError(errno.EIO, "Input/output error")


def test_every_study_is_listed_and_has_its_header_prediction(survey):
    found = survey()
    assert list(found.folders) == UIDS and set(found.files.values()) == {3}
    assert len(found.spoken) == len(UIDS) and not found.lost
    assert found.fallback("1.7").source == "header" and found.fallback("1.7").probs["C1"] == 0.1


def test_a_folder_with_an_input_output_error_costs_itself(survey):
    found = survey(broken={"1.3": eio})
    assert set(found.lost) == {"1.3"} and "Input/output error" in found.lost["1.3"]
    assert len(found.spoken) == len(UIDS) - 1 and "1.3" not in found.folders
    assert found.fallback("1.3").source == "priors"


def test_an_id_that_is_no_uid_is_refused_as_a_path(survey):
    found = survey(uids=["1.2", "../etc"])
    assert list(found.folders) == ["1.2"] and "refused as a path" in found.lost["../etc"]


def test_more_folders_that_hang_than_there_are_threads_cost_only_themselves(survey):
    hang = threading.Event()
    start = time.monotonic()
    found = survey(broken={f"1.{i}": hang.wait for i in range(20)})
    assert time.monotonic() - start < 8.0
    assert len(found.spoken) == 20
    late = list(found.folders)[20:]
    assert sorted(late) == sorted(f"1.{i}" for i in range(20)), "they are tried again, last"
    assert found.files["1.5"] == 3 and "in time" in found.fallback("1.5").cause
    hang.set()


def test_what_comes_late_is_taken_when_it_comes(survey):
    hang = threading.Event()
    found = survey(broken={"1.0": hang.wait})
    assert found.fallback("1.0").source == "priors"
    hang.set()
    deadline = time.monotonic() + 10.0
    while found.fallback("1.0").source == "priors" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found.fallback("1.0").source == "header"


def test_headers_that_hang_cost_only_the_wait(survey):
    hang = threading.Event()

    def predict(uid):
        if uid == "1.2":
            hang.wait()
        return dict.fromkeys(TARGETS, 0.1)

    found = survey(predict)
    assert [uid for uid in UIDS if found.fallback(uid).source == "priors"] == ["1.2"]
    assert found.fallback("1.2").because("no GPU").cause == "no GPU; headers: its headers were late"
    hang.set()


@pytest.mark.parametrize("value", [float("nan"), 0.0, 1.5])
def test_a_header_probability_out_of_range_is_not_taken(survey, value):
    found = survey(lambda uid: dict.fromkeys(TARGETS, value))
    assert not found.spoken and "outside (0, 1)" in found.fallback("1.1").cause


def test_the_limit_of_the_whole_pass_holds(survey):
    start = time.monotonic()
    found = survey(lambda uid: time.sleep(0.2), wait_s=0.3)
    assert time.monotonic() - start < 2.0 and list(found.folders)


def test_calls_beyond_their_time_do_not_hold_up_the_caller():
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        within(0.1, threading.Event().wait)
    assert within(5.0, max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 / 0)
    done = []
    assert run_all(done.append, UIDS, threads=3, wait_s=5.0, patience_s=5.0) == []
    assert sorted(done) == sorted(UIDS)


def test_however_many_hang_the_others_are_done():
    """More of them than threads, and than there is patience for one after the other."""
    hanging, done, never = [f"hangs {k}" for k in range(9)], [], threading.Event()

    def work(name):
        if name in hanging:
            never.wait(20.0)
        done.append(name)

    start = time.monotonic()
    late = run_all(work, [*hanging, *UIDS], threads=2, wait_s=6.0, patience_s=3.0, relief_s=0.05)
    assert late == hanging and sorted(done) == sorted(UIDS)
    assert time.monotonic() - start < 5.5
    never.set()

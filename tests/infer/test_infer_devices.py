"""Devices that fail, hang or never load: each study is answered once, in time, by whom is left."""

import threading
import time
from dataclasses import replace

import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import ArtifactError, StudyError
from cspine_kit.infer.answer import Answer
from cspine_kit.infer.chains.governor import Effort, Governor
from cspine_kit.infer.patience import Patience
from cspine_kit.infer.studies.devices import Devices
from cspine_kit.infer.studies.reading import Reading

EFFORT = Effort(1, 1, ("a",))
FAST = Patience(load_s=0.4, network_s=0.4)


class Readings:
    """Readings that are all there, given out one by one."""

    def __init__(self, uids, tick_s=0.002):
        self.waiting, self.stopped, self.tick_s = list(uids), False, tick_s
        self.lock = threading.Lock()

    def take(self, timeout_s):
        with self.lock:
            if self.waiting and not self.stopped:
                return Reading(self.waiting.pop(0), 0.0)
        time.sleep(self.tick_s)
        return None

    def stop(self):
        self.stopped = True


class Studies:
    """Headers say 0.1 about everything."""

    def __init__(self, uids):
        self.files = dict.fromkeys(uids, 1)

    def fallback(self, uid):
        return Answer(uid, "header", probs=pd.Series(dict.fromkeys(TARGETS, 0.1)))


class FakeWorker:
    """A device whose networks answer, fail or hang, as told by `does` (uid -> what happens)."""

    def __init__(self, name, does, check):
        self.name, self.does, self._check = name, does, check

    def answers(self, readings):
        uids = [reading.study_uid for reading in readings]
        return [self.answer(uid, {"device": self.name, "together": uids}) for uid in uids]

    def answer(self, uid, details):
        try:
            return Answer(uid, "image", faults=self.does(uid) or {}, details=details)
        except Exception as error:  # noqa: BLE001 - as a worker does
            return error

    def check(self):
        self._check()


def fine(*_):
    return None


def fails(*_):
    raise RuntimeError("CUDA error: device-side assert triggered")


def hangs(*_):
    threading.Event().wait()


def unloadable():
    raise ArtifactError("CUDA error: no kernel image is available for execution on the device")


@pytest.fixture(name="answer_all")
def _answer_all():
    """Runs a pool of fake devices {name: (what answering does, what checking does, load)}."""

    def run(count, devices, *, spares=("cpu",), hours_s=60.0, patience=FAST, **options):
        uids = [f"1.{i}" for i in range(count)]
        deadline = time.monotonic() + hours_s
        governor = Governor([EFFORT], deadline_s=deadline, files=count, studies=count, networks=2)
        notes = []

        def build(name):
            does, check, load = (*devices.get(name, (fine,)), fine, fine)[:3]
            load()
            return FakeWorker(name, does, check)

        readings = Readings(uids)
        pool = Devices(
            [name for name in devices if name != "cpu" or len(devices) == 1],
            *(build, readings, governor, Studies(uids)),
            spares=spares,
            patience=patience,
            note=lambda event, **details: notes.append((event, details)),
            **options,
        )
        start = time.monotonic()
        found = list(pool.answers(uids))
        assert readings.stopped
        assert sorted(a.study_uid for a in found) == sorted(uids), "one answer for each study"
        seconds = time.monotonic() - start
        return {a.study_uid: a for a in found}, notes, seconds, governor

    return run


def by_headers(found):
    return [a for a in found.values() if a.source == "header"]


def lost(notes):
    return {
        details["device"]: details["cause"] for event, details in notes if event == "device_lost"
    }


def test_sound_devices_share_the_studies(answer_all):
    slow = (lambda uid: time.sleep(0.01),)
    found, notes, _, _ = answer_all(60, {"gpu0": slow, "gpu1": slow})
    assert not by_headers(found) and not lost(notes)
    assert {a.details["device"] for a in found.values()} == {"gpu0", "gpu1"}


def test_a_proof_waits_for_the_last_device(answer_all):
    late = lambda: time.sleep(0.2)  # noqa: E731
    devices = {"gpu0": (fine,), "gpu1": (fine, fine, late)}
    assert [e for e, _ in answer_all(5, devices)[1]].count("device_ready") == 1
    assert [e for e, _ in answer_all(5, devices, every_one=True)[1]].count("device_ready") == 2
    broken = {"gpu0": (fine,), "gpu1": (fine, fine, unloadable)}
    found, notes, _, _ = answer_all(5, broken, every_one=True)
    assert not by_headers(found) and "no kernel image" in lost(notes)["gpu1"]


def test_a_device_with_a_sticky_error_is_retired_and_costs_no_study(answer_all):
    found, notes, _, governor = answer_all(60, {"gpu0": (fails, fails), "gpu1": (fine,)})
    assert not by_headers(found)
    assert list(lost(notes)) == ["gpu0"] and governor.networks == 1
    assert {a.details["device"] for a in found.values()} == {"gpu1"}


def test_a_device_that_passes_its_check_but_fails_studies_is_retired_after_two(answer_all):
    asked = []

    def fails_all(uid):
        asked.append(uid)
        fails()

    slow = lambda uid: time.sleep(0.005)  # noqa: E731
    found, notes, _, _ = answer_all(60, {"gpu0": (fails_all, fine), "gpu1": (slow,)})
    assert not by_headers(found)
    assert "2 studies in a row failed that gpu1 could answer" in lost(notes)["gpu0"]


def test_a_study_that_fails_everywhere_retires_no_device(answer_all):
    def bad(uid):
        if uid in ("1.3", "1.4", "1.5"):
            raise StudyError(uid, "the networks gave NaN")

    found, notes, _, _ = answer_all(60, {"gpu0": (bad,), "gpu1": (bad,)})
    assert sorted(a.study_uid for a in by_headers(found)) == ["1.3", "1.4", "1.5"]
    assert "NaN" in found["1.3"].cause and not lost(notes)


def test_what_one_device_answers_in_part_another_may_answer_whole(answer_all):
    def partly(uid):
        time.sleep(0.002)
        return {"a fold 0": "CUDA error"} if uid in ("1.3", "1.30") else {}

    found, notes, _, _ = answer_all(60, {"gpu0": (partly,), "gpu1": (lambda uid: None,)})
    assert not any(a.faults for a in found.values()) and not by_headers(found)
    assert not lost(notes)


def test_a_device_that_breaks_within_a_study_does_not_keep_its_part(answer_all):
    broken = []

    def breaks(uid):
        broken.append(uid)
        return {"a fold 1": "CUDA error"}

    def check():
        if broken:
            fails()

    slow = lambda uid: time.sleep(0.005)  # noqa: E731
    found, notes, _, _ = answer_all(30, {"gpu0": (breaks, check), "gpu1": (slow,)})
    assert not any(a.faults for a in found.values())
    assert list(lost(notes)) == ["gpu0"] and len(broken) == 1
    alone, _, _, _ = answer_all(5, {"gpu0": (breaks, check), "cpu": (fine, fine, unloadable)})
    assert sum(bool(a.faults) for a in alone.values()) == 1, "better a part than headers"


def test_studies_that_miss_as_much_everywhere_are_not_all_asked_twice(answer_all):
    asked = []

    def no_neck(uid):
        asked.append(uid)
        time.sleep(0.005)
        return {"vertebra fold 0": "no neck"}

    found, notes, _, governor = answer_all(60, {"gpu0": (no_neck,), "gpu1": (no_neck,)})
    assert all(a.faults for a in found.values()) and not lost(notes)
    assert 60 < len(asked) < 75
    assert governor.studies == len(asked), "what is asked again counts as left again"


def test_one_device_that_does_not_load_leaves_the_other(answer_all):
    found, notes, _, _ = answer_all(20, {"gpu0": (fine, fine, unloadable), "gpu1": (fine,)})
    assert not by_headers(found) and "no kernel image" in lost(notes)["gpu0"]


def test_a_device_that_hangs_while_loading_leaves_the_other(answer_all):
    slow = lambda uid: time.sleep(0.05)  # noqa: E731
    found, notes, _, _ = answer_all(20, {"gpu0": (fine, fine, hangs), "gpu1": (slow,)})
    assert not by_headers(found) and "hangs" in lost(notes)["gpu0"]


def test_a_forward_pass_that_hangs_costs_its_device_and_no_study(answer_all):
    def hangs_once(uid, seen=[]):  # noqa: B006 - remembers between calls
        if not seen:
            seen.append(uid)
            hangs()

    found, notes, seconds, _ = answer_all(30, {"gpu0": (hangs_once,), "gpu1": (fine,)})
    assert not by_headers(found) and "hangs" in lost(notes)["gpu0"] and seconds < 5.0


def test_a_study_that_hangs_everything_comes_last(answer_all):
    def deadly(uid):
        if uid == "1.0":
            hangs()

    devices = {"gpu0": (deadly,), "gpu1": (deadly,), "cpu": (deadly,)}
    found, _, seconds, _ = answer_all(40, devices, spares=(), hours_s=20.0)
    assert [a.study_uid for a in by_headers(found)] == ["1.0"] and seconds < 10.0


def test_with_no_device_left_a_spare_takes_over(answer_all):
    devices = {"gpu0": (fails, fails), "gpu1": (fine, fine, unloadable), "cpu": (fine,)}
    found, notes, _, _ = answer_all(20, devices)
    assert not by_headers(found)
    assert {a.details["device"] for a in found.values()} == {"cpu"}
    assert ("device_spare", {"device": "cpu"}) in notes


def test_with_nothing_left_headers_answer_at_once(answer_all):
    devices = {"gpu0": (fails, fails), "cpu": (fine, fine, unloadable)}
    found, _, seconds, _ = answer_all(20, devices)
    assert len(by_headers(found)) == 20 and seconds < 5.0
    assert "no device is left: gpu0" in found["1.7"].cause


def test_the_deadline_ends_everything_whatever_hangs(answer_all):
    patient = replace(FAST, network_s=60.0)
    devices = {"gpu0": (hangs,), "gpu1": (hangs,)}
    found, _, seconds, _ = answer_all(20, devices, hours_s=0.5, patience=patient)
    assert len(by_headers(found)) == 20 and seconds < 2.0
    assert "no time" in found["1.19"].cause


def test_a_check_that_hangs_is_a_hang(answer_all):
    found, notes, seconds, _ = answer_all(20, {"gpu0": (fails, hangs), "gpu1": (fine,)})
    assert not by_headers(found) and "hangs" in lost(notes)["gpu0"] and seconds < 5.0


def together(found):
    """The groups of studies that were asked together."""
    return sorted({tuple(a.details["together"]) for a in found.values()}, key=len)


def test_a_device_takes_what_lies_read_up_to_a_few_and_the_cpu_one(answer_all):
    found, notes, _, _ = answer_all(20, {"gpu0": (fine,)}, at_once=4)
    assert not by_headers(found) and not lost(notes)
    assert [len(group) for group in together(found)] == [4] * 5
    found, _, _, _ = answer_all(6, {"cpu": (fine,)}, at_once=4)
    assert [len(group) for group in together(found)] == [1] * 6


def test_a_study_that_fails_costs_no_other_of_its_group_and_is_asked_alone_elsewhere(answer_all):
    def bad(uid):
        time.sleep(0.002)
        if uid == "1.1":
            raise StudyError(uid, "the networks gave NaN")

    slow = (fine, fine, lambda: time.sleep(0.1))
    found, notes, _, governor = answer_all(12, {"gpu0": (bad,), "gpu1": slow}, at_once=4)
    assert not by_headers(found) and not lost(notes)
    assert found["1.1"].details == {"device": "gpu1", "together": ["1.1"]}
    assert found["1.0"].details == {"device": "gpu0", "together": ["1.0", "1.1", "1.2", "1.3"]}
    assert governor.studies == 12 + 1, "what is asked again counts as left again"


def test_a_device_that_breaks_gives_its_unanswered_studies_to_another(answer_all):
    broken = []

    def breaks(uid):
        if uid == "1.2" or broken:
            broken.append(uid)
            fails()

    def check():
        if broken:
            fails()

    slow = (fine, fine, lambda: time.sleep(0.1))
    devices = {"gpu0": (breaks, check), "gpu1": slow}
    found, notes, _, governor = answer_all(8, devices, at_once=4)
    assert not by_headers(found) and list(lost(notes)) == ["gpu0"]
    assert broken == ["1.2", "1.3"] and governor.studies == 8 + 2
    devices = [found[f"1.{k}"].details["device"] for k in range(4)]
    assert devices == ["gpu0", "gpu0", "gpu1", "gpu1"]


def test_a_group_that_hangs_goes_last_and_alone(answer_all):
    """One study hangs every GPU: the others of its group are answered, whoever was with it."""
    asked = []

    def deadly(uid):
        asked.append(uid)
        if uid == "1.1":
            hangs()

    devices = {f"gpu{k}": (deadly,) for k in range(3)}
    found, notes, seconds, _ = answer_all(20, devices, spares=(), hours_s=20.0, at_once=4)
    assert [a.study_uid for a in by_headers(found)] == ["1.1"] and seconds < 15.0
    assert len(lost(notes)) == 3
    for uid in ("1.0", "1.2", "1.3"):
        assert found[uid].details["together"] == [uid]
    assert set(asked[:17]).isdisjoint({"1.2", "1.3"}), "after all others"


def test_patience_grows_with_the_studies_that_are_asked_together(answer_all):
    slow = lambda uid: time.sleep(0.25)  # noqa: E731 - a second for four, of 0.4 s for one
    found, notes, _, _ = answer_all(8, {"gpu0": (slow,)}, at_once=4)
    assert not by_headers(found) and not lost(notes)


def test_a_study_that_its_hanging_device_answers_after_all_is_asked_no_more(answer_all):
    asked = []

    def slow(uid):
        asked.append(uid)
        time.sleep(1.8 if uid == "1.0" else 0.3)

    patience = replace(FAST, network_s=1.0)
    devices = {"gpu0": (slow,), "cpu": (slow,)}
    found, notes, _, _ = answer_all(8, devices, patience=patience)
    assert not by_headers(found) and "hangs" in lost(notes)["gpu0"]
    assert found["1.0"].details["device"] == "gpu0" and sorted(asked) == sorted(found)

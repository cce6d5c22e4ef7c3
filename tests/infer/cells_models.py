"""Faults of bundle files, loading, networks and stack: a file costs its fold or member, a device
itself, and no study falls to its headers for it.

In: a `Ground`. Out: a `Count`. Example: `CELLS["networks", "dies"](ground)`.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from cells_studies import BEHAVIOUR
from faults import (
    QUICK,
    Count,
    Ground,
    altogether,
    count_one,
    count_rows,
    count_sources,
    patience_with,
    run_here,
    uids,
)
from safetensors.torch import load_file, save_file

from cspine_kit.core.runs import file_hash, read_json, write_json
from cspine_kit.infer import manifest
from cspine_kit.infer.chains import ensemble, loaded
from cspine_kit.infer.chains.asking import Asking
from cspine_kit.infer.manifest import COPY, MANIFEST
from cspine_kit.stack.model.stack import Stack
from cspine_kit.vision import predict
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.nets.store import load_model

FEW, MANY = 2, 8
SMALL_BATCH = 4
GPUS = ("gpu0", "gpu1")
STICKY = "CUDA error: an illegal memory access was encountered"


# ---- files of the bundle -------------------------------------------------------------------------


def bundle_files(ground: Ground) -> list[str]:
    """Names of the files that the kernel itself reads (wheels are the script's)."""
    names = (path.name for path in sorted(ground.bundle.iterdir()))
    others = ("dataset-metadata.json", "proof.pack")
    return [name for name in names if ".whl" not in name and name not in others]


def _each_file(
    ground: Ground, kind: str, harm: Callable[[Path], object], limit: int | None
) -> Count:
    """Harm one file at a time; networks must answer, and the log must say what is wrong."""
    competition = ground.competition(f"bundle_{kind}", FEW)
    counts = []
    for name in bundle_files(ground)[:limit]:
        bundle = ground.bundle_copy("harmed_bundle")
        harm(bundle / name)
        result = run_here(ground, competition, bundle)
        count = count_sources(f"{kind}: {name}", 1, result, uids(FEW))
        told = [e for e in result.events.others if e["event"] == "fault"]
        if not told and not name.endswith(COPY):
            count.lost, count.remark = count.lost + 1, f"the log is silent about {name}"
        counts.append(count)
    return altogether(f"a bundle file {kind}", counts)


def flip(path: Path) -> None:
    """One wrong bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def bundle_damaged(ground: Ground, limit: int | None = None) -> Count:
    """One bit of one file at a time."""
    return _each_file(ground, "damaged", flip, limit)


def bundle_missing(ground: Ground, limit: int | None = None) -> Count:
    """One file at a time."""
    return _each_file(ground, "missing", Path.unlink, limit)


def _bundle(kind: str) -> Callable[[Ground], Count]:
    def cell(ground: Ground) -> Count:
        """One file of every member and of the stack cannot be read."""
        competition = ground.competition(f"bundle_{kind}", FEW)
        real, hit = manifest.file_hash, []

        def faulty(path: Path) -> str:
            if "fold_0" in path.name and "model" in path.name:
                hit.append(path.name)
                BEHAVIOUR[kind]()
            return real(path)

        with mock.patch.object(manifest, "file_hash", faulty):
            result = run_here(ground, competition, patience=patience_with("bundle", kind))
        return count_sources(f"reading bundle files {kind}", len(hit), result, uids(FEW))

    return cell


# ---- loading and networks ------------------------------------------------------------------------


def changed_bundle(
    ground: Ground, name: str, wanted: str, change: Callable[[Path], object]
) -> Path:
    """A bundle whose files with `wanted` in their name are changed under a right hash."""
    bundle = ground.bundle_copy(name)
    listed = read_json(bundle / MANIFEST)
    for file in [n for n in listed["files"] if wanted in n]:
        change(bundle / file)
        if (bundle / file).exists():
            listed["files"][file]["sha256"] = file_hash(bundle / file)
        else:
            del listed["files"][file]
    for place in (MANIFEST, MANIFEST + COPY):
        write_json(bundle / place, listed)
    return bundle


def _changed(fault: str, wanted: str, change: Callable[[Path], object]) -> Callable[..., Count]:
    def cell(ground: Ground) -> Count:
        name = fault.replace(" ", "_").replace(":", "")
        bundle = changed_bundle(ground, name, wanted, change)
        result = run_here(ground, ground.competition(f"on_{name}", FEW), bundle)
        return count_sources(fault, 1, result, uids(FEW))

    return cell


def poison(path: Path) -> None:
    """NaN in the first weight."""
    state = {key: value.clone() for key, value in load_file(path).items()}
    next(v for v in state.values() if v.is_floating_point()).view(-1)[0] = float("nan")
    save_file(state, path)


def rename_architecture(path: Path) -> None:
    """A model.json that asks for a network from a hub."""
    value = read_json(path)
    value["config"]["backbone"] = "hf-hub:someone/something"
    write_json(path, value)


def cut_json(path: Path) -> None:
    """Half of a JSON file."""
    path.write_text(json.dumps(read_json(path))[:200])


@contextmanager
def two_devices(
    forward: Callable[[str], object] = lambda device: None,
    load: Callable[[str], object] = lambda device: None,
) -> Iterator[None]:
    """Two devices that are the CPU; `forward` and `load` may fail or hang on one of them."""

    def load_on(device: str, folder: Path) -> Network:
        load(device)
        model = load_model(folder)
        model.test_device = device
        return model

    def hook(module: torch.nn.Module, _: tuple) -> None:
        if isinstance(module, Network):
            forward(module.test_device)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        with (
            mock.patch.object(predict, "devices", lambda: list(GPUS)),
            mock.patch.object(loaded, "_load_on", load_on),
        ):
            yield
    finally:
        handle.remove()


class Failing:
    """What befalls gpu0 from its `after`-th call on; `once`: only then."""

    def __init__(self, act: Callable[[], object], after: int = 0, *, once: bool = False) -> None:
        self.act, self.after, self.once = act, after, once
        self.calls, self.hits, self.lock = 0, 0, threading.Lock()

    def __call__(self, device: str) -> None:
        if device != "gpu0":
            return
        with self.lock:
            self.calls += 1
            due = self.calls == self.after + 1 if self.once else self.calls > self.after
            self.hits += due
        if due:
            self.act()


def sticky() -> None:
    """What a GPU says to every call after an illegal access."""
    raise RuntimeError(STICKY)


def _devices(
    fault: str, hanging: str = "", **faults_of: Callable[[], Failing]
) -> Callable[[Ground], Count]:
    def cell(ground: Ground) -> Count:
        """No study may lose its rows to a device that another one can stand in for."""
        competition = ground.competition(fault.replace(" ", "_").replace(":", ""), MANY)
        failing = {name: make() for name, make in faults_of.items()}
        with two_devices(**failing):
            result = run_here(ground, competition, patience=QUICK.get(hanging))
        tried = sum(f.hits > 0 for f in failing.values())
        return count_rows(fault, tried, ground, result, uids(MANY))

    return cell


CHECKED = 8
"""Calls that the check at the start makes: two folds of a vertebra model and three members."""


@contextmanager
def out_of_memory(backbone: str, fails: Callable[[int], bool]) -> Iterator[list[int]]:
    """Networks of one backbone raise torch's own error for the batches that `fails` names."""
    raised: list[int] = []

    def hook(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, Network) and module.config.backbone == backbone:
            size = len(inputs[0])
            if fails(size):
                raised.append(size)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield raised
    finally:
        handle.remove()


def memory_runs_out(ground: Ground, count: int = 3) -> Count:
    """Batches over a few slices do not fit: the batch halves and no study loses anything."""
    competition = ground.competition("memory", count)
    with out_of_memory("test_resnet", lambda size: size > SMALL_BATCH) as raised:
        result = run_here(ground, competition)
    lost = ground.differing(result, uids(count), tolerance=1e-5)
    return count_one("a batch without memory halves", len(raised), result, lost)


def memory_never_there(ground: Ground, count: int = 3) -> Count:
    """A member that fits in no batch size: the others go on."""
    competition = ground.competition("no_memory", count)
    with out_of_memory("test_efficientnet", lambda size: True) as raised:
        result = run_here(ground, competition)
    return count_sources("a member without memory", len(raised), result, uids(count))


def no_neck(ground: Ground) -> Count:
    """The vertebra model of one fold finds no neck: the other fold's levels are taken."""
    competition = ground.competition("no_neck", FEW)
    real, hit = ensemble.Ensemble.levels, []

    def levels(self: ensemble.Ensemble, volume: object, folds: list[int], *how: object) -> Asking:
        found = yield from real(self, volume, folds, *how)
        if 0 in found:
            hit.append(0)
            found[0] = ValueError("no slice shows a cervical level")
        return found

    with mock.patch.object(ensemble.Ensemble, "levels", levels):
        result = run_here(ground, competition)
    return count_sources("no neck for one fold", len(hit), result, uids(FEW))


# ---- the stack -----------------------------------------------------------------------------------


def _stack(kind: str) -> Callable[[Ground], Count]:
    def cell(ground: Ground) -> Count:
        """Predicting fails once, on one of two devices: the other one answers."""
        competition = ground.competition(f"stack_{kind}", MANY)
        real, hit, lock = Stack.predict_all, [], threading.Lock()

        def faulty(self: Stack, features: object) -> object:
            with lock:
                first = not hit
                hit.append(1)
            if first:
                BEHAVIOUR[kind]()
            return real(self, features)

        with two_devices(), mock.patch.object(Stack, "predict_all", faulty):
            result = run_here(ground, competition, patience=patience_with("stack", kind))
        return count_rows(f"the stack {kind}", min(len(hit), 1), ground, result, uids(MANY))

    return cell


CELLS: dict[tuple[str, str], Callable[[Ground], Count]] = {
    ("bundle", "damaged"): bundle_damaged,
    ("bundle", "missing"): bundle_missing,
    **{("bundle", kind): _bundle(kind) for kind in ("error", "hangs", "no room")},
    ("loading", "damaged"): _changed(
        "an architecture of no registry", "efficientnet__fold_0__model", rename_architecture
    ),
    ("loading", "missing"): _changed("a member in no fold", "models__efficientnet", Path.unlink),
    ("loading", "error"): _devices("a build for no such GPU", load=lambda: Failing(sticky)),
    ("loading", "hangs"): _devices(
        "loading hangs", "loading", load=lambda: Failing(BEHAVIOUR["hangs"])
    ),
    ("loading", "no room"): memory_never_there,
    ("networks", "damaged"): _changed("NaN from a member", "efficientnet__fold_0__w", poison),
    ("networks", "missing"): no_neck,
    ("networks", "error"): _devices(
        "one pass fails", forward=lambda: Failing(sticky, CHECKED, once=True)
    ),
    ("networks", "hangs"): _devices(
        "a pass hangs", "networks", forward=lambda: Failing(BEHAVIOUR["hangs"], CHECKED, once=True)
    ),
    ("networks", "dies"): _devices("a GPU dies", forward=lambda: Failing(sticky, CHECKED + 3)),
    ("networks", "no room"): memory_runs_out,
    ("stack", "damaged"): _changed("half a stack.json", "stack__models__stack.json", cut_json),
    ("stack", "missing"): _changed("a fold's boosters", "stack__models__fold_0", Path.unlink),
    **{("stack", kind): _stack(kind) for kind in ("error", "hangs", "no room")},
}

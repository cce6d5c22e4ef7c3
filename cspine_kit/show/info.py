"""What exists, what is stale and what comes next, from file names and times; the machine's speed.

In: a config. Out: a JSON-ready dict or a table. Example::

    print(render(describe(Path("configs/demo.yaml"), Path("oof"), Path("submissions"))))

Answers within a second or two, most of which measures the machine: reads no table and imports
neither pandas nor torch.
"""

from pathlib import Path
from typing import Any

import yaml

from cspine_kit import __version__
from cspine_kit.core.config import Config, load_config
from cspine_kit.core.execution import measure_gflops, usable_cores
from cspine_kit.core.failures import gather, summary
from cspine_kit.core.paths import RESULTS, SUBMISSION, Competition, RunPaths
from cspine_kit.core.resolved import STAGES, changed
from cspine_kit.vision.names import WEIGHTS_FILE


def _state(files: list[Path], newer_than: float) -> tuple[str, float]:
    """("done" / "partly" / "missing" / "stale", time of the newest file)."""
    present = [file for file in files if file.exists()]
    if not present:
        return "missing", newer_than
    newest = max(file.stat().st_mtime for file in present)
    if len(present) < len(files):
        return f"partly ({len(present)} of {len(files)})", newest
    return ("stale" if newest < newer_than else "done"), newest


def _other_bundle(config: Config, paths: RunPaths) -> bool:
    """True where the bundle travels with other settings than the config's.

    `exclude` and `folds` say what models were made from, which is asked of the run folder.
    """
    path = paths.bundle / "config.yaml"
    if not path.exists():
        return False
    shipped, own = yaml.safe_load(path.read_text()), config.model_dump(mode="json")
    return any(shipped.get(key) != own[key] for key in own if key not in ("exclude", "folds"))


def describe(config_file: Path, oof_root: Path, submissions: Path) -> dict[str, Any]:
    """State of every stage of a config, the next command, and the machine's cores and GFLOP/s.

    A stage is stale where it is older than the stage before it, or made from another config.
    """
    config = load_config(config_file)
    paths = RunPaths(oof_root / config.name)
    competition = Competition(config.competition.dir)
    folds = range(config.folds.n)
    make = f"CONFIG={config_file}"
    submission = submissions / config.name / SUBMISSION

    def trained(name: str) -> tuple[str, str, list[Path]]:
        return name, f"make oof {make}", [paths.model(name, k) / WEIGHTS_FILE for k in folds]

    stages: list[tuple[str, str, list[Path]]] = [
        ("competition", f"make oof {make}", [competition.train_csv]),
        ("index", f"make oof {make}", [paths.table("slices"), paths.table("studies")]),
        ("folds", f"make oof {make}", [paths.folds]),
        ("coarse", f"make oof {make}", [paths.table("coarse")]),
        *map(trained, (name for name in config.trained if name not in config.fracture)),
        ("fine", f"make oof {make}", [paths.table("fine")]),
        *map(trained, config.fracture),
        ("oof", f"make oof {make}", [paths.table("oof_slices")]),
        ("stack", f"make stack {make}", [paths.stack / "scores.csv"]),
        ("bundle", f"make kernel {make}", [paths.bundle / "manifest.json"]),
        ("submission", f"cspine kernel --config {config_file}", [submission]),
        ("results", f"make score {make}", [submission.with_name(RESULTS)]),
    ]
    older = {stage: changed(config, paths, stage) for stage in STAGES}
    outdated: dict[str, bool] = {stage: bool(parts) for stage, parts in older.items()}
    outdated["bundle"] = _other_bundle(config, paths)
    state: dict[str, Any] = {
        "kit": __version__,
        "config": str(config_file),
        "config_changed": any(older.values()),
        "machine": {"cores": usable_cores(), "gflops": round(measure_gflops(), 1)},
        "changed_parts": [part for parts in older.values() for part in parts],
        "stages": {},
        "left_out": summary(gather(paths, config.trained, config.folds.n)),
        "next": None,
    }
    newest = 0.0
    for name, command, files in stages:
        status, time = _state(files, newest)
        if status == "done" and outdated.get(name):
            status = "stale"
        if name not in ("folds", *config.trained):
            newest = max(newest, time)
        state["stages"][name] = {"state": status, "path": str(files[0])}
        if state["next"] is None and status != "done":
            state["next"] = command
    return state


def render(state: dict[str, Any]) -> str:
    """`describe`'s answer as a small table."""
    machine = state["machine"]
    lines = [
        f"cspine_kit {state['kit']}, {state['config']}; {machine['cores']} cores, "
        f"{machine['gflops']:.0f} GFLOP/s (2048 x 2048 float32 product, just now)"
    ]
    if state["config_changed"]:
        parts = ", ".join(state["changed_parts"])
        lines.append(
            f"the config changed since its last run, or that run did not end ({parts}): "
            "what depends on it will be redone"
        )
    for name, stage in state["stages"].items():
        lines.append(f"  {name:14s} {stage['state']:16s} {stage['path']}")
    if state["left_out"]:
        lines.append(state["left_out"])
    lines.append(f"next: {state['next'] or 'nothing, all done'}")
    return "\n".join(lines)

"""What exists, what is stale and what comes next, from file names and times alone.

In: a config. Out: a JSON-ready dict or a table. Example: `render(describe(path, oof, out))`.

Answers in well under half a second: reads no table and imports neither pandas nor torch.
"""

from pathlib import Path
from typing import Any

from cspine_kit import __version__
from cspine_kit.core.config import load_config, resolved_yaml
from cspine_kit.core.failures import gather, summary
from cspine_kit.core.paths import SUBMISSION, Competition, RunPaths
from cspine_kit.vision.names import VERTEBRA, WEIGHTS_FILE


def _state(files: list[Path], newer_than: float) -> tuple[str, float]:
    """("done" / "partly" / "missing" / "stale", time of the newest file)."""
    present = [file for file in files if file.exists()]
    if not present:
        return "missing", newer_than
    newest = max(file.stat().st_mtime for file in present)
    if len(present) < len(files):
        return f"partly ({len(present)} of {len(files)})", newest
    return ("stale" if newest < newer_than else "done"), newest


def describe(config_file: Path, oof_root: Path, submissions: Path) -> dict[str, Any]:
    """State of every stage of a config and the next command.

    A stage is stale where it is older than the stage before it.
    """
    config = load_config(config_file)
    paths = RunPaths(oof_root / config.name)
    competition = Competition(config.competition.dir)
    folds = range(config.folds.n)
    make = f"CONFIG={config_file}"
    submission = submissions / config.name / SUBMISSION
    stages: list[tuple[str, str, list[Path]]] = [
        ("competition", f"make oof {make}", [competition.train_csv]),
        ("index", f"make oof {make}", [paths.table("slices"), paths.table("studies")]),
        ("folds", f"make oof {make}", [paths.folds]),
        ("cache", f"make oof {make}", [paths.table("volumes")]),
        *(
            (name, f"make oof {make}", [paths.model(name, k) / WEIGHTS_FILE for k in folds])
            for name in (VERTEBRA, *config.members)
        ),
        ("oof", f"make oof {make}", [paths.table("oof_slices")]),
        ("stack", f"make stack {make}", [paths.stack / "scores.csv"]),
        ("bundle", f"make kernel {make}", [paths.bundle / "manifest.json"]),
        ("submission", f"cspine kernel --config {config_file}", [submission]),
        ("results", f"make score {make}", [submission.with_name("results.csv")]),
    ]
    state: dict[str, Any] = {
        "kit": __version__,
        "config": str(config_file),
        "config_changed": paths.resolved_config.exists()
        and paths.resolved_config.read_text() != resolved_yaml(config),
        "stages": {},
        "left_out": summary(gather(paths, (VERTEBRA, *config.members), config.folds.n)),
        "next": None,
    }
    newest = 0.0
    for name, command, files in stages:
        status, time = _state(files, newest)
        if name not in ("folds", VERTEBRA, *config.members):
            newest = max(newest, time)
        state["stages"][name] = {"state": status, "path": str(files[0])}
        if state["next"] is None and status != "done":
            state["next"] = command
    return state


def render(state: dict[str, Any]) -> str:
    """`describe`'s answer as a small table."""
    lines = [f"cspine_kit {state['kit']}, {state['config']}"]
    if state["config_changed"]:
        lines.append("the config changed since its last run: what depends on it will be redone")
    for name, stage in state["stages"].items():
        lines.append(f"  {name:14s} {stage['state']:16s} {stage['path']}")
    if state["left_out"]:
        lines.append(state["left_out"])
    lines.append(f"next: {state['next'] or 'nothing, all done'}")
    return "\n".join(lines)

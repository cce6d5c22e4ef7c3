"""Which config a run folder was made from, part by part: `oof/<name>/config.yaml`.

In: a config and its run folder. Out: the resolved config on disk, and the parts that differ from
it. Example::

    begin(config, paths, "oof")       # before anything is made: parts that differ leave the file
    finish(config, paths, "oof")      # everything is made: they are written
    changed(config, paths)            # ()

A part stands in the file only while all that depends on it was made from exactly that value. So a
verb that makes some of it (index, folds, cache, train) begins and never finishes, `oof` and `stack`
finish what they bring up to date, and whoever only reads (bundle, kernel, push, rehearse, score,
info) leaves the file alone. An interrupted run is told from a finished one by what is missing.
"""

from typing import Any, Literal

import yaml

from cspine_kit.core.config import Config
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import publish

Stage = Literal["oof", "stack"]

PARTS: dict[Stage, tuple[str, ...]] = {
    "oof": (
        *("seed", "competition", "exclude", "folds", "vertebra", "members"),
        "vertebra_members",
        *("training.precision", "volumes.curve", "volumes.coarse", "volumes.fine", "kernel.views"),
    ),
    "stack": ("stack",),
}
"""What the files of a stage depend on. The rest (names, processes, hours) changes no file here."""

STAGES: tuple[Stage, ...] = ("oof", "stack")


def _holder(raw: dict[str, Any], part: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a part ("kernel.views"), and its key there."""
    *sections, key = part.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    return raw, key


def _stored(paths: RunPaths) -> dict[str, Any] | None:
    if not paths.resolved_config.exists():
        return None
    return dict(yaml.safe_load(paths.resolved_config.read_text()) or {})


def _differs(raw: dict[str, Any], stored: dict[str, Any], part: str) -> bool:
    mine, key = _holder(raw, part)
    theirs, _ = _holder(stored, part)
    return key not in theirs or theirs[key] != mine[key]


def _write(paths: RunPaths, raw: dict[str, Any]) -> None:
    text = yaml.safe_dump(raw, sort_keys=False)
    if not paths.resolved_config.exists() or paths.resolved_config.read_text() != text:
        with publish(paths.resolved_config) as temporary:
            temporary.write_text(text)


def changed(config: Config, paths: RunPaths, *stages: Stage) -> tuple[str, ...]:
    """Parts from whose present value the run folder was not made, or not to its end.

    All of them where there is a folder without a record; none where nothing was made yet.

    Args:
        config: as it is now.
        paths: its run folder.
        stages: whose parts; default: all.
    """
    raw, stored = config.model_dump(mode="json"), _stored(paths)
    if stored is None and not paths.root.exists():
        return ()
    parts = [part for stage in stages or STAGES for part in PARTS[stage]]
    return tuple(part for part in parts if _differs(raw, stored or {}, part))


def differing(config: Config, other: Config) -> tuple[str, ...]:
    """Parts in which two configs differ, of those that decide what a run folder holds."""
    raw, theirs = (c.model_dump(mode="json") for c in (config, other))
    return tuple(part for stage in STAGES for part in PARTS[stage] if _differs(raw, theirs, part))


def begin(config: Config, paths: RunPaths, stage: Stage) -> None:
    """Take out of the record what is about to be made anew."""
    stored = _stored(paths)
    if stored is None:
        return
    for part in changed(config, paths, stage):
        holder, key = _holder(stored, part)
        holder.pop(key, None)
    _write(paths, stored)


def finish(config: Config, paths: RunPaths, stage: Stage) -> None:
    """Record that everything of a stage was made from this config.

    Other stages' parts stay as they were recorded. The first record, which is that of `oof`, is the
    whole config: nothing else was made yet.
    """
    raw, stored = config.model_dump(mode="json"), _stored(paths)
    if stored is not None:
        for part in (part for other in STAGES if other != stage for part in PARTS[other]):
            (mine, key), (theirs, _) = _holder(raw, part), _holder(stored, part)
            if key in theirs:
                mine[key] = theirs[key]
            else:
                del mine[key]
    elif stage != "oof":
        return
    _write(paths, raw)

"""Running a grid: the config as it is, then every row, each in a run folder of its own.

In: a config, its run folder, rows. Out: run folders with scores, and a table. Example::

    from cspine_kit.show.ablation.grid import read_grid

    rows = read_grid(Path("configs/demo.yaml"), Path("configs/grids/stack.yaml"))
    table = ablate(config, paths, rows[:0], "stack")
    table.loc[0, ["row", "A", "trained"]]                # the config as it is

A row starts from what the config's own run has: index, folds, volumes, and every fold model that
the change does not touch, by the keys of each. So a row that changes one member's head trains that
member alone, and one that changes the stack trains nothing. An interrupted grid goes on where it
was; a row that fails costs itself.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cspine_kit.core.config import Config
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.resolved import begin, finish
from cspine_kit.core.runs import publish
from cspine_kit.data.stages import prepare
from cspine_kit.show.ablation.grid import Row
from cspine_kit.show.ablation.picture import gains
from cspine_kit.show.ablation.table import BASE, compared, failed
from cspine_kit.stack.pipeline import run_stack
from cspine_kit.vision.check import check_config
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.oof.borrow import borrow_models, link
from cspine_kit.vision.oof.run import run_oof

log = logging.getLogger(__name__)

SHARED = ("tables/studies.parquet", "tables/slices.parquet", "index/groups.csv")
"""Made from scans and labels alone: a row's are the config's own, with their keys."""


def check_rows(rows: Sequence[Row]) -> None:
    """Refuse what cannot be built before anything is trained.

    Raises:
        ConfigError: names the row, the key, and the nearest valid choice.
    """
    for row in rows:
        try:
            check_config(row.config)
        except CSpineError as error:
            raise type(error)(f"row {row.label!r}: {error}") from error


def begin_run(config: Config, paths: RunPaths, start: RunPaths | None = None) -> Config:
    """Index, folds and coarse volumes; finished work is skipped.

    Args:
        config: of the run.
        paths: its folder.
        start: a run folder whose artifacts, fold models too, are taken over where they fit.

    Returns:
        The config as it is carried out: it finds the volumes of `start`.
    """
    if start is None:
        begin(config, paths, "oof")
        prepare(config, paths)
        return config
    config = _finding(config, start)
    begin(config, paths, "oof")
    _link_shared(start, paths)
    prepare(config, paths)
    borrow_models(config, paths, start, open_inputs(paths))
    return config


def make_run(config: Config, paths: RunPaths, start: RunPaths | None = None) -> None:
    """Everything up to the scores of the stack. Arguments as those of `begin_run`."""
    config = begin_run(config, paths, start)
    run_oof(config, paths)
    finish(config, paths, "oof")
    begin(config, paths, "stack")
    run_stack(config, paths)
    finish(config, paths, "stack")


def _link_shared(start: RunPaths, paths: RunPaths) -> None:
    """Index, folds, and the coarse volumes' table before there is one."""
    keyed = [start.root / name for name in SHARED]
    coarse = start.table("coarse")
    if not paths.table("coarse").exists():
        keyed.append(coarse)
    files = [file for path in keyed for file in (path, path.with_name(f"{path.name}.key"))]
    for file in (*files, start.root / "index" / "failures.json", start.folds):
        own = paths.root / file.relative_to(start.root)
        if not own.exists() or own.read_bytes() != file.read_bytes():
            with publish(own) as temporary:
                link(file, temporary)


def ablate(
    config: Config, paths: RunPaths, rows: Sequence[Row], grid: str, *, seeds: int = 1
) -> pd.DataFrame:
    """Score the config and every row, and compare them.

    Args:
        config: as it is; made first where it is not there.
        paths: its run folder.
        rows: of the grid.
        grid: its name; results go to `ablation/<grid>/<row>`, `ablation/<grid>.csv` and `.svg`.
        seeds: so many times, each with other seeds of the members: a row is compared with the
            config of its own seed, and the table tells the mean of all (`ablation/<grid>/seed+<k>`
            holds the further ones).

    Returns:
        A row for the config and each row of the grid (`show.ablation.table.compared`).

    Raises:
        CSpineError: the config's own run fails, or a row cannot be built.
    """
    check_rows(rows)
    make_run(config, paths)
    bases = [paths]
    for seed in range(1, seeds):
        bases.append(RunPaths(paths.ablation / grid / f"seed+{seed}" / "as_it_is"))
        make_run(_beside(config, paths, seed), bases[seed], paths)
    found = [compared(BASE, {}, bases, bases)]
    for number, row in enumerate(rows, start=1):
        log.info("ablation %s, row %d of %d: %s", grid, number, len(rows), row.label)
        own = [RunPaths(paths.ablation / grid / row.folder)]
        own += [RunPaths(base.root.parent / row.folder) for base in bases[1:]]
        try:
            for seed, (place, base) in enumerate(zip(own, bases, strict=True)):
                make_run(_beside(row.config, paths, seed), place, base)
            found.append(compared(row.label, row.changes, own, bases))
        except CSpineError as error:
            log.warning("ablation %s, row %s: %s", grid, row.label, error)
            found.append(failed(row.label, row.changes, str(error)))
        _write(pd.DataFrame(found), paths.ablation, grid)
    return pd.DataFrame(found)


def _finding(config: Config, start: RunPaths) -> Config:
    """A config that also takes the volumes of another run, where that has some."""
    made = [start.cache] if start.cache.is_dir() else []
    shipped = tuple(dict.fromkeys((*config.volumes.shipped, *made)))
    volumes = config.volumes.model_copy(update={"shipped": shipped})
    return config.model_copy(update={"volumes": volumes})


def _beside(config: Config, paths: RunPaths, seed: int) -> Config:
    """A config that uses a run's volumes, its members drawn with other seeds."""
    members = {n: m.model_copy(update={"seed": m.seed + seed}) for n, m in config.members.items()}
    return _finding(config.model_copy(update={"members": members}), paths)


def _write(table: pd.DataFrame, folder: Path, grid: str) -> None:
    """The table so far, and its picture."""
    with publish(folder / f"{grid}.csv") as temporary:
        table.to_csv(temporary, index=False)
    picture = gains(table.iloc[1:].assign(grid=grid))
    with publish(folder / f"{grid}.svg") as temporary:
        temporary.write_bytes(picture.image)

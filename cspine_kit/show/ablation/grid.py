"""The rows of an ablation: a config, and one change of it in each.

In: a config's file, a grid's file. Out: `Row`s, every one of them checked. Example::

    rows = read_grid(Path("configs/demo.yaml"), Path("configs/grids/crop.yaml"))
    rows[0].label, rows[0].changes, rows[0].config.seed

A grid's file maps a row's label to its changes, dotted keys of the config with a value each. A list
holds values of which each makes a row of its own, but for the one that the config has; a value that
is itself a list stands in one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspine_kit.core.config import Config, parse_config, read_config, read_yaml
from cspine_kit.core.config.changes import apply_changes
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.resolved import differing

SAME = ("name", "competition", "exclude", "folds")
"""What rows may not change: they are compared on the same studies in the same folds."""


@dataclass(frozen=True)
class Row:
    """One change.

    Attributes:
        label: as the grid calls it.
        changes: values by dotted keys.
        config: with the change.
    """

    label: str
    changes: dict[str, Any]
    config: Config

    @property
    def folder(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^a-z0-9.]+", "_", self.label.lower()).strip("_.") or "row"


def read_grid(config_path: Path, grid_path: Path) -> list[Row]:
    """Every row of a grid, in its order.

    Raises:
        ConfigError: a file is absent or no mapping; a key is unknown (names the nearest one), may
            not be changed, has a value out of range, or changes nothing that is scored; two rows
            would share a folder.
    """
    raw = read_config(config_path)
    base, rows = parse_config(raw, config_path), []
    for label, changes, listed in _unrolled(read_yaml(grid_path), grid_path):
        place = f"grid {grid_path}, row {label!r}"
        fixed = [key for key in changes if key.split(".")[0] in SAME]
        if fixed:
            raise ConfigError(
                f"{place}: {fixed[0]} may not be changed: rows are compared on the same studies "
                "and folds; make a config of its own for it"
            )
        try:
            config = parse_config(apply_changes(raw, changes), config_path)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
        if not differing(config, base):
            if listed:
                continue
            raise ConfigError(
                f"{place}: {', '.join(changes)} changes nothing that is scored: the value is the "
                "config's own, or every network overrides it (members.*.<key> reaches them all)"
            )
        rows.append(Row(label, changes, config))
    folders = [row.folder for row in rows]
    twice = next((f for f in folders if folders.count(f) > 1), None)
    if twice is not None:
        raise ConfigError(f"grid {grid_path}: two rows are called {twice!r}; give one another name")
    return rows


def _unrolled(grid: dict[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Rows with one value for each key, and whether it is one of several."""
    for label, changes in grid.items():
        if not isinstance(changes, dict) or not changes:
            raise ConfigError(
                f"grid {path}, row {str(label)!r}: it must map dotted keys to values, got "
                f"{changes!r}; e.g. 'larger crops: {{model.field_mm: 100}}'"
            )
        lists = [key for key, value in changes.items() if isinstance(value, list)]
        if not lists:
            yield str(label), changes, False
            continue
        if len(changes) > 1:
            raise ConfigError(
                f"grid {path}, row {label!r}: {lists[0]} lists values beside other keys; a row "
                "with a list has one key (a value that is itself a list stands in one: [[...]])"
            )
        values = changes[lists[0]]
        for value in values:
            name = f"{label} {value}" if len(values) > 1 else str(label)
            yield name, {lists[0]: value}, len(values) > 1

"""Table contracts: what each table's key and columns are, checked on every write and read.

In: pandas frames. Out: parquet files whose key is unique and sorted. Example::

    oof = read_table(paths.table("oof_slices"), "oof_slices")
    write_table(oof, Path("copy.parquet"), "oof_slices")     # a TableError where folds differ

Two fold columns: `fold` = the fold a study belongs to (-1 for test), `model_fold` = the fold model
that made the row. In an out-of-fold table they must be equal. Both are what the maker of the rows
declares: the check finds tables that were mixed up, not a model that saw its study all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import AXIAL, LEVELS, OVERALL, PLANES, TARGETS
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.runs import publish

if TYPE_CHECKING:
    import pandera.pandas as pa

VERTEBRA_COLUMNS: tuple[str, ...] = tuple(f"vertebra_{level}" for level in LEVELS)
FRACTURE_COLUMNS: tuple[str, ...] = tuple(f"fracture_{level}" for level in LEVELS)
MASK_COLUMNS: tuple[str, ...] = tuple(f"mask_{level}" for level in LEVELS)
SPINE_BOX_COLUMNS: tuple[str, ...] = (
    *("spine_y0_mm", "spine_x0_mm", "spine_y1_mm", "spine_x1_mm"),
)
"""Box around C1..C7 on one slice. In-plane positions are mm in the study's own frame: y along the
rows' index to the back, x along the columns' index to the left, 0 at the center of the first pixel.
z is the position along the slice normal and descends with the slice index."""

BOX_COLUMNS: tuple[str, ...] = ("box_x", "box_y", "box_w", "box_h")
"""Fracture box on one slice, pixels of the study's own frame: those of the files wherever the
reader has nothing to flip, move or resample."""

SHOWN_ROWS = 5
KINDS = {"str": str, "int": "int64", "count": "Int64", "float": float, "bool": bool}


@dataclass(frozen=True)
class Contract:
    """One table: its key, its typed columns and its extra rules.

    Types are "str", "int", "float", "bool", and "count": an int that may be missing.
    """

    key: tuple[str, ...]
    columns: dict[str, str]
    nullable: tuple[str, ...] = ()
    out_of_fold: bool = False
    open_columns: bool = False


def _kinds(kind: str, *groups: tuple[str, ...]) -> dict[str, str]:
    return {column: kind for group in groups for column in group}


_VOLUMES = Contract(
    key=("study_uid",),
    columns={
        **_kinds("str", ("study_uid", "path", "checksum", "mask_checksum")),
        **_kinds("int", ("nz", "ny", "nx", "first_slice", "group", "stand_ins")),
        **_kinds("float", ("spacing_z", "spacing_y", "spacing_x")),
        **_kinds("int", ("corner_y_px", "corner_x_px")),
        **_kinds("bool", ("has_mask",)),
    },
)
"""Stored volumes of one grid; `corner` in pixels of the frame's lattice, `group` native slices to
one slice, checksums of voxels and labels (SHA-256)."""

CONTRACTS: dict[str, Contract] = {
    "studies": Contract(
        key=("study_uid",),
        columns={
            **_kinds("str", ("study_uid", "split", "source", "transfer_syntax", "problems")),
            **_kinds("int", ("n_slices", "rows", "cols")),
            **_kinds("float", ("spacing_z", "spacing_y", "spacing_x")),
            **_kinds("bool", ("reversed", "irregular", "has_mask", "has_boxes")),
            **_kinds("float", (OVERALL,), LEVELS),
        },
        nullable=(OVERALL, *LEVELS),
    ),
    "slices": Contract(
        key=("study_uid", "slice_idx"),
        columns={
            **_kinds("str", ("study_uid", "file")),
            **_kinds("int", ("slice_idx",)),
            **_kinds("float", ("slice_number", "instance_number", "z_mm", "gap_mm")),
            **_kinds("float", MASK_COLUMNS, SPINE_BOX_COLUMNS),
            **_kinds("float", BOX_COLUMNS),
        },
        nullable=(
            *("slice_number", "instance_number", "gap_mm", *MASK_COLUMNS, *SPINE_BOX_COLUMNS),
            *BOX_COLUMNS,
        ),
    ),
    "coarse": _VOLUMES,
    "fine": _VOLUMES,
    "vertebra": Contract(
        key=("member", "study_uid", "position", "model_fold"),
        columns={
            **_kinds("str", ("member", "study_uid")),
            **_kinds("int", ("position", "model_fold", "fold")),
            **_kinds("float", ("at_mm",), VERTEBRA_COLUMNS, SPINE_BOX_COLUMNS),
        },
    ),
    "vertebra_dice": Contract(
        key=("member", "study_uid", "level", "model_fold"),
        columns={
            **_kinds("str", ("member", "study_uid", "level")),
            **_kinds("int", ("model_fold", "fold")),
            **_kinds("int", ("said_px", "true_px", "both_px")),
        },
        out_of_fold=True,
    ),
    "levels": Contract(
        key=("study_uid", "level", "model_fold"),
        columns={
            **_kinds("str", ("study_uid", "level")),
            **_kinds("int", ("model_fold",)),
            **_kinds("bool", ("present",)),
            **_kinds("float", ("z_top_mm", "z_bottom_mm")),
            **_kinds("float", ("center_z_mm", "center_y_mm", "center_x_mm", "confidence")),
            **_kinds("str", ("source",)),
        },
    ),
    "oof_slices": Contract(
        key=("member", "study_uid", "plane", "position", "model_fold"),
        columns={
            **_kinds("str", ("member", "study_uid", "plane")),
            **_kinds("int", ("position", "model_fold", "fold")),
            **_kinds("count", ("slice_idx",)),
            **_kinds("float", ("at_mm",), VERTEBRA_COLUMNS, FRACTURE_COLUMNS),
        },
        nullable=("slice_idx",),
        out_of_fold=True,
    ),
    "oof_levels": Contract(
        key=("member", "study_uid", "level", "model_fold"),
        columns={
            **_kinds("str", ("member", "study_uid", "level")),
            **_kinds("int", ("model_fold", "fold")),
            **_kinds("float", ("fracture",)),
        },
        out_of_fold=True,
    ),
    "oof_studies": Contract(
        key=("member", "study_uid", "model_fold"),
        columns={
            **_kinds("str", ("member", "study_uid")),
            **_kinds("int", ("model_fold", "fold")),
            **_kinds("float", ("overall",)),
        },
        out_of_fold=True,
    ),
    "oof_boxes": Contract(
        key=("member", "study_uid", "slice_idx", "n", "model_fold"),
        columns={
            **_kinds("str", ("member", "study_uid")),
            **_kinds("int", ("slice_idx", "n", "model_fold", "fold")),
            **_kinds("float", ("at_mm", "x", "y", "width", "height", "score")),
        },
        out_of_fold=True,
    ),
    "failures": Contract(
        key=("stage", "member", "study_uid", "model_fold"),
        columns={
            **_kinds("str", ("stage", "member", "study_uid")),
            **_kinds("int", ("model_fold",)),
            **_kinds("str", ("cause", "inputs_key")),
        },
    ),
    "features": Contract(
        key=("study_uid", "level", "model_fold"),
        columns={
            **_kinds("str", ("study_uid", "level")),
            **_kinds("int", ("model_fold", "fold")),
            **_kinds("float", ("label",)),
        },
        nullable=("label",),
        out_of_fold=True,
        open_columns=True,
    ),
    "predictions": Contract(
        key=("model", "study_uid", "target"),
        columns={
            **_kinds("str", ("model", "study_uid", "target")),
            **_kinds("float", ("prob",)),
            **_kinds("int", ("fold",)),
        },
    ),
}
"""Every table of the kit by name: the table contracts as data."""


def _schema(name: str) -> "pa.DataFrameSchema":
    import pandera.pandas as pa

    contract = CONTRACTS[name]
    checks = {
        "level": [pa.Check.isin(LEVELS)],
        "target": [pa.Check.isin(TARGETS)],
        "plane": [pa.Check.isin(PLANES)],
        "score": [pa.Check.in_range(0.0, 1.0)],
        "prob": [pa.Check(lambda p: (p > 0) & (p < 1), error="must lie inside (0, 1)")],
    }
    return pa.DataFrameSchema(
        {
            column: pa.Column(
                KINDS[kind],
                checks=checks.get(column),
                nullable=column in contract.nullable,
                coerce=True,
            )
            for column, kind in contract.columns.items()
        },
        unique=list(contract.key),
        strict=not contract.open_columns,
        name=name,
    )


def check_out_of_fold(frame: pd.DataFrame, name: str = "out-of-fold table") -> None:
    """Refuse rows that say they were made by another fold's model than the study's own.

    Raises:
        TableError: `fold != model_fold` somewhere; names the first rows.
    """
    leaked = frame[frame["fold"] != frame["model_fold"]]
    if len(leaked):
        shown = leaked[["study_uid", "fold", "model_fold"]].drop_duplicates().head(SHOWN_ROWS)
        raise TableError(
            f"{name}: {len(leaked)} of {len(frame)} rows were made by a model that may have seen "
            f"their study (fold != model_fold): {shown.to_dict('records')}; "
            "rebuild it with make oof"
        )


def _check_positions(frame: pd.DataFrame, name: str) -> None:
    """Refuse slices whose position and slice_idx do not fit their plane.

    Raises:
        TableError: an axial row without its slice_idx as position, or another plane's row with one.
    """
    axial, index = frame["plane"] == AXIAL, frame["slice_idx"]
    odd = frame[np.where(axial, (index != frame["position"]).fillna(True), index.notna())]
    if len(odd):
        shown = odd[["study_uid", "plane", "position", "slice_idx"]].head(SHOWN_ROWS)
        raise TableError(
            f"table {name}: in the axial plane slice_idx is the position, in others it is missing; "
            f"got {shown.to_dict('records')}"
        )


def _check_seven(frame: pd.DataFrame, name: str) -> None:
    """Refuse a study that does not have C1..C7, and a level whose top lies below its bottom.

    Raises:
        TableError: names the first such studies.
    """
    unit = [c for c in CONTRACTS[name].key if c != "level"]
    odd = frame[frame.groupby(unit)["level"].transform("size") != len(LEVELS)]
    if "z_top_mm" in frame:
        odd = pd.concat([odd, frame[frame["z_top_mm"] < frame["z_bottom_mm"]]])
    if len(odd):
        shown = odd[unit].drop_duplicates().head(SHOWN_ROWS)
        raise TableError(
            f"table {name}: not C1..C7, each from its top down to its bottom, for "
            f"{shown.to_dict('records')}; make them again (make oof)"
        )


RULES: dict[str, Callable[[pd.DataFrame, str], None]] = {
    "levels": _check_seven,
    "oof_levels": _check_seven,
    "oof_slices": _check_positions,
}
"""What a table must fulfill beyond types, key and folds."""


def check_table(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return `frame` with contract types and sorted by its key.

    Raises:
        TableError: a missing or unknown column, a wrong type, a duplicate key, a value out of
            range, an out-of-fold row whose folds differ, or a broken rule of `RULES`.
    """
    from pandera.errors import SchemaErrors

    contract = CONTRACTS[name]
    try:
        checked = _schema(name).validate(frame.reset_index(drop=True), lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.head(SHOWN_ROWS)
        shown = "; ".join(
            f"{row.get('column') or name}: {row['check']} (got {row['failure_case']!r}"
            + (f", row {row['index']}" if pd.notna(row["index"]) else "")
            + ")"
            for row in cases.to_dict("records")
        )
        raise TableError(f"table {name}: {len(error.failure_cases)} faults: {shown}") from error
    if contract.out_of_fold:
        check_out_of_fold(checked, f"table {name}")
    if name in RULES:
        RULES[name](checked, name)
    ordered = [*contract.columns, *(c for c in checked.columns if c not in contract.columns)]
    return checked[ordered].sort_values(list(contract.key), ignore_index=True)


def write_table(frame: pd.DataFrame, path: Path, name: str, key: str | None = None) -> pd.DataFrame:
    """Check a table against its contract and write it atomically; returns what was written."""
    checked = check_table(frame, name)
    with publish(path, key) as temporary:
        checked.to_parquet(temporary, index=False)
    return checked


def read_table(path: Path, name: str) -> pd.DataFrame:
    """Read a table and check it against its contract.

    Raises:
        ArtifactError: the file is absent, or no whole table.
        TableError: the file breaks the contract.
    """
    if not path.exists():
        raise ArtifactError(f"table {name} not found at {path}; run make oof (or make stack) first")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise ArtifactError(
            f"table {name} at {path} cannot be read: {error}; if it is empty or cut, remove it and "
            "run make oof (or make stack) again"
        ) from error
    return check_table(frame, name)

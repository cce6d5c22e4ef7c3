"""One page: what a bundle is worth on scans of one's own.

In: folders, labels, a bundle. Out: `<out>/evaluation.html`, tables as CSV beside it. Example::

    folders = [competition.images("train", name) for name in labels["study_uid"][:4]]
    path = write_evaluation(folders, competition.train_csv, Wanted(bundle, Path("evaluated")))
    path.name, (path.parent / "discrimination.csv").exists()

Judgments are those of `cspine predict`, resumed where some are there. Thresholds are the bundle's
own, chosen before these scans were seen.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import publish
from cspine_kit.infer.judgment import USE, point_told
from cspine_kit.show.evaluation.cases import Cases, gather_cases
from cspine_kit.show.evaluation.numbers import (
    FEWEST,
    VERTEBRAE,
    discrimination,
    metrics,
    operating,
    subgroups,
)
from cspine_kit.show.exports.predictions import Wanted, names_of, predict_folders
from cspine_kit.show.report.figure import LOOKS, SHIPS_COLOR, Figure, canvas, drawn, short
from cspine_kit.stack.scores.operating import BEST_F1
from cspine_kit.stack.scores.pictures import reliability

TEMPLATE, PAGE = "page.html.j2", "evaluation.html"
PANELS = {short(OVERALL): [TARGETS.index(OVERALL)], VERTEBRAE: list(range(len(LEVELS)))}


def _number(value: Any, form: str = ".3f") -> str:
    return format(value, form) if np.isfinite(value) else "-"


def _interval(row: Any, name: str, form: str = ".3f") -> str:
    if not np.isfinite(row[name]):
        return "-"
    return (
        f"{row[name]:{form}} ({_number(row[f'{name}_low'], form)} to "
        f"{_number(row[f'{name}_high'], form)})"
    )


def tables_of(
    found: pd.DataFrame, points: pd.DataFrame, groups: pd.DataFrame
) -> list[tuple[str, str, list[str], list[list[str]]]]:
    """Title, what to know, header and rows of each table of the page."""
    parts = [
        (
            "Discrimination and calibration",
            "AUC with a 95 % interval (bootstrap over studies); calibration slope 1 and error 0 "
            "are perfect. A level that a scan does not hold is not counted.",
            ["", "n", "fractured", "AUC", "Brier", "calibration error", "slope"],
            [
                [
                    *(row["target"], str(row["n"]), str(row["fractured"]), _interval(row, "auc")),
                    *(_number(row[c]) for c in ("brier", "calibration_error")),
                    _number(row["slope"], ".2f"),
                ]
                for row in found.to_dict("records")
            ],
        )
    ]
    for point in points["point"].unique():
        own = points[points["point"] == point]
        rows = [
            [
                *(row["target"], _number(row["threshold"])),
                *(_interval(row, n, ".2f") for n in ("sensitivity", "specificity")),
                *(str(row[n]) for n in ("tp", "fn", "tn", "fp")),
            ]
            for row in own.to_dict("records")
        ]
        head = ["", "threshold", "sensitivity", "specificity", "TP", "FN", "TN", "FP"]
        parts.append((f"Operating point {point}", f"{point_told(point)}.", head, rows))
    rows = [
        [
            *(f"{row['by']}: {row['group']}", row["target"], str(row["studies"])),
            *(str(row["fractured"]), _interval(row, "auc", ".2f")),
            *(_number(row[n], ".2f") for n in ("sensitivity", "specificity")),
        ]
        for row in groups.to_dict("records")
    ]
    head = ["group", "", "studies", "fractured", "AUC", "sensitivity", "specificity"]
    told = f"At the best F1. Groups of fewer than {FEWEST} studies are only counted."
    return [*parts, ("Subgroups", told, head, rows)]


def _curves(cases: Cases) -> Figure:
    """ROC curves with the frozen points on them, and calibration."""
    from sklearn.metrics import roc_curve

    sheet = canvas(height_in=3.6)
    axes = sheet.subplots(1, 3)
    for axis, (name, columns) in zip(axes[:2], PANELS.items(), strict=True):
        held = np.isfinite(cases.probs[:, columns])
        y, p = cases.truth[:, columns][held], cases.probs[:, columns][held]
        axis.plot([0, 1], [0, 1], color="black", lw=0.6, ls=":")
        if 0 < y.sum() < len(y):
            fpr, tpr, _ = roc_curve(y > 0.5, p)
            axis.plot(fpr, tpr, color=SHIPS_COLOR)
        axis.set(title=name, xlabel="1 - specificity", ylabel="sensitivity")
    points = operating(cases)
    for axis, name in zip(axes[:2], PANELS, strict=True):
        for row in points[points["target"] == name].itertuples():
            axis.plot(1 - row.specificity, row.sensitivity, "o", ms=5, label=row.point)
        axis.legend(loc="lower right", fontsize=7)
    axes[2].plot([0, 1], [0, 1], color="black", lw=0.6, ls=":")
    for name, columns in PANELS.items():
        held = np.isfinite(cases.probs[:, columns])
        bins = reliability(cases.truth[:, columns][held], cases.probs[:, columns][held])
        off = np.abs(bins[["low", "high"]].to_numpy().T - bins["observed"].to_numpy())
        axes[2].errorbar(
            bins["predicted"], bins["observed"], off, marker="o", ms=4, capsize=2, label=name
        )
    axes[2].set(title="calibration", xlabel="predicted", ylabel="observed share", xlim=(0, 1))
    axes[2].legend(loc="upper left", fontsize=7)
    return drawn(
        sheet,
        "ROC curves with the bundle's frozen operating points, and the observed share of fractures "
        "against the predicted one in equally filled bins (95 % intervals; on the dotted line is "
        "calibrated).",
    )


def render(cases: Cases, found: pd.DataFrame, points: pd.DataFrame, groups: pd.DataFrame) -> str:
    """The page as HTML.

    Raises:
        ArtifactError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ArtifactError(
            "the page needs jinja2, which is not installed; pip install 'cspine-kit[show]'"
        ) from error
    import matplotlib as mpl

    with mpl.rc_context(LOOKS):
        figures = [_curves(cases)]
    score = metrics(cases)
    patient = found.iloc[0]
    headline = f"{len(cases.names)} scans: AUC of the patient {_interval(patient, 'auc', '.3f')}"
    if score:
        headline += f", metric A {score['A']:.4f}, B {score['B']:.4f}"
    text = files("cspine_kit.show.evaluation").joinpath(TEMPLATE).read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text).render(
        headline=headline,
        use=USE,
        notes=cases.notes,
        tables=tables_of(found, points, groups),
        figures=figures,
        left_out=list(cases.left_out.items()),
    )


def write_evaluation(folders: Sequence[Path], labels_csv: Path, wanted: Wanted) -> Path:
    """Judge folders, count, and write page and tables.

    Returns:
        The page.

    Raises:
        DataError: the labels cannot be used, or no study was judged and has one.
        ArtifactError: the bundle is not sound, or jinja2 is not installed.
    """
    cases = gather_cases(names_of(folders), predict_folders(folders, wanted), labels_csv)
    found, points = discrimination(cases), operating(cases)
    groups = subgroups(cases, BEST_F1)
    named = {"discrimination": found, "operating": points, "subgroups": groups}
    for name, table in named.items():
        with publish(wanted.out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    html = render(cases, found, points, groups)
    with publish(wanted.out / PAGE) as temporary:
        temporary.write_text(html)
    return wanted.out / PAGE

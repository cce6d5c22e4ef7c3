"""One scan explained on a page of its own, with volumes for other viewers beside it.

In: a `Predictor`, a folder. Out: `<out>/explain.html`, `prediction.json`, NIfTI. Example::

    from cspine_kit.infer.predictor import Predictor

    explained = write_explanation(Predictor(bundle), folder, Path("explained"))
    explained.page, explained.judgment.status
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import publish, write_json
from cspine_kit.data.reader.problems import explain
from cspine_kit.infer.judgment import USE, Judgment, point_told
from cspine_kit.infer.predictor import Predictor
from cspine_kit.show.explain.evidence import Evidence, gather_evidence
from cspine_kit.show.explain.pictures import levels_figure, suspect_figure
from cspine_kit.show.explain.spine3d import plotly_script, spine_html
from cspine_kit.show.exports.nifti import write_nifti
from cspine_kit.show.report.figure import LOOKS, short
from cspine_kit.stack.scores.operating import BEST_F1, NEVER

TEMPLATE, PAGE, JSON = "page.html.j2", "explain.html", "prediction.json"


@dataclass(frozen=True)
class Explained:
    """What was written of one scan; no page where it cannot be judged."""

    judgment: Judgment
    page: Path | None
    files: list[Path]


def table_rows(judgment: Judgment) -> list[dict[str, Any]]:
    """The eight probabilities as rows of a page: name, prob, percent, threshold, kind."""
    rows = []
    for row in judgment.probabilities.to_dict("records"):
        threshold = float(row.get(BEST_F1, NEVER))
        called = row["prob"] >= threshold and threshold < NEVER
        rows.append(
            {
                "name": short(row["target"]),
                "prob": f"{row['prob']:.2f}" if row["in_scan"] else "not in the scan",
                "percent": round(100 * row["prob"]) if row["in_scan"] else 0,
                "threshold": f"{threshold:.2f}" if threshold < NEVER else "none",
                "kind": "quiet" if not row["in_scan"] else "called" if called else "",
            }
        )
    return rows


def render(evidence: Evidence, written: Sequence[Path] = ()) -> str:
    """The page as HTML; it needs no network.

    Raises:
        ArtifactError: jinja2, plotly or scikit-image is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ArtifactError(
            "the page needs jinja2, which is not installed; pip install 'cspine-kit[show]'"
        ) from error
    import matplotlib as mpl

    judgment = evidence.judgment
    with mpl.rc_context(LOOKS):
        levels = levels_figure(judgment)
        figures = [(level, suspect_figure(evidence, level)) for level in evidence.suspects]
    named = ", ".join(evidence.suspects)
    text = files("cspine_kit.show.explain").joinpath(TEMPLATE).read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    spine = f"<script>{plotly_script()}</script>{spine_html(evidence, alone=False)}"
    return environment.from_string(text).render(
        judgment=judgment,
        use=USE,
        problems=explain(judgment.problems),
        levels=levels,
        rows=table_rows(judgment),
        meaning=point_told(BEST_F1),
        called=evidence.called,
        suspects=f"Explained below: {named}."
        if evidence.called
        else f"No level reached its threshold; the likeliest one is explained below: {named}.",
        spine=spine,
        suspect_figures=figures,
        files=f"Beside this page: {', '.join(p.name for p in written)}." if written else "",
    )


def write_explanation(predictor: Predictor, folder: Path, out: Path) -> Explained:
    """Judge a scan and explain it.

    Args:
        predictor: of a bundle.
        folder: the study's files, a .zip of them, or a NIfTI file.
        out: folder for the page and what belongs to it.

    Raises:
        ArtifactError: a package for it is not installed.
    """
    judgment = predictor.predict(folder)
    write_json(out / JSON, judgment.as_dict())
    if not judgment.ok:
        return Explained(judgment, None, [out / JSON])
    evidence = gather_evidence(predictor, judgment)
    written = [out / JSON, *write_nifti(evidence, out)]
    html = render(evidence, written)
    with publish(out / PAGE) as temporary:
        temporary.write_text(html)
    return Explained(judgment, out / PAGE, written)

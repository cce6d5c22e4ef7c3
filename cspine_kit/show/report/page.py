"""The page: checks on top, then every figure that the run has data for, in one HTML file.

In: a `Run` and its state. Out: a file that needs nothing else: pictures are inside, no script, no
network. Example::

    from cspine_kit.show.info import describe

    state = describe(Path("configs/demo.yaml"), Path("oof"), Path("submissions"))
    print(write_report(Run(config, paths, Path("submissions")), state, Path("report.html")))

A figure that cannot be drawn costs itself: the page says why.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import publish
from cspine_kit.show.report.check import Check
from cspine_kit.show.report.checks import run_checks
from cspine_kit.show.report.figure import LOOKS, Figure
from cspine_kit.show.report.run import Run
from cspine_kit.show.report.sections import MAKERS, SECTIONS, Plan, worst_plans

log = logging.getLogger(__name__)

TEMPLATE = "page.html.j2"
MOST_MB = 15.0

HEADINGS = {
    "data": "Data",
    "vertebra": "Vertebra stage",
    "fracture": "Fracture stage",
    "stack": "Stack",
    "worst": "The worst studies, out-of-fold",
    "kernel": "Kernel and effort",
}
INTROS = {
    "worst": "Each with the fracture curves of the level that cost most, one line per member, the "
    "decoded levels above them, fractured ones on red ground, and the slices that spoke loudest "
    "(triangles; fracture times visibility). Look here first for wrong labels.",
}


@dataclass(frozen=True)
class Block:
    """One section as the page shows it: figures by number (0 for none) and title, and a line for
    each thing missing."""

    name: str
    heading: str
    intro: str
    figures: Sequence[tuple[int, str, Figure]]
    missing: Sequence[str]


def _command(need: str, config_file: str) -> str:
    maker = MAKERS[need]
    if maker.startswith("make "):
        return f"{maker} CONFIG={config_file}"
    return f"{maker} --config {config_file}"


def _missing_lines(plans: Sequence[Plan], run: Run, config_file: str) -> list[str]:
    """Titles of figures that wait, gathered by the command that lets them appear."""
    waiting: dict[str, list[str]] = {}
    for plan in plans:
        need = plan.missing(run)
        if need is not None:
            waiting.setdefault(_command(need, config_file), []).append(plan.title)
    return [f"{', '.join(titles)}: {command}" for command, titles in waiting.items()]


def _draw(plan: Plan, run: Run) -> Figure | str:
    """The figure, or why there is none."""
    import matplotlib as mpl

    try:
        with mpl.rc_context(LOOKS):
            return plan.draw(run)
    except Exception as error:
        log.warning("report: %s cannot be drawn", plan.title, exc_info=True)
        return f"{plan.title}: cannot be drawn ({type(error).__name__}: {error})"


def blocks_of(run: Run, config_file: str) -> list[Block]:
    """Every section with what the run can show of it."""
    found, number = [], 0
    for name, heading in HEADINGS.items():
        plans = worst_plans(run) if name == "worst" else SECTIONS[name]
        figures, missing = [], _missing_lines(plans, run, config_file)
        for plan in plans:
            if plan.missing(run) is not None:
                continue
            figure = _draw(plan, run)
            if isinstance(figure, str):
                missing.append(figure)
            else:
                number += name != "worst"
                figures.append((0 if name == "worst" else number, plan.title, figure))
        if figures or missing:
            found.append(Block(name, heading, INTROS.get(name, ""), figures, missing))
    return found


def _headline(run: Run) -> str:
    """The score of what ships in a sentence."""
    if run.scores is None:
        return "No score yet."
    row = run.scores[run.scores["ships"].astype(bool)].iloc[0]
    text = (
        f"What ships ({row['shipped_model']}): metric A {row['per_exam']:.4f} (95 % "
        f"{row['per_exam_low']:.4f} to {row['per_exam_high']:.4f}), B {row['global']:.4f} "
        f"out-of-fold on {row['n_studies']:.0f} studies"
    )
    if run.tested is not None:
        text += f"; A {row['test_per_exam']:.4f}, B {row['test_global']:.4f} on the hidden truth"
    return text + ". Lower is better."


def render(
    run: Run, state: Mapping[str, Any], checks: Sequence[Check], blocks: Sequence[Block]
) -> str:
    """The page as HTML.

    Raises:
        ArtifactError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ArtifactError(
            "the report needs jinja2, which is not installed; pip install 'cspine-kit[show]'"
        ) from error
    text = files("cspine_kit.show.report").joinpath(TEMPLATE).read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text).render(
        name=run.config.name,
        phantom=run.config.competition.phantom is not None,
        made=time.strftime("%Y-%m-%d %H:%M"),
        headline=_headline(run),
        state=state,
        verdicts=Counter(check.verdict for check in checks),
        checks=checks,
        blocks=blocks,
        faults=run.faults,
    )


def write_report(run: Run, state: Mapping[str, Any], out: Path) -> str:
    """Draw everything and write the page.

    Args:
        run: the run.
        state: of `show.info.describe`.
        out: the HTML file.

    Returns:
        Figures, size, seconds and verdicts in a line.

    Raises:
        ArtifactError: there is no run folder yet, or jinja2 is not installed.
    """
    if not run.paths.root.is_dir():
        raise ArtifactError(f"there is nothing of this run in {run.paths.root}; run make oof first")
    start = time.monotonic()
    checks = run_checks(run, state)
    blocks = blocks_of(run, str(state["config"]))
    html = render(run, state, checks, blocks)
    with publish(out) as temporary:
        temporary.write_text(html)
    megabytes = out.stat().st_size / 1e6
    if megabytes > MOST_MB:
        log.warning("the report is larger than %g MB", MOST_MB)
    drawn = sum(len(block.figures) for block in blocks)
    counts = Counter(check.verdict for check in checks)
    told = ", ".join(f"{counts[v]} {v}" for v in ("pass", "warn", "fail", "not yet") if counts[v])
    seconds = time.monotonic() - start
    return f"{drawn} figures, {megabytes:.1f} MB, {seconds:.0f} s; checks: {told}"

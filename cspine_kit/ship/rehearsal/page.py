"""The rehearsal on one page of text (Markdown).

In: a `Rehearsal`. Out: text. Example::

    from cspine_kit.ship.rehearsal.environment import Environment

    here = Environment(Path("env"), "3.12", "3.12", build_s=60.0, built_now=False)
    result = Rehearsal(config, here, {"network": "off"})
    result.check("inputs are as they were", True)
    print(render_page(result))
"""

from collections.abc import Sequence

from cspine_kit.ship.rehearsal.checks import Rehearsal
from cspine_kit.ship.rehearsal.forecast import Forecast


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table whose columns are aligned for readers of the plain text too."""
    cells = [[str(c).replace("|", "/").replace("\n", " ") for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _short(text: object, limit: int = 110) -> str:
    words = str(text)
    return words if len(words) <= limit else words[: limit - 1] + "…"


def _place(result: Rehearsal) -> list[str]:
    environment, packages = result.environment, result.probe.get("packages")
    packages = packages if isinstance(packages, dict) else {}
    names = (
        "torch",
        "torchvision",
        "timm",
        "lightgbm",
        "numpy",
        "pandas",
        "scikit-learn",
        "pydicom",
    )
    python = f"Python {result.probe.get('python', environment.version)}"
    if not environment.on_target:
        python += f" (not Kaggle's {environment.target}; the same package versions)"
    gpus = result.probe.get("gpus")
    built = "built now" if environment.built_now else "kept from an earlier run"
    rows = [
        ("python", python),
        ("packages", ", ".join(f"{name} {packages.get(name, 'absent')}" for name in names)),
        ("environment", f"{built}; building took {environment.build_s:.0f} s"),
        ("machine", f"{result.probe.get('cpus')} cores, GPUs: {gpus or 'none'}"),
        *result.isolation.items(),
    ]
    return _table(("place", "how"), rows)


def _runs(result: Rehearsal) -> list[str]:
    rows = [
        (name, run.code, f"{run.seconds:.1f}", f"{run.peak_mib:.0f}")
        for name, run in result.runs.items()
    ]
    return _table(("run", "exit code", "seconds", "peak MiB"), rows)


def _hostile(result: Rehearsal) -> list[str]:
    rows = []
    for row in result.hostile.to_dict("records"):
        got = row["source"] if row["listed"] else "not asked for"
        said = ", ".join(row["problems"]) if isinstance(row["problems"], list) else ""
        rows.append(
            (
                row["defect"],
                row["outcome"] if row["listed"] else "nothing",
                got,
                "WRONG: " + _short(row["fault"]) if row["fault"] else "ok",
                _short(row["cause"] or said, 80),
            )
        )
    return _table(("defect", "promised", "came from", "verdict", "cause or problems"), rows)


def _forecast(forecast: Forecast, hours: float) -> list[str]:
    rows = [
        (stage, f"{row.measured:.3f}", f"{row.factor:.2f}", f"{row.expected:.3f}")
        for stage, row in forecast.stages.iterrows()
    ]
    fits = "fits" if forecast.hours <= hours else "DOES NOT FIT"
    return [
        f"{forecast.studies:,} hidden studies: {forecast.hours:.2f} h with decoding ahead of the "
        f"networks, {forecast.serial_hours:.2f} h one stage after the other; {fits} the limit of "
        f"{hours:g} h on this machine.",
        "",
        *_table(("stage", "measured s/study", "factor", "expected s/study"), rows),
        "",
        "Assumed:",
        *(f"- {assumption}" for assumption in forecast.assumptions),
    ]


def render_page(result: Rehearsal) -> str:
    """One page: verdict, checks, place, runs, hostile studies, score, forecast."""
    failed = [check for check in result.checks if not check.ok]
    verdict = (
        f"PASSED, {len(result.checks)} checks"
        if result.ok
        else f"FAILED: {len(failed)} of {len(result.checks)} checks"
    )
    lines = [f"# Rehearsal of {result.config.name}: {verdict}", ""]
    lines += _table(
        ("", "check", "detail"),
        [("ok" if c.ok else "WRONG", c.name, _short(c.detail, 160)) for c in result.checks],
    )
    lines += ["", "## Where it ran", "", *_place(result), "", *_runs(result)]
    if result.score is not None and result.score_of_priors is not None:
        lines += [
            "",
            f"Score of the {result.score.n_studies} sound studies with known truth: metric A "
            f"{result.score.per_exam:.4f}, B {result.score.whole:.4f}; the priors alone give A "
            f"{result.score_of_priors.per_exam:.4f}, B {result.score_of_priors.whole:.4f}.",
        ]
    if result.forecast is not None:
        hours = result.config.kernel.hours
        lines += ["", "## Forecast", "", *_forecast(result.forecast, hours)]
    if not result.hostile.empty:
        lines += ["", "## Hostile studies", "", *_hostile(result)]
    return "\n".join(lines) + "\n"

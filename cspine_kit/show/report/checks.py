"""Numbered checks of a run: what a careful reader would look for first.

In: a `Run`. Out: `Check`s: pass, warn, fail or not yet, each with its figure and what to do.
Example::

    from cspine_kit.show.report.run import Run

    found = run_checks(Run(config, paths, Path("submissions")), {})
    [(check.number, check.name, check.verdict) for check in found]

Each check is a function of tables, so that it can be tried on made faults.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cspine_kit.core.metric import Form
from cspine_kit.show.report.check import Check
from cspine_kit.show.report.checks_data import (
    constant_feature,
    imbalance,
    leak,
    left_out,
    stale,
)
from cspine_kit.show.report.checks_scores import (
    calibration,
    harmful_member,
    shift,
    worse_than_mean,
)
from cspine_kit.show.report.run import Run


def run_checks(run: Run, state: Mapping[str, Any]) -> list[Check]:
    """Every check, numbered.

    Args:
        run: the run.
        state: of `show.info.describe`, {} where it is not known.
    """
    form: Form = run.config.stack.form
    rows = {"vertebra": run.vertebra, "oof_slices": run.oof_slices, "features": run.features}
    found = [
        leak(run.train, run.folds, rows, run.lineage),
        imbalance(run.train),
        constant_feature(run.features),
        calibration(run.train, run.predictions),
        harmful_member(run.worth, form),
        worse_than_mean(run.scores, form),
        shift(run.predictions, run.submission),
        stale(state),
        left_out(run.failures, run.train),
    ]
    return [replace(check, number=i) for i, check in enumerate(found, start=1)]

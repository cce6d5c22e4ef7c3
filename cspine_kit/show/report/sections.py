"""Which figures the report has, in their order, and what each of them needs.

In: nothing. Out: `SECTIONS`. Example::

    from cspine_kit.show.report.run import Run

    run = Run(config, paths, Path("submissions"))
    [plan.title for plan in SECTIONS["data"] if plan.missing(run) is None]

A plan names properties of `Run`; where one of them is None the page says in a line what makes it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.show.ablation.picture import gains
from cspine_kit.show.report import (
    compared,
    data,
    fracture,
    kernel,
    pictures,
    stack,
    vertebra,
)
from cspine_kit.show.report.figure import (
    MEAN_COLOR,
    SHIPS_COLOR,
    Figure,
    drawn,
)
from cspine_kit.show.report.run import Run
from cspine_kit.show.report.worst import worst_study
from cspine_kit.stack.model.stack import SHIPPED
from cspine_kit.stack.scores.baselines import CONSTANT, MEAN_OF_MEMBERS
from cspine_kit.stack.scores.operating import BEST_F1
from cspine_kit.stack.scores.pictures import calibration_sheet

WORST = 20
EXPLAINED, CURVES = 3, 3
"""Studies of one figure."""

MAKERS = {
    **dict.fromkeys(("studies", "slices", "train"), "make oof"),
    **dict.fromkeys(("folds", "scans", "masked", "vertebra", "judged", "levels"), "make oof"),
    **dict.fromkeys(("oof_slices", "axial", "vertebra_history", "member_history"), "make oof"),
    **dict.fromkeys(("predictions", "scores", "worth", "operating"), "make stack"),
    **dict.fromkeys(("contributions", "effort"), "make stack"),
    "kernel": "cspine kernel",
    "ablation": "make ablate",
    "backbones": "make backbones",
    "fracture_backbones": "cspine backbones --stage fracture",
    "detections": "make oof with a member of kind boxes",
    "tested": "make score",
}
"""The command that makes what a figure needs."""


@dataclass(frozen=True)
class Plan:
    """A figure to be: its title, the properties of `Run` it needs, and who draws it."""

    title: str
    needs: tuple[str, ...]
    draw: Callable[[Run], Figure]

    def missing(self, run: Run) -> str | None:
        """The first thing that is not there yet."""
        return next((need for need in self.needs if getattr(run, need) is None), None)


def _told_apart(run: Run) -> dict[str, str]:
    """Studies whose curves are worth a look, and why: by the stack's answer, else by label."""
    if run.predictions is None:
        order = run.train.sort_values("patient_overall", ascending=False, kind="stable")
        known = order[order["study_uid"].isin(set(run.axial["study_uid"]))]
        picked = known.iloc[[*range(min(2, len(known) - 1)), -1]]
        return {
            uid: "a fracture" if broken else "no fracture"
            for uid, broken in picked[["study_uid", "patient_overall"]].itertuples(index=False)
        }
    table = stack.worst(run.train, run.predictions, SHIPPED, len(run.train))
    table = table[table["study_uid"].isin(set(run.axial["study_uid"]))]
    broken = table["patient_overall"] == 1.0
    picked = {}
    for rows, last, why in (
        (table[broken], -1, "found"),
        (table[broken], 0, "missed most"),
        (table[~broken], 0, "worst false alarm"),
    ):
        if len(rows):
            row = rows.iloc[last]
            picked[row["study_uid"]] = f"{why} ({row['said_patient_overall']:.2f})"
    return picked


def _level_curves(run: Run) -> Figure:
    seen = run.train[run.train["study_uid"].isin(set(run.vertebra["study_uid"]))]
    order = seen.sort_values(["has_mask", "study_uid"], ascending=[False, True])
    return vertebra.level_curves(run.vertebra, run.levels, list(order["study_uid"][:CURVES]))


def _beside(run: Run) -> Figure:
    members = [m for m in run.config.members if m in set(run.axial["member"])]
    shown = _told_apart(run)
    return fracture.beside(run.axial, run.levels, run.train, member=members[0], shown=shown)


def _aucs(run: Run) -> Figure:
    ends = {MEAN_OF_MEMBERS: MEAN_COLOR, SHIPPED: SHIPS_COLOR}
    return fracture.aucs(run.scores, {**{m: run.colors[m] for m in run.config.members}, **ends})


def _roc(run: Run) -> Figure:
    return fracture.roc(*fracture.labels_and_probs(run.train, run.predictions, SHIPPED))


def _parts(run: Run) -> Figure:
    """A fracture that was found, the one that was missed most, and the worst false alarm."""
    table = stack.worst(run.train, run.predictions, SHIPPED, len(run.train))
    table = table[table["study_uid"].isin(set(run.contributions.study_uid))]
    found = [
        (row["loss"], row["study_uid"], level, row[level], row[f"said_{level}"])
        for row in table.to_dict("records")
        for level in LEVELS
    ]
    broken = [f for f in found if f[3] == 1.0]
    sound = [f for f in found if f[3] == 0.0]
    picked = [
        *([(max(broken, key=lambda f: f[4]), "found")] if broken else []),
        *([(min(broken, key=lambda f: f[4]), "missed")] if broken else []),
        *([(max(sound, key=lambda f: f[4]), "false alarm")] if sound else []),
    ]
    shown = [(uid, level, f"{why} ({said:.2f})") for (_, uid, level, _, said), why in picked]
    return stack.parts(run.contributions, shown[:EXPLAINED])


def _calibration(run: Run) -> Figure:
    sheet = calibration_sheet(run.predictions, run.train, [MEAN_OF_MEMBERS, SHIPPED])
    sheet.suptitle("")
    sheet.set_size_inches(8.8, 4.4)
    return drawn(
        sheet,
        "Predicted against observed share with 95 % intervals. Dotted: what is said comes true. "
        "Dashed: where the metric's double weight of positives wants form B. Points between the "
        "two lines are right; a curve flatter than both is too sure.",
    )


def worst_plans(run: Run) -> list[Plan]:
    """One plan for each of the worst studies; none before there are predictions."""
    if run.predictions is None or run.train is None or run.axial is None or run.levels is None:
        return []
    table = stack.worst(run.train, run.predictions, SHIPPED, WORST)

    def draw(row: dict[str, object]) -> Callable[[Run], Figure]:
        def drawing(of: Run) -> Figure:
            uid = row["study_uid"]
            rows = of.axial[of.axial["study_uid"] == uid]
            spans = of.levels[of.levels["study_uid"] == uid].sort_values("level")
            return worst_study(row, rows, spans, of.scan(str(uid), of.fine), of.colors)

        return drawing

    seen = set(run.axial["study_uid"])
    return [
        Plan(f"Worst study {i}", (), draw(row))
        for i, row in enumerate(table.to_dict("records"), start=1)
        if row["study_uid"] in seen
    ]


SECTIONS: dict[str, tuple[Plan, ...]] = {
    "data": (
        Plan("Fractures", ("train",), lambda run: data.fractures(run.train)),
        Plan("Levels that break together", ("train",), lambda run: data.together(run.train)),
        Plan("Slices and spacing", ("studies",), lambda run: data.geometry(run.studies)),
        Plan("Folds", ("train", "folds"), lambda run: data.fold_shares(run.train)),
        Plan("What the reader met", ("studies",), lambda run: data.problems(run.studies)),
        Plan(
            "Masks over slices",
            ("scans",),
            lambda run: pictures.masks_over_slices(run.scans[0]),
        ),
        Plan("Side views", ("scans",), lambda run: pictures.side_views(run.scans)),
        Plan("A walk through the neck", ("scans",), lambda run: pictures.walk(run.scans[0])),
    ),
    "vertebra": (
        Plan(
            "Training of the vertebra networks",
            ("vertebra_history",),
            lambda run: fracture.learning(run.vertebra_history, run.colors),
        ),
        Plan("Levels slice by slice", ("train", "vertebra", "levels"), _level_curves),
        Plan(
            "Confusion of presence",
            ("judged",),
            lambda run: vertebra.confusion(run.judged),
        ),
        Plan(
            "Presence by headers, networks and decode",
            ("judged",),
            lambda run: vertebra.presence(run.judged),
        ),
        Plan("Backbones", ("backbones",), lambda run: compared.backbones(run.backbones)),
        Plan(
            "Error of the centers",
            ("levels", "masked"),
            lambda run: vertebra.centers(vertebra.center_errors(run.levels, run.masked)),
        ),
    ),
    "fracture": (
        Plan(
            "Training of the members",
            ("member_history",),
            lambda run: fracture.learning(run.member_history, run.colors),
        ),
        Plan(
            "What members say of levels",
            ("axial", "train"),
            lambda run: fracture.separation(run.axial, run.train),
        ),
        Plan("Fracture curves beside vertebra curves", ("axial", "levels", "train"), _beside),
        Plan("AUC per level", ("scores",), _aucs),
        Plan(
            "The members' worth",
            ("worth",),
            lambda run: fracture.worths(run.worth, run.config.stack.form, run.colors),
        ),
        Plan("ROC and precision-recall", ("train", "predictions"), _roc),
        Plan(
            "Confusion at the frozen thresholds",
            ("operating",),
            lambda run: fracture.confusions(run.operating, BEST_F1),
        ),
        Plan(
            "Boxes around fractures",
            ("detections",),
            lambda run: compared.boxes(run.detections, run.colors),
        ),
        Plan(
            "Backbones of members",
            ("fracture_backbones",),
            lambda run: compared.fracture_backbones_figure(run.fracture_backbones),
        ),
        Plan("Ablation", ("ablation",), lambda run: gains(run.ablation)),
    ),
    "stack": (
        Plan("Scores and baselines", ("scores",), lambda run: stack.baselines(run.scores)),
        Plan(
            "Out-of-fold and hidden truth",
            ("tested",),
            lambda run: stack.tested(run.tested, run.config.stack.form),
        ),
        Plan("Calibration", ("train", "predictions"), _calibration),
        Plan(
            "What the stack listens to",
            ("contributions",),
            lambda run: stack.importances(run.contributions.importances()),
        ),
        Plan("What made an answer", ("contributions", "predictions", "train"), _parts),
        Plan(
            "Where the loss comes from",
            ("train", "predictions"),
            lambda run: stack.loss_parts(
                run.train, run.predictions, [CONSTANT, MEAN_OF_MEMBERS, SHIPPED]
            ),
        ),
        Plan(
            "Loss by study",
            ("train", "predictions"),
            lambda run: stack.losses(run.train, run.predictions, SHIPPED),
        ),
    ),
    "kernel": (
        Plan(
            "Time per study and stage",
            ("kernel",),
            lambda run: kernel.times(run.kernel, run.config.kernel.hours),
        ),
        Plan("Sources of the answers", ("kernel",), lambda run: kernel.sources(run.kernel)),
        Plan("Effort", ("effort",), lambda run: kernel.effort(run.effort, run.colors)),
    ),
}
"""Plans by section."""

"""Fitting the stack: what ships is fitted on all rows, what is quoted on rows that were held out.

In: out-of-fold features and labels. Out: a `Fit`: the stack, and out-of-fold probabilities of
everything that was tried. Example::

    from cspine_kit.stack.inputs import read_inputs

    inputs = read_inputs(config.stack, paths)
    few = config.stack.model_copy(update={"folds": 2, "rounds": 5, "seeds": 1})
    fit = fit_stack(inputs.features(), inputs.seen, few, seed=1, without=inputs.features)
    fit.stack.save(Path("models"))
    fit.probs["stack"], fit.worth

Two kinds of folds say how the heads fare: folds of their own that cross the networks' folds
(`stack`: heads know the outputs of every fold model, as those that ship do), and the networks'
folds themselves (`stack_strict`: heads have never seen an output of the fold model they judge).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.config import StackConfig
from cspine_kit.core.metric import bootstrap_interval, metric
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray
from cspine_kit.core.runs import derive_seed
from cspine_kit.stack.features.names import (
    COLUMN,
    RAW,
    external_members,
    feature_columns,
    own_members,
    signal_of,
    slice_members,
)
from cspine_kit.stack.model.folds import Progress, deal_folds
from cspine_kit.stack.model.linear import one_blas_thread
from cspine_kit.stack.model.nested import Sample, cross_fit, fit_heads, sample_of
from cspine_kit.stack.model.stack import (
    SHIPPED,
    SLICES_ONLY,
    STACK,
    Stack,
    slice_columns,
)
from cspine_kit.stack.scores.baselines import MEAN_OF_MEMBERS, formulas
from cspine_kit.stack.scores.operating import choose_points
from cspine_kit.stack.scores.table import FORMS

STRICT = "stack_strict"
ALL_MEMBERS = "stack_all_members"
"""The stack before members that certainly harm it were left out; only where some were."""

COLUMNS_ABSENT = "stack_columns_absent"
"""The stack where nothing is known of the raw columns, as in a kernel that has no such file."""

FEW_STUDIES = 1000
"""Below this many the stack has twice the folds: heads of nine tenths of few studies are nearer to
those that ship than heads of four fifths."""

WORTH_COLUMNS = tuple(f"{f}{e}" for f in FORMS for e in ("", "_low", "_high"))


@dataclass(frozen=True)
class Fit:
    """A fitted stack and how it fares.

    `study_uid`, `fold` (n,): the studies, and the stack fold that held each out; `y` (n, 8): their
    labels. `probs`: (n, 8) out-of-fold probabilities by model, the fixed formulas among them.
    `worth`: one row per member: how much the loss rises without it (per_exam and global, with 95 %
    limits), and `kept`.
    """

    stack: Stack
    study_uid: Any
    fold: IntArray
    y: FloatArray
    probs: dict[str, FloatArray]
    worth: pd.DataFrame


def members_of(features: pd.DataFrame) -> tuple[str, ...]:
    """Members whose features a frame holds; raw columns count as one, `raw`."""
    names = feature_columns(features.columns)
    raw = (RAW,) if any(signal_of(c) == COLUMN for c in names) else ()
    return (*own_members(names), *external_members(names), *raw)


def fold_count(studies: int, config: StackConfig) -> int:
    """Folds of the stack for so many studies."""
    return min(config.folds * (2 if studies < FEW_STUDIES else 1), studies)


def fit_count(features: pd.DataFrame, config: StackConfig) -> int:
    """How often `fit_stack` calls `progress`, where no member is left out."""
    members = len(members_of(features))
    networks = features["model_fold"].nunique()
    worth = members if members > 1 else 0
    alone = int(bool(slice_members(features.columns)))
    folds = fold_count(features["study_uid"].nunique(), config)
    return (1 + worth + alone) * folds + (networks if networks > 1 else 0) + 1 + alone


def _member_worth(
    sample: Sample, without: Mapping[str, FloatArray], probs: FloatArray, rows: BoolArray
) -> pd.DataFrame:
    """How much the loss rises without each member, on some of the studies."""
    y, found = sample.y[rows], []
    for name, other in without.items():
        row: dict[str, Any] = {"member": name}
        for form in FORMS:
            low, high = bootstrap_interval(y, other[rows], form, others=probs[rows])
            gain = metric(y, other[rows], form) - metric(y, probs[rows], form)
            row |= {form: gain, f"{form}_low": low, f"{form}_high": high}
        harms = row[f"{sample.config.form}_high"] < 0.0
        found.append(row | {"kept": not harms or name in sample.config.keep})
    frame = pd.DataFrame(found, columns=["member", *WORTH_COLUMNS, "kept"])
    if len(frame) and not frame["kept"].any():
        frame.loc[frame[sample.config.form].astype(float).idxmax(), "kept"] = True
    return frame


def fit_stack(
    features: pd.DataFrame,
    labels: pd.DataFrame,
    config: StackConfig,
    *,
    seed: int,
    jobs: int = 0,
    without: Callable[[tuple[str, ...]], pd.DataFrame] | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit the stack that ships on all rows, and everything that says how good it is.

    Args:
        features: out-of-fold rows (fold == model_fold).
        labels: study_uid and the eight targets of every study in `features`; an optional column
            `group` keeps patients together in all folds.
        config: the stack's section.
        seed, jobs, progress: as in `each_fold`.
        without: the features of the same studies without some members; where it is given, each
            member's worth is measured, and one that certainly harms is left out unless
            `config.keep` names it.

    Raises:
        TableError: rows that may have leaked, or faulty labels.
    """
    sample = sample_of(features, labels, config)
    networks = sample.table.model_fold
    folds = fold_count(sample.table.n, config)
    fold = deal_folds(sample.labels, derive_seed(seed, "stack"), folds, networks)
    common: dict[str, Any] = {"seed": seed, "jobs": jobs, "progress": progress}
    full, absent, settings = cross_fit(sample, fold, **common)
    members = members_of(features)
    rest: dict[str, FloatArray] = {}
    if without is not None and len(members) > 1:
        for name in members:
            less = sample_of(without((name,)), labels, config)
            rest[name] = cross_fit(less, fold, settings=settings, **common)[0]
    worth = _member_worth(sample, rest, full, np.ones(len(fold), dtype=bool))
    dropped = tuple(worth.loc[~worth["kept"].astype(bool), "member"])
    probs = {STACK: full, **formulas(features)}
    if dropped and without is not None:
        probs[ALL_MEMBERS] = full
        features = without(dropped)
        sample = sample_of(features, labels, config)
        probs[STACK], absent, settings = cross_fit(sample, fold, **common)
        probs |= formulas(features)
    if any(signal_of(c) == COLUMN for c in sample.table.columns):
        probs[COLUMNS_ABSENT] = absent
    samples = {STACK: sample}
    only = slice_columns(sample.table.columns)
    if only:
        part = samples[SLICES_ONLY] = replace(sample, table=sample.table.only(only))
        probs[SLICES_ONLY] = cross_fit(part, fold, settings=settings, **common)[0]
    if len(np.unique(networks)) > 1:
        probs[STRICT] = cross_fit(sample, networks, **common)[0]
    heads = {}
    for name, own in samples.items():
        with one_blas_thread():
            heads[name], _ = fit_heads(own, seed=derive_seed(seed, "all"))
        if progress is not None:
            progress()
    ships, probs[SHIPPED] = _choose(sample, fold, probs, rest, dropped)
    stack = Stack(
        heads=heads,
        members=members_of(features),
        folds=tuple(sorted({int(k) for k in sample.table.model_fold})),
        clip=config.clip,
        ships=ships,
        points=choose_points(sample.y, probs[SHIPPED], config.sensitivities),
        notes={"form": config.form, "left_out": list(dropped)},
    )
    return Fit(stack, sample.table.study_uid, fold, sample.y, probs, worth)


def _choose(
    sample: Sample,
    fold: IntArray,
    probs: Mapping[str, FloatArray],
    rest: Mapping[str, FloatArray],
    dropped: tuple[str, ...],
) -> tuple[str, FloatArray]:
    """The model that ships, and out-of-fold probabilities that carry the same choices.

    The stack ships where its loss is below that of the members' plain mean, if there is one. For
    the studies of fold k both choices, which members stay and which model ships, are made on the
    other folds, so that what is quoted was not chosen on what it is quoted on.
    """
    form, shipped = sample.config.form, np.zeros_like(sample.y)
    if MEAN_OF_MEMBERS not in probs:
        return STACK, probs[STACK]

    def better(rows: BoolArray, stack: FloatArray) -> str:
        y, mean = sample.y[rows], probs[MEAN_OF_MEMBERS][rows]
        return STACK if metric(y, stack[rows], form) < metric(y, mean, form) else MEAN_OF_MEMBERS

    for k in np.unique(fold):
        others, stack = fold != k, probs[STACK]
        if dropped:
            worth = _member_worth(sample, rest, probs[ALL_MEMBERS], others)
            if not set(dropped) & set(worth.loc[~worth["kept"].astype(bool), "member"]):
                stack = probs[ALL_MEMBERS]
        chosen = {STACK: stack, MEAN_OF_MEMBERS: probs[MEAN_OF_MEMBERS]}[better(others, stack)]
        shipped[~others] = chosen[~others]
    return better(np.ones(len(fold), dtype=bool), probs[STACK]), shipped

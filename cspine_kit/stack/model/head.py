"""One predictor of the stack: a ridge line in log-odds, corrected by LightGBM.

In: a `Task` (rows of features, labels, weights and inner folds). Out: a fitted `Head` and its inner
out-of-fold probabilities. Example::

    x, y = rng.normal(size=(60, 3)), rng.integers(0, 2, 60).astype(float)
    one, free = np.zeros(60, dtype=int), np.zeros(3, dtype=bool)
    design = Design(x, x.astype(np.float32), one, 1, (False,) * 3, np.ones(3), free)
    task = Task(design, y, np.ones(60), np.arange(60) % 4)
    head, inner_probs = fit_head(task, config.stack, seed=1)
    head.odds(design)

How strong the ridge is and how many trees follow is chosen on the inner folds only; "no trees" is a
valid choice and often the right one on a few hundred rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.config import StackConfig
from cspine_kit.core.numbers import FloatArray, IntArray, log_losses, sigmoid
from cspine_kit.core.runs import derive_seed
from cspine_kit.stack.model.linear import Ridge, fit_ridge

PENALTIES = (1000.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
"""Tried from strong to weak: each line starts where the one before it ended."""

MAX_BIN = 63
"""Histogram bins: as good as 255 out-of-fold on this kind of table and four times faster."""

WORTH = 1e-4
"""Relative gain of the inner loss below which more trees are not taken."""


class Settings(NamedTuple):
    """What the inner folds chose: strength of the ridge and number of trees."""

    penalty: float
    rounds: int


@dataclass(frozen=True)
class Design:
    """Rows as both parts of a head see them.

    `line` (n, a) holds what the ridge reads (log-odds and lengths), `tree` (n, b) float32 what the
    trees read, `category` (n,) the row's kind 0..n_categories - 1 (it is a tree feature too), and
    `rising` says for each tree column whether the probability may only grow with it.
    """

    line: FloatArray
    tree: NDArray[np.float32]
    category: IntArray
    n_categories: int
    rising: tuple[bool, ...]
    doubt: FloatArray
    line_rising: NDArray[np.bool_]

    def take(self, rows: NDArray[np.bool_]) -> "Design":
        """The same columns for some rows."""
        return replace(
            self, line=self.line[rows], tree=self.tree[rows], category=self.category[rows]
        )

    @property
    def matrix(self) -> NDArray[np.float32]:
        """What LightGBM reads: the tree columns, then the category."""
        return np.column_stack([self.tree, self.category.astype(np.float32)])


@dataclass(frozen=True)
class Head:
    """A ridge and one booster per seed; `settings` are what the inner folds chose."""

    ridge: Ridge
    boosters: tuple[lgb.Booster, ...]
    settings: "Settings"

    def odds(self, design: Design) -> FloatArray:
        """Log-odds (n,): the line plus the mean of the trees over seeds."""
        line = self.ridge.odds(design.line, design.category)
        if not self.boosters:
            return line
        matrix = design.matrix
        raw = [b.predict(matrix, raw_score=True, num_threads=1) for b in self.boosters]
        total: FloatArray = line + np.mean(np.asarray(raw), axis=0)
        return total

    def save(self, folder: Path, stem: str) -> dict[str, Any]:
        """Write each booster as LightGBM text into `folder`; returns the rest as plain values."""
        files = [f"{stem}_{s}.txt" for s in range(len(self.boosters))]
        for file, booster in zip(files, self.boosters, strict=True):
            (folder / file).write_text(booster.model_to_string())
        return {"ridge": vars(self.ridge), "boosters": files, "settings": self.settings}

    @classmethod
    def load(cls, folder: Path, value: dict[str, Any]) -> "Head":
        """Inverse of `save`."""
        boosters = [lgb.Booster(model_str=(folder / f).read_text()) for f in value["boosters"]]
        return cls(Ridge.from_json(value["ridge"]), tuple(boosters), Settings(*value["settings"]))


def _parameters(config: StackConfig, design: Design, seed: int) -> dict[str, Any]:
    return {
        "objective": "binary",
        "boost_from_average": False,
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_rows,
        "feature_fraction": config.feature_fraction,
        "bagging_fraction": config.bagging_fraction,
        "bagging_freq": 1,
        "lambda_l2": config.l2,
        "extra_trees": config.extra_trees,
        "max_bin": MAX_BIN,
        "monotone_constraints": [int(r) for r in design.rising] + [0],
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "metric": "None",
        "verbosity": -1,
    }


def _dataset(
    task: "Task", line: FloatArray, config: StackConfig, reference: lgb.Dataset | None = None
) -> lgb.Dataset:
    return lgb.Dataset(
        task.design.matrix,
        reference=reference,
        label=task.y,
        weight=task.weights,
        init_score=line,
        categorical_feature=[len(task.design.rising)],
        params={
            "max_bin": MAX_BIN,
            "min_data_in_leaf": config.min_rows,
            "num_threads": 1,
            "verbosity": -1,
        },
    )


@dataclass(frozen=True)
class Task:
    """What a head is fitted on: n rows, labels 0 / 1, weights (mean 1) and inner fold per row."""

    design: Design
    y: FloatArray
    weights: FloatArray
    inner: IntArray

    def loss(self, probs: FloatArray) -> float:
        """Weighted mean log loss of (n,) probabilities."""
        return float(np.average(log_losses(self.y, probs), weights=self.weights))

    def splits(self) -> Iterator[tuple[int, "Task", NDArray[np.bool_]]]:
        """Inner fold, the task without it, and the mask of its rows."""
        for j in np.unique(self.inner):
            held = self.inner == j
            yield int(j), self.take(~held), held

    def take(self, rows: NDArray[np.bool_]) -> "Task":
        """The same task on some rows."""
        return Task(self.design.take(rows), self.y[rows], self.weights[rows], self.inner[rows])

    def ridge(self, penalty: float, start: Ridge | None = None) -> Ridge:
        """The line fitted on all rows."""
        return fit_ridge(
            self.design.line,
            self.y,
            self.weights,
            self.design.category,
            n_categories=self.design.n_categories,
            penalty=penalty * self.design.doubt,
            rising=self.design.line_rising,
            start=start,
        )


def _choose_penalty(
    task: Task, penalties: Sequence[float]
) -> tuple[float, FloatArray, dict[int, Ridge]]:
    """The best ridge penalty on the inner folds, its out-of-fold log-odds, and the inner ridges."""
    splits = list(task.splits())
    last: dict[int, Ridge] = {}
    tried = []
    for penalty in penalties:
        odds = np.zeros(len(task.y))
        last = {j: rest.ridge(penalty, last.get(j)) for j, rest, _ in splits}
        for j, _, held in splits:
            odds[held] = last[j].odds(task.design.line[held], task.design.category[held])
        tried.append((task.loss(sigmoid(odds)), penalty, odds, last))
    _, penalty, odds, ridges = min(tried, key=lambda t: t[0])
    return penalty, odds, ridges


def _choose_rounds(
    task: Task,
    odds: FloatArray,
    ridges: dict[int, Ridge],
    config: StackConfig,
    *,
    rounds: int | None,
    seed: int,
) -> tuple[int, FloatArray]:
    """Trees that pay on the pooled inner folds, and the out-of-fold probabilities with them.

    All inner boosters grow together, one tree a round: stopping is decided on every held-out row at
    once instead of fold by fold. With `rounds` given, exactly so many grow.
    """
    grown = []
    for j, rest, held in task.splits():
        line = ridges[j].odds(rest.design.line, rest.design.category)
        data = _dataset(rest, line, config)
        booster = lgb.Booster(_parameters(config, task.design, seed), data)
        unseen = task.take(held)
        booster.add_valid(_dataset(unseen, odds[held], config, reference=data), "held")
        grown.append((booster, held))
    probs = sigmoid(odds)
    best_loss, best_round, best_probs = task.loss(probs) * (1.0 - WORTH), 0, probs
    for done in range(1, (config.rounds if rounds is None else rounds) + 1):
        for booster, _ in grown:
            booster.update()
        if rounds is not None and done < rounds:
            continue
        probs = np.empty(len(task.y))
        for booster, held in grown:
            probs[held] = _held_probs(booster)
        loss = task.loss(probs)
        if loss < best_loss or rounds is not None:
            best_loss, best_round, best_probs = loss, done, probs
        elif done - best_round >= config.patience:
            break
    return best_round, best_probs


def _held_probs(booster: lgb.Booster) -> FloatArray:
    """Current probabilities of the booster's validation rows, which LightGBM keeps up to date."""
    caught = []

    def catch(probs: FloatArray, _: lgb.Dataset) -> tuple[str, float, bool]:
        caught.append(np.array(probs, dtype=np.float64))
        return "caught", 0.0, False

    booster.eval_valid(catch)
    return caught[0]


def fit_head(
    task: Task, config: StackConfig, *, seed: int, settings: Settings | None = None
) -> tuple[Head, FloatArray]:
    """Fit on all rows; choose ridge strength and tree count on the inner folds only.

    Args:
        task, config, seed: rows; settings and seed of the boosters.
        settings: what a fit of the same rows has chosen, to be taken as it is.

    Returns:
        The head and its inner out-of-fold probabilities (n,).
    """
    penalties = PENALTIES if settings is None else (settings.penalty,)
    penalty, odds, ridges = _choose_penalty(task, penalties)
    own = derive_seed(seed, "inner")
    rounds = None if settings is None else settings.rounds
    rounds, probs = _choose_rounds(task, odds, ridges, config, rounds=rounds, seed=own)
    ridge = task.ridge(penalty)
    boosters = []
    if rounds:
        line = ridge.odds(task.design.line, task.design.category)
        for s in range(config.seeds):
            parameters = _parameters(config, task.design, derive_seed(seed, "final", s))
            data = _dataset(task, line, config)
            boosters.append(lgb.train(parameters, data, num_boost_round=rounds))
    return Head(ridge, tuple(boosters), Settings(penalty, rounds)), probs

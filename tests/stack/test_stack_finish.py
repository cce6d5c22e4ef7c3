"""Calibration, coherence, clip and blends: each helps where it should and stays away elsewhere."""

import json

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import row_weights
from cspine_kit.core.numbers import logit, sigmoid
from cspine_kit.stack.model.blend import (
    blend,
    greedy_weights,
    rank_mean,
    rank_predictions,
    search_weights,
)
from cspine_kit.stack.model.calibrate import (
    FITS,
    Calibrator,
    Finish,
    choose_calibrator,
    cohere,
    fit_finish,
    shift_prior,
)
from cspine_kit.stack.scores.baselines import long_predictions


def draw(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True probabilities, labels drawn from them, inner folds."""
    rng = np.random.default_rng(seed)
    p = sigmoid(rng.normal(-1.0, 1.5, size=n))
    return p, (rng.random(n) < p).astype(float), np.arange(n) % 4


def loss(y: np.ndarray, p: np.ndarray) -> float:
    return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean())


@pytest.mark.parametrize("kind", list(FITS))
def test_every_calibrator_repairs_overconfidence(kind: str) -> None:
    p, y, _ = draw()
    bad = sigmoid(2.0 * logit(p))
    fitted = FITS[kind](kind, bad[:2000], y[:2000], np.ones(2000))
    repaired = fitted.apply(bad[2000:])
    assert loss(y[2000:], repaired) < loss(y[2000:], bad[2000:])
    assert loss(y[2000:], repaired) < loss(y[2000:], p[2000:]) + 0.01
    order = np.argsort(bad[2000:])
    assert (np.diff(repaired[order]) >= -1e-12).all()


def test_calibrated_probabilities_are_left_alone() -> None:
    p, y, inner = draw()
    chosen, held = choose_calibrator(p, y, np.ones(len(y)), inner)
    assert chosen.kind == "identity"
    assert (held == p).all()
    assert choose_calibrator(sigmoid(2 * logit(p)), y, np.ones(len(y)), inner)[0].kind != "identity"


def test_finish_is_inside_the_clip_and_survives_json() -> None:
    rng = np.random.default_rng(1)
    probs = sigmoid(rng.normal(-1, 1.5, size=(800, 8)))
    labels = (rng.random((800, 8)) < probs).astype(float)
    w = row_weights(labels)
    finish = fit_finish(sigmoid(2.5 * logit(probs)), labels, w, np.arange(800) % 4, clip=0.003)
    assert finish.level.kind != "identity"
    final = finish.apply(np.full((3, 8), 1e-9))
    assert final.min() >= finish.clip
    again = Finish.from_json(json.loads(json.dumps(finish.to_json())))
    assert (again.apply(probs) == finish.apply(probs)).all()


def test_coherence_moves_toward_the_noisy_or() -> None:
    levels = np.array([[0.5, 0.5, 0, 0, 0, 0, 0]])
    assert cohere(np.array([0.2]), levels, 0.0)[0] == 0.2
    assert cohere(np.array([0.2]), levels, 1.0)[0] == pytest.approx(0.75)
    assert 0.2 < cohere(np.array([0.2]), levels, 0.5)[0] < 0.75


def test_prior_shift_undoes_another_prevalence() -> None:
    p, y, _ = draw(20000)
    rng = np.random.default_rng(2)
    keep = (y > 0.5) | (rng.random(len(y)) < 0.3)
    trained, true = float(y.mean()), float(y[keep].mean())
    shifted = shift_prior(p[keep], trained, true)
    assert shifted.mean() == pytest.approx(true, abs=0.03)
    assert loss(y[keep], shifted) < loss(y[keep], p[keep]) - 0.02
    assert shift_prior(p, trained, trained) == pytest.approx(p)


def test_blends_find_the_better_model() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(-1, 1.5, size=(1500, 8))
    labels = (rng.random(truth.shape) < sigmoid(truth)).astype(float)
    models = {
        "good": sigmoid(truth + rng.normal(scale=0.3, size=truth.shape)),
        "twin": sigmoid(truth + rng.normal(scale=0.3, size=truth.shape)),
        "noise": sigmoid(rng.normal(size=truth.shape)),
    }
    w = np.ones_like(labels)
    for find in (greedy_weights, search_weights):
        weights = find(models, labels, w)
        assert sum(weights.values()) == pytest.approx(1.0, abs=2e-3)
        assert weights.get("noise", 0.0) < 0.1
        assert weights["good"] > 0.3 and weights["twin"] > 0.3
        mixed = blend(models, weights)
        assert loss(labels, mixed) < loss(labels, models["good"])
    ranks = rank_mean({"good": models["good"], "twin": models["twin"]})
    assert loss(labels, ranks) < loss(labels, models["noise"])
    assert ranks.shape == labels.shape


def test_rank_mean_ranks_inside_each_fold() -> None:
    rng = np.random.default_rng(4)
    uids = [f"1.2.{i}" for i in range(12)]
    fold = pd.Series(np.arange(12) % 2, index=uids)
    tables = {}
    for name in ("a", "b"):
        wide = pd.DataFrame(rng.uniform(0.1, 0.9, size=(12, 8)), columns=list(TARGETS))
        wide.insert(0, "study_uid", uids)
        tables[name] = wide
    rows = pd.concat([long_predictions(name, wide, fold) for name, wide in tables.items()])
    mixed = rank_predictions(rows, ("a", "b"))
    assert set(mixed["model"]) == {"blend_rank"}
    alone = rank_predictions(rows[rows["fold"] == 1], ("a", "b"))
    same = mixed[mixed["fold"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, alone)


def test_identity_calibrator_changes_nothing() -> None:
    p = np.array([0.1, 0.9])
    assert (Calibrator().apply(p) == p).all()

"""Evaluations: figures that are known beforehand, and a page for scans of one's own."""

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cspine_kit.cli import main
from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.show.evaluation.cases import Cases, _facts, contrast_of
from cspine_kit.show.evaluation.numbers import (
    VERTEBRAE,
    discrimination,
    metrics,
    operating,
    subgroups,
)
from cspine_kit.show.evaluation.page import PAGE, render

N = 120


def made(seed: int = 0, strength: float = 2.0, absent: int = 0) -> Cases:
    """Studies whose log-odds are the truth's, plus noise."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((N, len(TARGETS))) < 0.3).astype(float)
    truth[:, -1] = truth[:, :-1].max(axis=1)
    odds = strength * (truth - 0.5) + rng.normal(size=truth.shape)
    probs = 1 / (1 + np.exp(-odds))
    probs[:absent, 6] = np.nan
    truth[np.isnan(probs)] = np.nan
    facts = pd.DataFrame({"coverage": np.where(np.arange(N) < N // 2, "parts", "all")})
    points = {t: {"best_f1": 0.5, "sensitivity_0.9": 0.2} for t in TARGETS}
    return Cases([str(k) for k in range(N)], truth, probs, facts, points, {}, [])


def test_auc_is_the_known_one_inside_its_interval():
    cases = made()
    table = discrimination(cases).set_index("target")
    for name, column in (("patient", -1), ("C3", 2)):
        known = roc_auc_score(cases.truth[:, column], cases.probs[:, column])
        row = table.loc[name]
        assert row["auc"] == pytest.approx(known) and row["auc_low"] < known < row["auc_high"]
    pooled = roc_auc_score(cases.truth[:, :7].ravel(), cases.probs[:, :7].ravel())
    assert table.loc[VERTEBRAE, "auc"] == pytest.approx(pooled)
    assert table.loc[VERTEBRAE, "n"] == 7 * N
    chance = discrimination(made(strength=0.0)).set_index("target")
    assert chance.loc[VERTEBRAE, "auc_low"] < 0.5 < chance.loc[VERTEBRAE, "auc_high"]


def test_calls_are_counted_at_the_frozen_thresholds():
    cases = made()
    table = operating(cases).set_index(["point", "target"])
    row = table.loc[("best_f1", "C3")]
    y, p = cases.truth[:, 2] > 0.5, cases.probs[:, 2]
    assert (row["tp"], row["fn"]) == ((y & (p >= 0.5)).sum(), (y & (p < 0.5)).sum())
    assert row["sensitivity_low"] < row["sensitivity"] < row["sensitivity_high"]
    low = table.loc[("sensitivity_0.9", VERTEBRAE)]
    assert low["sensitivity"] > table.loc[("best_f1", VERTEBRAE), "sensitivity"]
    assert low["specificity_low"] < low["specificity"] < low["specificity_high"]


def test_absent_levels_count_for_nothing():
    table = discrimination(made(absent=30)).set_index("target")
    assert (table.loc["C7", "n"], table.loc[VERTEBRAE, "n"]) == (N - 30, 7 * N - 30)
    assert metrics(made(absent=30))["studies"] == N - 30
    assert metrics(made(absent=N)) == {}


def test_a_target_without_threshold_is_never_called():
    cases = made()
    cases.points["C1"] = {}
    row = operating(cases).set_index(["point", "target"]).loc[("best_f1", "C1")]
    assert row["tp"] == row["fp"] == 0 and np.isnan(row["threshold"])


def test_intervals_of_pooled_vertebrae_are_of_patients():
    """Seven alike vertebrae of each patient say no more than one."""
    cases = made()
    for values in (cases.truth, cases.probs):
        values[:, :7] = values[:, :1]
    table = discrimination(cases).set_index("target")
    one, seven = (table.loc[n, "auc_high"] - table.loc[n, "auc_low"] for n in ("C1", VERTEBRAE))
    assert seven == pytest.approx(one, rel=0.15)


def test_subgroups_are_counted_and_small_ones_only_that():
    cases = made()
    cases.facts["contrast"] = ["yes"] * 3 + ["no"] * (N - 3)
    table = subgroups(cases, "best_f1").set_index(["by", "group", "target"])
    few = table.loc[("contrast", "yes", "patient")]
    assert few["studies"] == 3 and np.isnan(few["auc"])
    half = table.loc[("coverage", "all", "patient")]
    known = roc_auc_score(cases.truth[N // 2 :, -1], cases.probs[N // 2 :, -1])
    assert half["studies"] == N // 2 and half["auc"] == pytest.approx(known)


def test_the_page_holds_its_tables():
    cases = made()
    html = render(cases, discrimination(cases), operating(cases), subgroups(cases, "best_f1"))
    for word in ("Research use only", "Subgroups", "sensitivity_0.9", "coverage: parts"):
        assert word in html
    assert "http" not in html.split("</style>")[1].replace("http://www.w3.org", "")


def test_scans_of_ones_own_are_evaluated(run, bundle, tmp_path, capsys):
    competition = run / "competition"
    folders = [*sorted((competition / "test_images").iterdir())]
    stranger = tmp_path / "1.2.3"
    shutil.copytree(folders[0], stranger)
    bad = tmp_path / folders[0].name
    bad.mkdir()
    given = [str(p) for p in (*folders[1:], stranger, bad)]
    command = ["--labels", str(competition / "solution.csv"), "--bundle", str(bundle)]
    out = tmp_path / "out"
    assert main(["evaluate", *given, *command, "--out", str(out)]) == 0
    html = (out / PAGE).read_text()
    assert f"{len(folders) - 1} scans" in html and "phantoms" in html
    assert "has no row for it" in html and "cannot be judged" in html
    table = pd.read_csv(out / "discrimination.csv").set_index("target")
    assert table.loc["patient", "n"] == len(folders) - 1
    assert main(["evaluate", str(stranger), *command, "--out", str(out)]) == 1
    assert "no study can be counted" in capsys.readouterr().err


def test_facts_are_those_of_the_scan(run, tmp_path):
    import pydicom

    folder = min((run / "competition" / "test_images").iterdir())
    assert contrast_of(folder) == "not told" and contrast_of(tmp_path) == "not told"
    file = pydicom.dcmread(min(folder.iterdir()))
    for agent, told in (("Iohexol", "yes"), ("", "no"), ("NONE", "no")):
        file.ContrastBolusAgent = agent
        file.save_as(tmp_path / "1.dcm")
        assert contrast_of(tmp_path) == told
    levels = [{"in_scan": level != "C1"} for level in LEVELS]
    facts = _facts({"spacing_mm": [1.5, 0.3, 0.3], "levels": levels}, folder)
    assert list(facts.values()) == ["up to 0.35 mm", "1 to 2 mm", "not told", "parts"]

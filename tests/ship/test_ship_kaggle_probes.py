"""The probes tell the two forms apart and are valid submissions."""

from pathlib import Path

import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import metric
from cspine_kit.data.labels import read_labels
from cspine_kit.infer.submission import read_submission, read_wanted_rows
from cspine_kit.ship.kaggle.probes import expected_scores, probe_constants, write_probes


def test_probes_on_the_real_labels(real_data: Path, tmp_path: Path) -> None:
    probes = write_probes(real_data / "train.csv", real_data / "test.csv", tmp_path)
    wanted = read_wanted_rows(real_data / "test.csv")
    for name in ("means", "scaled"):
        assert read_submission(tmp_path / f"probe_{name}.csv", wanted["row_id"]).between(0, 1).all()
    own = probes.expected[probes.expected["prevalence"] > 0.47].set_index("probe")
    assert own.loc["means", "per_exam"] == pytest.approx(0.5638, abs=5e-5)
    assert own.loc["means", "global"] == pytest.approx(0.6127, abs=5e-5)
    assert own.loc["scaled", "per_exam"] == pytest.approx(0.5757, abs=5e-5)
    assert own.loc["scaled", "global"] == pytest.approx(0.5668, abs=5e-5)
    wide = probes.expected.pivot(index="prevalence", columns="probe")
    assert (wide["per_exam"]["scaled"] > wide["per_exam"]["means"]).all()
    assert (wide["global"]["scaled"] < wide["global"]["means"]).all()
    assert "form B" in probes.text


def test_expected_score_at_the_own_prevalence_is_the_metric(tmp_path: Path) -> None:
    rows = [["1.2.1", 1, 1, 0, 0, 0, 0, 0, 0], ["1.2.2", 0, 0, 0, 0, 0, 0, 0, 0]]
    rows += [["1.2.3", 1, 0, 1, 0, 0, 0, 1, 0], ["1.2.4", 0, 0, 0, 0, 0, 0, 0, 0]]
    columns = ["StudyInstanceUID", "patient_overall", *(f"C{i}" for i in range(1, 8))]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train.csv", index=False)
    labels = read_labels(tmp_path / "train.csv")[list(TARGETS)].to_numpy(float)
    constant = probe_constants(labels)["means"].clip(0.01, 0.99)
    per_exam, whole = expected_scores(labels, constant, 0.5)
    probs = constant[None].repeat(4, axis=0)
    assert per_exam == pytest.approx(metric(labels, probs, "per_exam"))
    assert whole == pytest.approx(metric(labels, probs, "global"))

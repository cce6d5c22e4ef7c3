"""The table at the end: scores of one bundle never stand beside another one's submission."""

from pathlib import Path

import pandas as pd
import pytest

from cspine_kit.core.config import Config, load_config
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, write_json
from cspine_kit.show.results import run_results

TINY = Path(__file__).resolve().parents[1] / "tiny.yaml"


@pytest.fixture(name="config")
def _config(tmp_path) -> Config:
    """The tiny config with a competition of one row, a bundle, and a submission."""
    base = TINY.parents[1] / "configs" / "base.yaml"
    (tmp_path / "base.yaml").write_text(base.read_text())
    (tmp_path / "tiny.yaml").write_text(TINY.read_text())
    config = load_config(tmp_path / "tiny.yaml")
    competition = config.competition.model_copy(update={"dir": tmp_path / "competition"})
    (tmp_path / "competition").mkdir()
    row = {"row_id": ["1.2_C1"], "StudyInstanceUID": ["1.2"], "prediction_type": ["C1"]}
    pd.DataFrame(row).to_csv(tmp_path / "competition" / "test.csv", index=False)
    paths = RunPaths(tmp_path / "oof")
    write_json(paths.bundle / "manifest.json", {"format": "one"})
    paths.stack.mkdir()
    (paths.stack / "scores.csv").write_text("model\n")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "submission.csv").write_text("row_id,fractured\n1.2_C1,0.25\n")
    return config.model_copy(update={"competition": competition})


def test_a_submission_of_another_bundle_is_refused(config, tmp_path):
    paths, submission = RunPaths(tmp_path / "oof"), tmp_path / "tiny" / "submission.csv"
    marker = {
        "sha256": file_hash(submission),
        "manifest": file_hash(paths.bundle / "manifest.json"),
    }
    write_json(submission.with_name("kernel.json"), marker)
    write_json(paths.bundle / "manifest.json", {"format": "two"})
    with pytest.raises(ArtifactError, match=r"submission\.csv was made by another bundle than"):
        run_results(config, paths, tmp_path)
    (paths.bundle / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="run cspine kernel --config again"):
        run_results(config, paths, tmp_path)
    assert not (tmp_path / "tiny" / "results.csv").exists()

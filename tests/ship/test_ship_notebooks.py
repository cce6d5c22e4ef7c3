"""The notebooks run where Kaggle would run them, and are what their sources say."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from cspine_kit.core.config import load_config, resolved_yaml
from cspine_kit.ship.kaggle.parcels import write_parcels
from cspine_kit.ship.rehearsal.inputs import layouts

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "kernels" / "notebooks").glob("*.py"))
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


@pytest.fixture(scope="module", name="mounted")
def _mounted(run, tmp_path_factory) -> dict[str, Path]:
    """What /kaggle/input would be, in both of its layouts."""
    config, out = load_config(run / "configs" / "tiny.yaml"), tmp_path_factory.mktemp("mounted")
    parcels = write_parcels(config, run / "oof" / "tiny" / "bundle", out / "upload")
    for name, places in layouts(config, run / "competition", parcels).items():
        for place, folder in places.items():
            (out / name / place).parent.mkdir(parents=True, exist_ok=True)
            (out / name / place).symlink_to(folder)
    brief = config.vertebra.model_copy(update={"epochs": 1})
    code = out / "train" / "code"
    code.mkdir(parents=True)
    (code / "config.yaml").write_text(resolved_yaml(config.model_copy(update={"vertebra": brief})))
    (out / "train" / "competition").symlink_to(run / "competition")
    return {name: out / name for name in ("old", "new", "train")}


@each
def test_a_notebook_is_what_its_source_says(source):
    made = jupytext.read(source)
    there = jupytext.read(source.with_suffix(".ipynb"))
    cells = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (made, there)]
    assert cells[0] == cells[1], "run make notebooks"
    assert not any(cell.get("outputs") for cell in there.cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [("eda", "old"), ("eda", "new"), ("infer", "old"), ("infer", "new"), ("train", "train")],
)
def test_a_notebook_runs(name, layout, mounted, tmp_path):
    source = ROOT / "kernels" / "notebooks" / f"{name}.py"
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    environment |= {"CSPINE_INPUT": str(mounted[layout]), "CSPINE_STUDIES": "3"}
    done = subprocess.run(
        [sys.executable, str(source)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = {"eda": "studies, ", "train": "weights.safetensors", "infer": "out-of-fold: A 0."}
    assert said[name] in done.stdout

"""The page: made from any state of a run, whole in one file, and honest about what it lacks."""

import base64
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from cspine_kit.cli import main
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import write_json
from cspine_kit.show.report import run as run_module
from cspine_kit.show.report import sections
from cspine_kit.show.report.page import MOST_MB, write_report
from cspine_kit.show.report.run import Run
from cspine_kit.vision.oof.lineage import LINEAGE_FILE, read_lineage

CONFIG = Path("configs/tiny.yaml")
STATE = {"kit": "0", "config": str(CONFIG), "stages": {}, "changed_parts": [], "next": None}

INDEX = ("tables/studies.parquet", "tables/slices.parquet")
VERTEBRA = (*INDEX, "folds.csv", "tables/coarse.parquet", "models/vertebra")
OOF = (*VERTEBRA, "tables/vertebra.parquet", "tables/levels.parquet", "tables/oof_slices.parquet")
OOF = (*OOF, "models/resnet", "models/efficientnet", "models/seven", "tables/failures.parquet")
STACK = (*OOF, "stack", "tables/features.parquet", "tables/predictions.parquet")
"""What each state of a run holds, below its folder; the cache is there from the start."""


class Page(HTMLParser):
    """What a page shows and asks for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.verdicts: list[str] = []
        self.waits: list[str] = []
        self.text = path.read_text()
        self._at = ""
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and v]
        self._at = own.get("class") or ""
        if tag == "img":
            self.titles.append(own["alt"] or "")

    def handle_data(self, data: str) -> None:
        if self._at.startswith("badge"):
            self.verdicts.append(data)
        if self._at == "waits" and data.strip():
            self.waits.append(data.strip())
        self._at = "" if data.strip() else self._at


def desk(chain: Path, folder: Path, parts: tuple[str, ...]) -> Path:
    """A working folder in which a run has got so far."""
    shutil.copytree(chain / "configs", folder / "configs")
    (folder / "competition").symlink_to(chain / "competition")
    for part in (*parts, "cache"):
        place = folder / "oof" / "tiny" / part
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(chain / "oof" / "tiny" / part)
    return folder


def made(folder: Path) -> tuple[Page, Run]:
    """The page of the run in the current folder."""
    run = Run(load_config(CONFIG), RunPaths(Path("oof/tiny")), Path("submissions"))
    write_report(run, STATE, folder / "page.html")
    return Page(folder / "page.html"), run


@pytest.fixture(autouse=True)
def _few(monkeypatch) -> None:
    """Fewer pictures: enough to see that they are there."""
    monkeypatch.setattr(sections, "WORST", 2)
    monkeypatch.setattr(run_module, "SCANS", 1)


STATES = {
    "index": (INDEX, {"Fractures", "Slices and spacing"}, {"Folds", "Masks over slices"}, "oof"),
    "interrupted": (
        (*INDEX, "folds.csv", "models/vertebra/fold_0", "models/resnet/fold_0"),
        {
            "Levels slice by slice",
            "Confusion of presence",
            "Fracture curves beside vertebra curves",
        },
        {"Masks over slices", "AUC per level"},
        "oof",
    ),
    "vertebra": (
        VERTEBRA,
        {"Folds", "A walk through the neck", "Levels slice by slice", "Error of the centers"},
        {"What members say of levels", "Scores and baselines"},
        "oof",
    ),
    "no stack": (
        OOF,
        {"Training of the members", "Fracture curves beside vertebra curves"},
        {"ROC and precision-recall", "Calibration", "Worst study 1"},
        "stack",
    ),
    "no kernel": (
        STACK,
        {"What made an answer", "Confusion at the frozen thresholds", "Worst study 2", "Effort"},
        {"Time per study and stage", "Out-of-fold and hidden truth"},
        "score",
    ),
}


ON_DEMAND = {"Ablation", "Backbones", "Backbones of members", "Boxes around fractures"}
"""Figures of what a run compares only where it is asked to."""


@pytest.mark.parametrize("state", STATES)
def test_a_page_is_made_from_any_state_of_a_run(state, run, tmp_path, monkeypatch):
    parts, there, absent, stage = STATES[state]
    monkeypatch.chdir(desk(run, tmp_path, parts))
    page, read = made(tmp_path)
    assert there <= set(page.titles) and not absent & set(page.titles)
    waiting = " ".join(page.waits)
    assert f"make {stage} CONFIG={CONFIG}" in waiting and "cannot be drawn" not in waiting
    for title in absent - {"Worst study 1"}:
        assert title in waiting
    assert not read.faults
    assert len(page.verdicts) == 9 and "fail" not in page.verdicts[:3]
    models = {"index": 0, "interrupted": 2, "vertebra": 2}.get(state, 8)
    assert list(read.lineage.values()) == [""] * models


def test_a_finished_run_is_shown_whole_by_the_verb(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run)
    out = tmp_path / "report.html"
    assert main(["report", "--config", str(CONFIG), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert str(out) in said and "checks:" in said
    page = Page(out)
    planned = {plan.title for plans in sections.SECTIONS.values() for plan in plans}
    assert planned - ON_DEMAND | {"Worst study 1", "Worst study 2"} == set(page.titles)
    waiting = " ".join(page.waits)
    assert all(title in waiting for title in ON_DEMAND) and "not yet" not in page.verdicts[4:]
    assert not (run / "oof" / "tiny" / "report.html").exists()
    assert out.stat().st_size < MOST_MB * 1e6
    assert_self_contained(page)


def assert_self_contained(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    style = re.search(r"<style>(.*?)</style>", page.text, re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert not re.search(r"https?://", page.text)
    drawings = [a.split(",", 1)[1] for a in page.addresses if a.startswith("data:image/svg+xml")]
    assert len(drawings) > 15
    for drawing in drawings:
        svg = base64.b64decode(drawing).decode()
        asked = re.findall(r"""(?:href|src)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", svg)
        assert all((a or b).startswith(("#", "data:image/")) for a, b in asked)


def test_a_leak_is_shown_not_hidden_behind_an_error(run, tmp_path, monkeypatch):
    monkeypatch.chdir(desk(run, tmp_path, OOF))
    path = tmp_path / "oof" / "tiny" / "tables" / "oof_slices.parquet"
    rows = pd.read_parquet(path)
    path.unlink()
    rows.assign(model_fold=1 - rows["model_fold"]).to_parquet(path)
    model = tmp_path / "oof" / "tiny" / "models" / "resnet"
    model.unlink()
    shutil.copytree(run / "oof" / "tiny" / "models" / "resnet", model)
    known = read_lineage(model / "fold_0")
    write_json(model / "fold_0" / LINEAGE_FILE, sorted([*known, *read_lineage(model / "fold_1")]))
    page, read = made(tmp_path)
    assert set(filter(None, read.lineage.values())) == {read.lineage["resnet fold 0"]}
    assert page.verdicts[0] == "fail" and "What members say of levels" in page.titles
    assert "may have seen their study" in read.faults["oof_slices"]
    assert any(line.startswith(": table oof_slices") for line in page.text.split("</b>"))


def test_a_figure_that_cannot_be_drawn_costs_itself(run, tmp_path, monkeypatch):
    monkeypatch.chdir(desk(run, tmp_path, INDEX))

    def fail(_: Run) -> None:
        raise ValueError("<b>no ink</b>")

    plans = (sections.Plan("Broken", ("train",), fail), *sections.SECTIONS["data"][:1])
    monkeypatch.setitem(sections.SECTIONS, "data", plans)
    page, _ = made(tmp_path)
    assert page.titles == ["Fractures"]
    assert "Broken: cannot be drawn (ValueError: &lt;b&gt;no ink&lt;/b&gt;)" in page.text


def test_volumes_that_are_gone_cost_the_pictures_alone(run, tmp_path, monkeypatch):
    monkeypatch.chdir(desk(run, tmp_path, VERTEBRA))
    (tmp_path / "oof" / "tiny" / "cache").unlink()
    page, read = made(tmp_path)
    assert "Masks over slices" not in page.titles and "Confusion of presence" in page.titles
    assert all(name.startswith("pictures of ") for name in read.faults) and read.faults


def test_without_a_run_or_without_jinja2_the_verb_says_what_to_do(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(desk(run, tmp_path, INDEX))
    config = load_config(CONFIG)
    with pytest.raises(ArtifactError, match="run make oof first"):
        write_report(Run(config, RunPaths(Path("oof/none")), Path()), STATE, Path("a.html"))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["report", "--config", str(CONFIG)]) == 1
    assert "pip install 'cspine-kit[show]'" in capsys.readouterr().err
    assert not (tmp_path / "oof" / "tiny" / "report.html").exists()

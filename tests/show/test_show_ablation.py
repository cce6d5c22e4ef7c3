"""A grid: its rows are checked before anything runs, share what they can, and are compared."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_elsewhere import made_elsewhere

from cspine_kit.cli import main
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.paths import RunPaths
from cspine_kit.show.ablation.grid import read_grid
from cspine_kit.show.ablation.run import check_rows
from cspine_kit.show.ablation.table import BASE
from cspine_kit.show.report.run import Run
from cspine_kit.vision.oof.borrow import link

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
SMALL = ROOT / "configs" / "sources" / "small.yaml"
GRIDS = sorted((ROOT / "configs" / "grids").glob("*.yaml"))


@pytest.fixture(name="grid")
def _grid(tmp_path):
    """`grid(text)`: rows of the demo's config."""

    def read(text):
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return read_grid(DEMO, path)

    return read


HARD = ROOT / "configs" / "hard.yaml"
NAMING = {"sources": SMALL, "labels": DEMO, "study": DEMO, "hard": HARD}
"""Grids that are made for the networks of one config."""


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_shipped_grid_fits_every_shipped_config(path, tmp_path, monkeypatch):
    for config in sorted((ROOT / "configs").glob("*.yaml")):
        if config.stem != "base" and path.stem not in NAMING:
            assert read_grid(config, path)
    base = NAMING.get(path.stem, DEMO)
    made_elsewhere(load_config(base), tmp_path)
    monkeypatch.chdir(tmp_path)
    check_rows(read_grid(base, path))


def test_a_row_may_have_the_networks_of_another_config(grid, tmp_path):
    (tmp_path / "other.yaml").write_text(
        f"base: {ROOT / 'configs' / 'base.yaml'}\nname: other\nseed: 7\nmembers: {{two: {{}}}}\n"
    )
    rows = grid(
        "theirs: {config: other.yaml, model.size_px: 96, vertebra.field_mm: 128}\nown: {seed: 3}"
    )
    demo, theirs = load_config(DEMO), rows[0].config
    assert list(theirs.members) == ["two"] and theirs.members["two"].size_px == 96
    assert theirs.model.backbone == load_config(ROOT / "configs" / "base.yaml").model.backbone
    for name in ("name", "competition", "folds", "volumes", "seed", "execution"):
        assert getattr(theirs, name) == getattr(demo, name)
    with pytest.raises(ConfigError, match=r"row 'lost'.*nowhere\.yaml not found"):
        grid("lost: {config: nowhere.yaml}")


def test_a_list_makes_a_row_of_each_value_but_the_configs_own(grid):
    rows = grid("size: {vertebra.size_px: [48, 64, 80]}\nboth: {seed: 1, stack.seeds: 2}")
    assert [row.label for row in rows] == ["size 48", "size 80", "both"]
    assert [row.config.vertebra.size_px for row in rows] == [48, 80, 64]
    assert rows[2].config.seed == 1 and rows[2].config.stack.seeds == 2
    assert [row.folder for row in rows] == ["size_48", "size_80", "both"]
    assert load_config(DEMO).stack == rows[0].config.stack


def test_all_members_that_have_a_key_take_it(grid):
    [row] = grid("wider: {members.*.hidden: 32}")
    changed = {name: getattr(m, "hidden", None) for name, m in row.config.members.items()}
    assert changed == {"axial": None, "seven": 32, "sagittal": 32}
    [row] = grid("one: {members.axial.augment.flip_x: 0.0}")
    assert row.config.members["axial"].augment.flip_x == 0.0
    assert row.config.members["axial"].augment.scale == load_config(DEMO).model.augment.scale
    [row] = grid("alone: {members: {single: {field_mm: 115}}}")
    assert list(row.config.members) == ["single"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: {model.feild_mm: 50}", "did you mean 'model.field_mm'"),
        ("a: {members.axail.field_mm: 50}", "did you mean 'axial'"),
        ("a: {members.*.field: 50}", "did you mean 'field_mm'"),
        ("a: {members.axial.hiden: 50}", "members.axial.hiden"),
        ("a: {stack.seeds.more: 1}", "stack.seeds"),
        ("a: {model.size_px: -1}", "model.size_px"),
        ("a: {folds.n: 5}", "may not be changed"),
        ("a: {competition.phantom.studies: 5}", "may not be changed"),
        ("a: {training.workers: 3}", "changes nothing that is scored"),
        ("a: {model.size_px: 48}", "changes nothing that is scored"),
        ("a: {seed: [1, 2], stack.seeds: 2}", "lists values beside other keys"),
        ("a: 5", "must map dotted keys"),
        ("a b: {seed: 1}\na_b: {seed: 2}", "two rows are called 'a_b'"),
    ],
)
def test_a_wrong_row_is_refused_and_told_what_was_meant(grid, text, said):
    with pytest.raises(ConfigError, match=said.replace("*", r"\*")):
        grid(text)


def test_a_row_that_cannot_be_built_is_named_before_anything_runs(grid):
    with pytest.raises(ConfigError, match=r"row 'a'.*resnet5000"):
        check_rows(grid("a: {members.axial.backbone: resnet5000}"))


@pytest.fixture(name="desk", scope="module")
def _desk(run, tmp_path_factory):
    """The tiny chain's folder, as links."""
    desk = tmp_path_factory.mktemp("ablation")
    for name in ("oof", "configs", "kernels", "competition"):
        shutil.copytree(run / name, desk / name, copy_function=link)
    return desk


def stamps(folder):
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for path in folder.rglob("*.safetensors")
        if "ablation" not in path.relative_to(folder).parts
    }


@pytest.mark.slow
def test_rows_share_what_they_do_not_change_and_go_on_where_they_were(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    Path("grid.yaml").write_text(
        "wider clip: {stack.clip: 0.2}\nslower resnet: {members.resnet.lr: 1.0e-3}\n"
    )
    paths, before = RunPaths(Path("oof/tiny")), stamps(desk / "oof")
    command = ["ablate", "--config", "configs/tiny.yaml", "--grid", "grid.yaml"]
    assert main(command) == 0
    assert stamps(desk / "oof") == before
    told = capsys.readouterr().out
    table = pd.read_csv(paths.ablation / "grid.csv").set_index("row")
    assert list(table.index) == [BASE, "wider clip", "slower resnet"]
    assert all(name in told for name in table.index)
    assert table["trained"].tolist() == [0, 0, 2]  # one member in two folds
    assert table["studies"].nunique() == 1 and table["fault"].isna().all()
    assert table.loc[BASE, ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]
    shipped = pd.read_csv(paths.stack / "scores.csv").set_index("model").loc["shipped"]
    assert table.loc[BASE, "A"] == pytest.approx(shipped["per_exam"])
    assert (table["gain"].iloc[1:] != 0).all()
    for row in table.iloc[1:].itertuples():
        assert row.gain_low <= row.gain <= row.gain_high
        assert row.gain == pytest.approx(row.A - table.loc[BASE, "A"])
        assert row.members_auc_low <= row.members_auc_gain <= row.members_auc_high
    same = [BASE, "wider clip"]  # no network is another
    assert (table.loc[same, "members_auc_gain"] == 0).all()
    assert table.loc["slower resnet", "members_auc"] != table.loc[BASE, "members_auc"]
    own = paths.ablation / "grid" / "slower_resnet"
    changed = {p.parts[1] for p, t in stamps(own).items() if t != stamps(paths.root)[p]}
    assert changed == {"resnet"}
    assert not list(own.glob("cache/coarse/*.arrow"))
    assert (paths.ablation / "grid.svg").stat().st_size > 5000

    first = {path: path.stat().st_mtime_ns for path in paths.ablation.rglob("*/models/**/*")}
    assert main(command) == 0
    assert first == {p: p.stat().st_mtime_ns for p in paths.ablation.rglob("*/models/**/*")}
    again = pd.read_csv(paths.ablation / "grid.csv").set_index("row")
    pd.testing.assert_frame_equal(again, table)
    shown = Run(load_config(Path("configs/tiny.yaml")), paths, Path("submissions")).ablation
    assert shown["row"].tolist() == ["wider clip", "slower resnet"]
    assert np.isfinite(shown["gain"]).all() and set(shown["grid"]) == {"grid"}

    assert main([*command, "--seeds", "2"]) == 0
    twice = pd.read_csv(paths.ablation / "grid.csv").set_index("row")
    assert twice["trained"].tolist() == [0, 0, 4]  # of the second seed too
    gains = {row: list(map(float, told.split())) for row, told in twice["gains"].items()}
    assert gains[BASE] == [0, 0] and all(len(both) == 2 for both in gains.values())
    for row, (one, other) in gains.items():
        assert one == pytest.approx(table.loc[row, "gain"], abs=1e-4)
        assert twice.loc[row, "gain"] == pytest.approx((one + other) / 2, abs=1e-4)
    base = load_config(paths.ablation / "grid" / "seed+1" / "as_it_is" / "config.yaml")
    assert [m.seed for m in base.members.values()] == [
        m.seed + 1 for m in load_config(Path("configs/tiny.yaml")).members.values()
    ]


@pytest.mark.slow
def test_a_row_that_fails_costs_itself(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    Path("broken.yaml").write_text(
        "no file: {stack.columns: nowhere.csv}\nfine: {stack.clip: 0.1}\n"
    )
    assert main(["ablate", "--config", "configs/tiny.yaml", "--grid", "broken.yaml"]) == 1
    table = pd.read_csv("oof/tiny/ablation/broken.csv").set_index("row")
    assert "nowhere.csv" in table.loc["no file", "fault"] and np.isnan(table.loc["no file", "A"])
    assert np.isfinite(table.loc["fine", "A"])
    assert "failed" in capsys.readouterr().out

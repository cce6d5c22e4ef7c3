"""The record of what a run folder was made from: changes, interruptions and the way back."""

from pathlib import Path

import pytest

from cspine_kit.core.config import Config, load_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.resolved import PARTS, begin, changed, finish

EVERYTHING = (*PARTS["oof"], *PARTS["stack"])


@pytest.fixture(name="config")
def _config() -> Config:
    return load_config(Path(__file__).resolve().parents[2] / "configs" / "demo.yaml")


@pytest.fixture(name="made")
def _made(config, tmp_path) -> RunPaths:
    """A run folder that `oof` and `stack` finished with `config`."""
    paths = RunPaths(tmp_path / "run")
    finish(config, paths, "oof")
    finish(config, paths, "stack")
    return paths


def with_stack(config: Config, rounds: int) -> Config:
    return config.model_copy(update={"stack": config.stack.model_copy(update={"rounds": rounds})})


def with_volumes(config: Config, spacing_mm: float) -> Config:
    fine = config.volumes.fine.model_copy(update={"spacing_mm": spacing_mm})
    volumes = config.volumes.model_copy(update={"fine": fine})
    return config.model_copy(update={"volumes": volumes})


def with_kernel(config: Config, **values) -> Config:
    return config.model_copy(update={"kernel": config.kernel.model_copy(update=values)})


def test_nothing_made_is_nothing_changed_and_no_record_is_no_promise(config, tmp_path):
    paths = RunPaths(tmp_path / "run")
    assert changed(config, paths) == ()
    paths.root.mkdir()
    assert changed(config, paths) == EVERYTHING, "an interrupted first run is not taken for done"
    begin(config, paths, "oof")
    finish(config, paths, "stack")
    assert changed(config, paths) == EVERYTHING, "a stack says nothing of the tables below it"


def test_a_finished_run_is_the_whole_config_and_stays_untouched(config, made):
    assert changed(config, made) == () and load_config(made.resolved_config) == config
    written = made.resolved_config.stat().st_mtime_ns
    for stage in ("oof", "stack"):
        begin(config, made, stage)
        finish(config, made, stage)
    assert made.resolved_config.stat().st_mtime_ns == written


def test_only_the_parts_that_differ_are_named_and_only_where_files_depend_on_them(config, made):
    assert changed(with_stack(config, 7), made) == ("stack",)
    assert changed(with_stack(config, 7), made, "oof") == ()
    assert changed(with_volumes(config, 3.0), made) == ("volumes.fine",)
    assert changed(with_kernel(config, views=2), made) == ("kernel.views",)
    assert changed(with_kernel(config, hours=1.0, readers=3), made) == ()
    renamed = config.bundle.model_copy(update={"owner": "me"})
    assert changed(config.model_copy(update={"bundle": renamed}), made) == ()


def test_a_stack_does_not_hide_that_the_tables_below_it_are_older(config, made):
    """Members and the stack change; only the stack is run again."""
    newer = with_stack(with_volumes(config, 3.0), 7)
    begin(newer, made, "stack")
    assert changed(newer, made) == ("volumes.fine", "stack"), "not before it is finished"
    finish(newer, made, "stack")
    assert changed(newer, made) == ("volumes.fine",)
    begin(newer, made, "oof")
    finish(newer, made, "oof")
    assert changed(newer, made) == ()
    assert changed(config, made) == ("volumes.fine", "stack")


def test_an_interrupted_run_is_told_from_a_finished_one_whichever_config_comes_next(config, made):
    newer = with_volumes(config, 3.0)
    begin(newer, made, "oof")
    assert changed(newer, made) == ("volumes.fine",)
    assert changed(config, made) == ("volumes.fine",), "the way back is not what is there either"
    finish(config, made, "oof")
    assert changed(config, made) == ()

"""`make finder` killed while it draws and while it trains makes the finder all the same."""

import shutil
from pathlib import Path

import pytest

from cspine_kit.cli import main
from cspine_kit.core.config import PhantomConfig
from cspine_kit.core.runs import read_json
from cspine_kit.phantom.competition import write
from cspine_kit.vision.finder import make
from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.training.step import Stepper

BASE = Path(__file__).resolve().parents[2] / "configs" / "base.yaml"
CONFIG = """
base: base.yaml
name: finder
competition:
  dir: oof/finder/competition
  phantom: {studies: 8, test_studies: 2, size_px: 48, difficulty: easy, masked: 1.0, boxed: 0.0,
            variety: 0.5, varieties: [tall, prone, coarse], files: nifti, seed: 3}
folds: {n: 2}
volumes:
  coarse: {spacing_mm: 4.0, field_mm: 128}
  fine: {spacing_mm: 4.0, field_mm: 112}
model: {backbone: tiny_cnn, pretrained: false, field_mm: 96, size_px: 24}
vertebra: {in_chans: 3, field_mm: 128, size_px: 24, epochs: 4, slices_per_study: 16}
execution: {jobs: 1, threads: 1}
"""

KILLED = 130
"""Exit status of a verb that Ctrl-C ends."""


@pytest.fixture(name="make_it")
def _make_it(monkeypatch):
    """Runs `cspine finder` in a folder, and gives its exit status; its check phantoms are tiny."""
    check = PhantomConfig(studies=1, test_studies=1, size_px=48, difficulty="easy", files="nifti")
    monkeypatch.setattr(make, "CHECK_PHANTOM", check)

    def run(folder: Path) -> int:
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        shutil.copy(BASE, folder / "configs" / "base.yaml")
        (folder / "configs" / "finder.yaml").write_text(CONFIG)
        monkeypatch.chdir(folder)
        return main(["finder", "--config", "configs/finder.yaml", "--out", "made"])

    return run


def dying(original, at):
    """The function, killed in its call number `at`."""
    calls = []

    def killed(*args, **rest):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **rest)

    return killed


@pytest.mark.slow
def test_a_finder_killed_twice_is_the_one_that_was_not(make_it, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert make_it(whole) == 0
    for place, name, at in ((write, "_write_study", 5), (Stepper, "_gradients", 6)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, dying(getattr(place, name), at))
            assert make_it(cut) == KILLED
        assert not (cut / "made").exists()
    drawn = {f: f.stat().st_mtime_ns for f in cut.glob("oof/finder/competition/*_images/*/*")}
    assert make_it(cut) == 0
    assert drawn and all(file.stat().st_mtime_ns == at for file, at in drawn.items())
    weights = [(folder / "made" / WEIGHTS_FILE).read_bytes() for folder in (cut, whole)]
    assert weights[0] == weights[1]
    cards = [read_json(folder / "made" / "card.json") for folder in (cut, whole)]
    for card in cards:
        card.pop("training")  # seconds
    assert cards[0] == cards[1]

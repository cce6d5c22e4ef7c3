"""Vertebra models trained on phantoms alone find C1..C7 on a real CT: a finished demo's, and the
finder that ships."""

from pathlib import Path

import numpy as np
import pytest
from reader_levels import READER_MM, transfer_errors

from cspine_kit import study_levels

RUN = Path(__file__).resolve().parents[2] / "oof" / "demo"

HALF_VERTEBRA_MM = 10.0
"""Half of C3..C7's pitch on this patient, who is tall: 18 to 21 mm."""


def test_the_demo_finds_the_levels_of_a_real_neck(real_data):
    if not (RUN / "bundle" / "manifest.json").exists():
        pytest.skip("no finished demo run in oof/demo; run make demo")
    error = transfer_errors(RUN, real_data / "head_neck_ct")["ensemble"]
    assert np.abs(error).max() <= HALF_VERTEBRA_MM


def test_the_finder_that_ships_finds_the_levels_of_a_real_neck(real_data):
    levels = study_levels(real_data / "head_neck_ct").levels
    assert levels["present"].all()
    assert np.abs(levels["center_z_mm"].to_numpy() - READER_MM).max() <= HALF_VERTEBRA_MM

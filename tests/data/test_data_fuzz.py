"""Ten thousand damaged files: each is read, or refused with a documented reason."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_data_pixels import GDCM_SYNTAX, NATIVE, frame_of, write_compressed, write_native

COUNT, LIMIT_S = 10_000, 240


@pytest.mark.slow
def test_mutated_files_never_crash_hang_or_grow(tmp_path):
    """In a process of its own, so that even a crash of a C decoder is seen."""
    (tmp_path / "seeds").mkdir()
    for i, syntax in enumerate(NATIVE):
        kind = "signed16" if i % 2 else "unsigned12"
        write_native(tmp_path / "seeds" / f"{i}.dcm", frame_of(kind), kind, syntax)
    for i, uid in enumerate(GDCM_SYNTAX):
        path = tmp_path / "seeds" / f"{10 + i}.dcm"
        write_compressed(path, frame_of("unsigned12"), "unsigned12", uid)
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "seeds"), str(COUNT), "1"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["read"] + found["refused"] == COUNT
    assert found["refused"] > COUNT / 20 and found["read"] > COUNT / 20
    assert found["slowest_s"] < 5
    assert np.isfinite(found["grown_mib"])

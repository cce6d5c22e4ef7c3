"""Makes `faults.py`, `finished_run.py` and `kaggle_server.py` importable for these tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

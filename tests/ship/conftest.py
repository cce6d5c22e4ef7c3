"""Makes `faults.py` importable for the ship room's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

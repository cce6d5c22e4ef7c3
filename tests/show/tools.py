"""Programs that tests of pages and files need, which are no Python packages.

In: names. Out: their paths, or a skip with the reason.
Example: `needed("dicom3tools", "dciodvfy")`.
"""

import os
import shutil

import pytest

REQUIRED = "CSPINE_TOOLS"
"""Set to "required" where they must be there (CI): their absence then fails."""


def needed(package: str, *names: str) -> str:
    """Path of the first of some programs; the test is skipped where there is none of them."""
    for name in names:
        if path := shutil.which(name):
            return path
    why = f"none of {', '.join(names)} is here: install Debian's package {package}"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(why)
    pytest.skip(why)

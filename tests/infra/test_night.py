"""infra/night.sh as a scheduler runs it: nights in a row, killed, empty and bad ones among them."""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import open_run
from tests import models
from tests.faults.jobs import Ended, Running, draw_images, start

ROOT = Path(__file__).parent.parent.parent
NIGHT = ROOT / "infra/night.sh"

SLOW = ("--methods", "gradcam,rise(masks=200)", "--batch-size", "1")
"""Slow enough for a job to be killed between two shards."""


@dataclass(frozen=True)
class Nights:
    """A folder of nights, and the images of all of them."""

    folder: Path
    store: str | None = None  # where runs are kept instead
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        """Where a night's images are."""
        return self.folder / "images"

    @property
    def runs(self) -> Path:
        """Where a night's run is."""
        return self.folder / "runs"

    def add(self, name: str, count: int, seed: int) -> None:
        """Brings some more images."""
        draw_images(self.folder / name, count, seed, largest=64)
        self.images.mkdir(exist_ok=True)
        for path in (self.folder / name).iterdir():
            shutil.copy(path, self.images / f"{name}-{path.name}")

    def begin(self, date: str, *words: str) -> Running:
        """Begins a night."""
        program = self.folder / "beamcam"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pipeline.cli "$@"\n')
        program.chmod(0o755)
        options = ["--images", self.images, "--model", self.folder / "model.keras", "--preprocess", "tf"]
        options += ["--jit", "off", "--shard-size", "4", "--overlays", "none", *SLOW]
        command = ["sh", NIGHT, self.store or self.runs, *options, *words]
        return start(
            list(map(str, command)), self.folder / "tmp", {"BEAMCAM": str(program), "DATE": date, **self.environment}
        )

    def pass_(self, date: str, *words: str) -> Ended:
        """Begins a night, and waits for its end."""
        return self.begin(date, *words).wait(250)


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    models.gap_dense(3, size=32).save(tmp_path / "model.keras")
    return Nights(tmp_path)


@pytest.mark.slow
def test_nights_go_on_from_each_other_whatever_comes_between(nights: Nights) -> None:
    nights.add("a", 8, seed=1)
    first = nights.pass_("2026-11-20")
    assert (first.code, first.complaint) == (0, "night 2026-11-20: all is well"), first.said
    assert "there is no earlier run beside" in first.said
    assert open_run(nights.runs / "2026-11-20").summary["carried"] == 0

    # A night that is killed leaves no run that others would go on from, and is taken up again by the same command.
    nights.add("b", 24, seed=2)
    killed = nights.begin("2026-11-21")
    wait_for_marker(nights.runs / "2026-11-21", killed)
    assert killed.kill()
    assert not (nights.runs / "2026-11-21/run.json").exists()
    again = nights.pass_("2026-11-21")
    assert (again.code, again.complaint) == (0, "night 2026-11-21: all is well"), again.said
    assert "of them done before" in again.said
    second = open_run(nights.runs / "2026-11-21").summary
    assert (second["records"], second["carried"]) == (32, 8)

    # A night without images is told, and leaves nothing behind.
    images = nights.images.rename(nights.folder / "away")
    nights.images.mkdir()
    empty = nights.pass_("2026-11-22")
    assert (empty.code, empty.complaint) == (2, "night 2026-11-22: beamcam run ended with 2"), empty.said
    assert "holds no image file" in empty.said
    assert not (nights.runs / "2026-11-22").exists()
    nights.images.rmdir()
    images.rename(nights.images)

    # The next one goes on from the last that is whole; a tenth of its images being broken is a finding.
    for number in range(3):
        (nights.images / f"broken-{number}.jpg").write_bytes(b"no image")
    bad = nights.pass_("2026-11-23", "--", "--fail-on", "error")
    assert (bad.code, bad.complaint) == (4, "night 2026-11-23: the run is whole, and the audit has found something")
    assert "BC301" in bad.said
    assert f"are carried over from {nights.runs}/2026-11-21" in bad.said
    third = open_run(nights.runs / "2026-11-23").summary
    assert (third["records"], third["failures"], third["carried"]) == (32, 3, 32)


@pytest.mark.slow
def test_overlays_that_are_gone_cost_one_night_without_since(nights: Nights) -> None:
    nights.add("a", 4, seed=1)
    fast = ("--methods", "gradcam", "--overlays", "blend")
    for date in ("2026-11-20", "2026-11-21"):
        assert nights.pass_(date, *fast).code == 0
    shutil.rmtree(nights.runs / "2026-11-20/overlays")

    # Not only the next night, but the one after it too, as it names the same overlays.
    for date in ("2026-11-22", "2026-11-23"):
        broken = nights.pass_(date, *fast)
        assert (broken.code, broken.complaint) == (
            1,
            f"night {date}: the run is not whole: beamcam verify ended with 1",
        )
        assert "is missing: a record carried over from that run names it" in broken.said

    # The run-book's way out; the night's own command knows the run as whole, and so do later nights.
    run = nights.runs / "2026-11-23"
    (nights.folder / "night.yaml").write_text(
        f"images: [{nights.images}]\nmodel: {nights.folder}/model.keras\npreprocess: tf\njit: 'off'\nshard_size: 4\n"
        "batch_size: 1\nmethods: gradcam\noverlays: blend\n"
    )
    words = ["run", "--config", nights.folder / "night.yaml", "--output", run, "--overwrite"]
    anew = start([str(nights.folder / "beamcam"), *map(str, words)], nights.folder / "tmp", {}).wait(250)
    assert anew.code == 0, anew.said
    assert open_run(run).summary["carried"] == 0
    for date, carried in (("2026-11-23", 0), ("2026-11-24", 4)):
        night = nights.pass_(date, *fast)
        assert (night.code, night.complaint) == (0, f"night {date}: all is well"), night.said
        assert open_run(nights.runs / date).summary["carried"] == carried


@pytest.mark.slow
def test_nights_go_on_from_each_other_on_an_object_store(tmp_path: Path, s3: str, s3_environment: dict) -> None:
    models.gap_dense(3, size=32).save(tmp_path / "model.keras")
    address = s3_environment["AWS_ENDPOINT_URL"]
    kept = {name: value for name, value in s3_environment.items() if name != "AWS_ENDPOINT_URL"}
    storage_option = {"STORAGE": f"--storage-option s3.endpoint_url={address}"}
    nights = Nights(tmp_path, f"{s3}/nights-{uuid.uuid4().hex}", {**kept, **storage_option, "AWS_ENDPOINT_URL": ""})
    for number, date in enumerate(("2026-11-20", "2026-11-21")):
        nights.add(f"{number}", 5, seed=number)
        ended = nights.pass_(date)
        assert (ended.code, ended.complaint) == (0, f"night {date}: all is well"), ended.said
    assert "(5 records carried over)" in ended.said


def wait_for_marker(run: Path, running: Running) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob("shards/*.json")):
        assert time.monotonic() < deadline, running.output.read_text()
        assert not running.is_over, running.output.read_text()
        time.sleep(0.01)


# What is asked of beamcam, word by word


@dataclass(frozen=True)
class Asked:
    """A night with a program in beamcam's place that writes down what it is asked, and ends as it is told."""

    code: int
    said: list[str]
    words: list[list[str]]


def ask(folder: Path, *words: str, codes: str = "", **variables: str) -> Asked:
    """Passes a night; `codes` is lines of the program that decide how commands end."""
    program, log = folder / "program", folder / "words"
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >> {log}\necho >> {log}\n{codes}\n')
    program.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "BEAMCAM": str(program), **variables}
    ended = subprocess.run(["sh", NIGHT, *words], env=environment, capture_output=True, text=True, check=False)
    asked = [line.split("|")[:-1] for line in log.read_text().splitlines()] if log.exists() else []
    return Asked(ended.returncode, (ended.stdout + ended.stderr).splitlines(), asked)


def test_options_go_to_the_command_that_they_are_for_whatever_they_hold(tmp_path: Path) -> None:
    options = ("--images", "my photos/*.jpg", "--methods", "gradcam,rise(masks=3)", "--", "--fail-on", "a b", "--", "x")
    night = ask(tmp_path, "/audits/", *options, DATE="2026-11-22", STORAGE="--storage-option s3.anon=true")
    storage = ["--storage-option", "s3.anon=true"]
    run = "/audits/2026-11-22"
    assert night.words == [
        ["run", "--since", "latest", *storage, *options[:4], "--output", run],
        ["verify", run, *storage],
        ["audit", run, *storage, *options[5:]],
    ]
    assert (night.code, night.said) == (0, ["night 2026-11-22: all is well"])


def test_without_options_for_the_audit_it_has_none_and_the_date_is_todays_in_utc(tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.timezone.utc).date()
    night = ask(tmp_path, "gs://audits", "--config", "night.yaml", TZ="Pacific/Kiritimati")
    after = datetime.datetime.now(datetime.timezone.utc).date()
    assert night.words[2] in [["audit", f"gs://audits/{date}"] for date in (before, after)]
    assert night.words[0][3:5] == ["--config", "night.yaml"]


@pytest.mark.parametrize(
    ("command", "code", "expected", "commands"),
    [
        ("run", 1, 1, 1), ("run", 2, 2, 1), ("run", 137, 137, 1), ("verify", 1, 1, 2), ("verify", 2, 2, 2),
        ("audit", 0, 0, 3), ("audit", 1, 4, 3), ("audit", 2, 2, 3), ("audit", 3, 3, 3), ("audit", 130, 130, 3),
    ],
)  # fmt: skip
def test_a_night_ends_with_the_code_of_what_ended_it(
    tmp_path: Path, command: str, code: int, expected: int, commands: int
) -> None:
    night = ask(tmp_path, "/audits", codes=f'[ "$1" != {command} ] || exit {code}', DATE="2026-11-22")
    assert (night.code, len(night.words)) == (expected, commands)
    assert night.said[-1].startswith("night 2026-11-22: ")


def test_a_program_that_is_not_there_is_told_by_its_code(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for program, code in ((tmp_path / "none", 127), (plain, 126)):
        environment = {"PATH": os.environ["PATH"], "BEAMCAM": str(program), "DATE": "2026-11-22"}
        ended = subprocess.run(["sh", NIGHT, "/audits"], env=environment, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (code, f"night 2026-11-22: beamcam run ended with {code}\n")


def test_since_of_the_command_line_comes_behind_the_nights_own(tmp_path: Path) -> None:
    night = ask(tmp_path, "/audits", "--since", "/audits/2026-11-01", DATE="2026-11-22")
    assert night.words[0] == ["run", "--since", "latest", "--since", "/audits/2026-11-01", "--output",
                              "/audits/2026-11-22"]  # fmt: skip


@pytest.mark.parametrize(("words", "date"), [((), "2026-11-22"), (("--config", "x"), "2026-11-22"), (("/a",), "today")])
def test_a_night_that_is_begun_wrongly_does_nothing(tmp_path: Path, words: tuple[str, ...], date: str) -> None:
    night = ask(tmp_path, *words, DATE=date)
    assert (night.code, night.words) == (2, [])
    assert night.said

"""infra/RUNBOOK.md: what it says that beamcam says is what beamcam says, and its commands are commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import patience, storage
from pipeline.cli import main, make_parser
from pipeline.graph import beam_option_names, parse_beam_options
from tests import models
from tests.faults.jobs import draw_images
from tests.infra.programs import ROOT

RUNBOOK = (ROOT / "infra/RUNBOOK.md").read_text()

SEEN_ELSEWHERE = {
    # A job on a cluster of Flink whose pool of workers is not there: takes Flink a minute to say.
    (
        "beamcam: the job broke off: RuntimeError: Pipeline BeamApp-root-1122230722-ed2c0115_a23504c8-0eca-4397-9a62-"
        "cd04001f06a5 failed in state FAILED: java.net.ConnectException: java.net.ConnectException: finishConnect(..) "
        "failed: Connection refused. 0 of 10 shards are committed and kept; the same command goes on from there"
    ),
    # Needs a file system of its own: tests/faults/room.py fills one up.
    (
        "beamcam: the job broke off: OSError: [Errno 28] No space left on device. 1 of 5 shards are committed and "
        "kept; the same command goes on from there"
    ),
}

OTHERS_OPTIONS = {  # of git, docker, helm and so on
    "--system", "--create-home", "--home-dir", "--now", "--from", "--build-arg", "--location", "--data", "--grep",
    "--set",
}  # fmt: skip


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", RUNBOOK, re.MULTILINE | re.DOTALL)


def quoted(part: str) -> list[str]:
    """The lines that are quoted, without those of night.sh."""
    found = [line for block in re.findall(r"^```text\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
             for line in block.splitlines()]  # fmt: skip
    return [line for line in found if not line.startswith("night ")]


def without_numbers(line: str) -> str:
    """Times and rates differ; dates and counts of images are told in words enough."""
    line = re.sub(r"\b[0-9a-f]{2}/[0-9a-f]{32}\b", "IMAGE", line)  # the overlay of an image
    return re.sub(r"\d+(\.\d+)?", "#", line)


def say(capsys: pytest.CaptureFixture, srv: Path, *words: object) -> list[str]:
    """What a command says, with the run-book's paths."""
    main([str(word) for word in words])
    captured = capsys.readouterr()
    return (captured.out + captured.err).replace(str(srv), "/srv").splitlines()


@pytest.fixture
def srv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the run-book calls /srv."""
    (tmp_path / "models").mkdir()
    models.gap_dense(3, size=32).save(tmp_path / "models/model.keras")
    draw_images(tmp_path / "photographs", 40, 1, largest=64)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(patience, "_reached", set())
    yield tmp_path
    storage.configure([])


def run(srv: Path, date: str, *words: object, images: str = "photographs") -> list[object]:
    options = ["--images", srv / images, "--model", srv / "models/model.keras", "--preprocess", "tf"]
    options += ["--overlays", "none", "--jit", "off", "--shard-size", "8", "--output", srv / "audits" / date]
    return ["run", *options, *words]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_every_line_that_is_quoted_is_what_beamcam_says(
    srv: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    today, latest = srv / "audits/2026-11-22", ("--since", "latest")

    def hear(*words: object) -> None:
        heard.extend(say(capsys, srv, *words))

    def hear_apart(*words: object) -> None:  # in a process that remembers nothing of models and credentials
        command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        heard.extend((ended.stdout + ended.stderr).replace(str(srv), "/srv").splitlines())

    def judge() -> None:
        hear("verify", today)
        hear("audit", today)

    # A normal night.
    hear(*run(srv, "2026-11-21"))
    hear(*run(srv, "2026-11-22", *latest))
    judge()
    # 1. There are no images.
    (srv / "photographs").rename(srv / "away")
    (srv / "photographs").mkdir()
    hear(*run(srv, "2026-11-22", *latest))
    (srv / "photographs").rmdir()
    (srv / "away").rename(srv / "photographs")
    # 2. The night was killed.
    shutil.rmtree(today)
    hear(*run(srv, "2026-11-22"))
    (today / "run.json").unlink()
    (today / "shards/00004.json").unlink()
    hear("verify", today)
    hear(*run(srv, "2026-11-22"))
    # 3. A store does not answer.
    away = ("--storage-option", "s3.endpoint_url=http://127.0.0.1:9", "--storage-timeout", "4")
    hear_apart(*run(srv, "x", *away, "--output", "s3://audits/2026-11-22"))
    with monkeypatch.context() as keys:
        keys.setenv("AWS_ACCESS_KEY_ID", "key")
        keys.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        hear_apart(*run(srv, "x", *away, "--output", "s3://audits/2026-11-22"))
    # 4. There is no right to write.
    hear(*run(srv, "x", "--output", "/proc/audits/2026-11-22"))
    # 5. Another job is at work: the lock is of an open file, whoever has it open.
    from pipeline.layout import RunLayout
    from pipeline.locking import hold_run

    (today / "run.json").unlink()
    with hold_run(RunLayout(str(today))):
        hear(*run(srv, "2026-11-22"))
    hear(*run(srv, "2026-11-22"))
    # 6. The options or the model have changed.
    hear(*run(srv, "2026-11-22", "--targets", "top:2"))
    model = (srv / "models/model.keras").read_bytes()
    models.gap_dense(4, size=32).save(srv / "models/model.keras")
    hear_apart(*run(srv, "2026-11-22"))
    shutil.rmtree(today)
    hear(*run(srv, "2026-11-22", *latest, "--dry-run"))
    (srv / "models/model.keras").write_bytes(model)
    # 7. Many images fail.
    shutil.copytree(srv / "photographs", srv / "more")
    for number in range(5):
        (srv / f"more/bad-{number}.jpg").write_bytes(b"no image")
    hear(*run(srv, "2026-11-22", images="more"))
    judge()
    # 8. The run is not whole, or cannot be judged.
    shutil.rmtree(today)
    hear(*run(srv, "2026-11-22"))
    (today / "records/part-00002.parquet").write_bytes(b"")
    hear("verify", today)
    (today / "run.json").unlink()
    hear("audit", today)
    (today / "shards/00002.json").unlink()
    hear(*run(srv, "2026-11-22"))
    hear("verify", today)
    assert heard[-1].endswith("nothing lost, doubled or damaged"), "the way out of 8 leads out"
    # 9. The engine is not there, or refuses.
    flink = ("--runner", "FlinkRunner", "--flink_master", "localhost:1", "--job_server_java_launcher", "sh")
    hear(*run(srv, "x", *flink, "--environment_type=EXTERNAL", "--environment_config=localhost:50000"))
    hear(*run(srv, "x", *flink))
    hear(*run(srv, "x", "--runner", "DataflowRunner"))
    dataflow = ("--project=p", "--region=r", "--temp_location=gs://t", "--sdk_container_image=i", "--output=gs://a/b")
    hear(*run(srv, "x", "--runner", "DataflowRunner", *dataflow))

    # 4 once more. Overlays of an earlier night are gone, and the way out.
    pictures = ("--overlays", "blend")
    hear(*run(srv, "2026-12-01", *pictures))
    hear(*run(srv, "2026-12-02", *pictures, *latest))
    shutil.rmtree(srv / "audits/2026-12-01/overlays")
    hear("verify", srv / "audits/2026-12-02")
    hear(*run(srv, "2026-12-02", *pictures, "--overwrite"))
    hear("verify", srv / "audits/2026-12-02")
    assert heard[-1].endswith("nothing lost, doubled or damaged"), "the way out of 4 leads out"

    told = {without_numbers(line) for line in heard}
    wanted = [line for line in quoted(RUNBOOK) if line not in SEEN_ELSEWHERE]
    assert len(wanted) >= 20
    assert [line for line in wanted if without_numbers(line) not in told] == []


def test_what_is_quoted_of_the_night_is_what_the_script_says() -> None:
    script = (ROOT / "infra/night.sh").read_text()
    lines = re.findall(r"^night 2026-11-22: (.*)$", RUNBOOK, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        assert f'say "{re.sub(r"[0-9]+$", "$code", line)}"' in script


def test_there_are_ten_failures_each_with_what_is_said_and_what_to_do() -> None:
    section = RUNBOOK.split("\n## Ten failures\n")[1].split("\n## ")[0]
    failures = re.split(r"^### \d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(failures) == 10
    for failure in failures:
        assert "```text" in failure, failure[:40]
        assert "*Do*" in failure, failure[:40]


def beamcam_commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(beamcam [^`]*)`", RUNBOOK)
    found = [line.removeprefix("sudo -u beamcam ") for line in [*lines, *inline]]
    return [line.split("   #")[0].strip() for line in found if line.startswith("beamcam ")]


def test_every_command_of_beamcam_is_one() -> None:
    commands = [line for line in beamcam_commands() if len(line.split()) > 2]
    assert len(commands) >= 9
    for command in commands:
        if command != "beamcam audit ended with $code":
            arguments, rest = make_parser().parse_known_args(shlex.split(command)[1:])
            parse_beam_options(rest)
            assert not rest or getattr(arguments, "takes_beam_options", False), command


def test_every_option_and_every_file_that_is_named_is_there() -> None:
    parser = make_parser()
    known = {name for command in parser._subparsers._group_actions[0].choices.values()
             for action in command._actions for name in action.option_strings}  # fmt: skip
    lines = "\n".join(line for line in RUNBOOK.splitlines() if not re.match(r"\s*(sudo (?!-u )|.venv/bin/pip)", line))
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", lines))
    assert options - known - set(beam_option_names()) - OTHERS_OPTIONS == set()
    for path in set(re.findall(r"\b(infra/[\w./-]+\w)", RUNBOOK)):
        assert (ROOT / path).exists() or path == "infra/kubernetes/job-server.jar", path


def test_exit_codes_are_those_of_the_script() -> None:
    script = (ROOT / "infra/night.sh").read_text()
    said = re.findall(r"^  (\d)  ", script, re.MULTILINE)
    assert re.findall(r"^\| (\d) \|", RUNBOOK, re.MULTILINE) == said == ["0", "1", "2", "3", "4"]
    assert "\n| 126, 127 | the program is not there" in RUNBOOK
    assert "\n  126, 127: the program that BEAMCAM names is not there" in script


def test_what_writes_to_a_run_of_the_machine_runs_as_its_owner() -> None:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    local = [line for line in lines if "/srv/audits" in line and "install -d" not in line]
    assert len(local) >= 10
    assert [line for line in local if not line.startswith("sudo -u beamcam ")] == []
    assert "sudo ln -s /opt/beamcam/.venv/bin/beamcam /usr/local/bin/" in RUNBOOK


def test_the_advice_of_nights_leaves_overlays_and_max_failures_alone() -> None:
    assert "Overlays of earlier nights stay, or the next night is explained anew." in RUNBOOK
    usage = (ROOT / "infra/night.sh").read_text()
    assert "`max_failures`" in RUNBOOK
    assert "--max-failures does not belong in a night" in usage
    assert "systemctl reset-failed\nbeamcam-night" in RUNBOOK


def test_variables_that_it_names_are_terraforms() -> None:
    variables = set(re.findall(r'^variable "(\w+)"', (ROOT / "infra/terraform/variables.tf").read_text(), re.MULTILINE))
    assert {"overlay_cold_days", "hours", "paused"} <= variables
    assert set(re.findall(r"`(overlay_\w+_days)`", RUNBOOK)) == {"overlay_cold_days"}
    assert json.loads((ROOT / "infra/dataflow/metadata.json").read_text())["name"] == "beamcam"

"""infra/terraform/night.yaml, run by an emulator of Workflows: what it asks of Google, and what a night comes to.

Dataflow is a stand-in that says what it is told to; the stand-in of Cloud Run does run the commands it is asked to run.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import open_run
from pipeline.config import RunConfig
from pipeline.job import run_job
from tests import models
from tests.faults.jobs import draw_images
from tests.infra.programs import ROOT, program

WORKFLOW = ROOT / "infra/terraform/night.yaml"
RESERVED = {"end", "break", "continue"}  # names of steps to go to that are always there


def steps_of(node: Any) -> Iterator[tuple[str, Any]]:
    """Every named step of a subworkflow, nested ones too."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "steps":
                for step in value:
                    yield from step.items()
            yield from steps_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from steps_of(value)


def targets_of(node: Any) -> Iterator[str]:
    """Every step that some other one goes to."""
    if isinstance(node, dict):
        if "next" in node:
            yield node["next"]
        for value in node.values():
            yield from targets_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_of(value)


def test_every_step_has_a_name_of_its_own_and_leads_to_one_that_is_there() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    calls = set(re.findall(r"call: (\w+)$", WORKFLOW.read_text(), re.MULTILINE))
    assert calls == set(workflow) - {"main"}
    for name, body in workflow.items():
        names = [step for step, _ in steps_of(body)]
        assert len(names) == len(set(names)), name
        assert not set(names) & RESERVED
        assert set(targets_of(body)) <= set(names) | RESERVED


@dataclass
class Cloud:
    """Google's servers, as far as a night asks them."""

    states: list[str]  # of jobs, look by look
    refused: bool = False  # whether Dataflow may not be used
    launched: list[dict[str, Any]] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    code: int = 0  # of the last command
    works: bool = False  # whether launched jobs are run, on this machine

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if path == "/v1b3/projects/p/locations/r/flexTemplates:launch" and not self.refused:
            self.launched.append(body["launchParameter"])
            if self.works:
                self.states.append("JOB_STATE_FAILED" if self.run_template() else "JOB_STATE_DONE")
            return {"job": {"id": f"job-{len(self.launched)}"}}
        if path == "/v2/projects/p/locations/r/jobs/audit:run":
            (container,) = body["overrides"]["containerOverrides"]
            self.commands.append(container["args"])
            command = [sys.executable, "-m", "pipeline.cli", *container["args"]]
            self.code = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False).returncode
            return {"metadata": {"name": "projects/p/locations/r/jobs/audit/executions/one"}}
        return None

    def run_template(self) -> int:
        """What the launcher in the template's image calls; this machine takes the place of Dataflow's workers."""
        words = [f"--{name}={value}" for name, value in self.launched[-1]["parameters"].items()]
        command = [sys.executable, "infra/dataflow/main.py", *words, "--runner=DirectRunner"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
        return ended.returncode

    def get(self, path: str) -> dict[str, Any] | None:
        if path == f"/v1b3/projects/p/locations/r/jobs/job-{len(self.launched)}?view=JOB_VIEW_SUMMARY":
            return {"currentState": self.states.pop(0)}
        if path == "/v2/projects/p/locations/r/jobs/audit/executions/one":
            return {"completionTime": "now", "failedCount" if self.code else "succeededCount": 1}
        if path == "/v2/projects/p/locations/r/jobs/audit/executions/one/tasks":
            # As in all of Google's JSON, a number that is 0 is left out.
            return {"tasks": [{"lastAttemptResult": {"exitCode": self.code} if self.code else {}}]}
        return None


@contextlib.contextmanager
def served(cloud: Cloud) -> Iterator[str]:
    """The cloud's address, for as long as the block runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(cloud.get(self.path))

        def do_POST(self) -> None:
            self.reply(cloud.post(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def reply(self, content: dict[str, Any] | None) -> None:
            data = json.dumps(content or {"error": {"message": "may not"}}).encode()
            self.send_response(200 if content is not None else 403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class Ended:
    """A night that is over."""

    state: str
    result: dict[str, Any]
    outcomes: list[str]  # that the log was told, as the alerts look for them
    log: str


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


PARAMETERS = {"since": "latest", "images": "gs://photographs/"}


def pass_night(
    folder: Path,
    cloud: Cloud,
    argument: dict[str, Any],
    *audit_options: str,
    parameters: dict[str, str] = PARAMETERS,
    name: str = "beamcam",
) -> Ended:
    """Executes the workflow once."""
    emulator = program("gcw-emulator", "an emulator of Google's Workflows")
    (folder / "workflows").mkdir(exist_ok=True)
    shutil.copy(WORKFLOW, folder / "workflows/night.yaml")
    port, log = free_port(), folder / "log"
    with served(cloud) as address, log.open("w") as said:
        variables = {
            "DATAFLOW": address, "CLOUD_RUN": address, "PROJECT": "p", "REGION": "r", "RUNS": str(folder / "runs"),
            "NAME": name,
            "JOB": "projects/p/locations/r/jobs/audit", "TEMPLATE": "gs://assets/template.json", "ATTEMPTS": "2",
            "PARAMETERS": json.dumps(parameters), "PAUSE": "0", "HOURS": "1",
            "ENVIRONMENT": json.dumps({"maxWorkers": 8}), "AUDIT_OPTIONS": json.dumps(audit_options),
        }  # fmt: skip
        words = ["--host=127.0.0.1", f"--port={port}", f"--grpc-port={free_port()}", "--project=x", "--location=y"]
        process = subprocess.Popen([emulator, *words, f"--workflows-dir={folder}/workflows"], stdout=said, stderr=said,
                                   env={**os.environ, **variables})  # fmt: skip
        try:
            found = execute(f"http://127.0.0.1:{port}/v1/", argument)
        finally:
            process.terminate()
            process.wait(20)
    told = log.read_text()
    outcomes = re.findall(r"\[(?:NOTICE|ERROR)\] {.*outcome: (\w+)", told)
    return Ended(found["state"], json.loads(found.get("result", "{}")), outcomes, told)


def execute(address: str, argument: dict[str, Any]) -> dict[str, Any]:
    execution, deadline = None, time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if execution is None:
                body = json.dumps({"argument": json.dumps(argument)}).encode()
                request = urllib.request.Request(
                    address + "projects/x/locations/y/workflows/night/executions",
                    body,
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request) as answer:
                    execution = json.load(answer)["name"]
            with urllib.request.urlopen(address + execution) as answer:
                found = json.load(answer)
            if found["state"] != "ACTIVE":
                return found
        time.sleep(0.05)
    raise TimeoutError("the night did not come to an end")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/2026-11-20` is a run, and `runs/2026-11-21` one with failures that an audit finds."""
    folder = tmp_path_factory.mktemp("workflow")
    models.gap_dense(3, size=32).save(folder / "model.keras")
    draw_images(folder / "images", 12, seed=4, largest=64)
    for date, broken in (("2026-11-20", 0), ("2026-11-21", 3)):
        for number in range(broken):
            (folder / f"images/broken-{number}.jpg").write_bytes(b"no image")
        run_job(RunConfig((str(folder / "images"),), str(folder / "model.keras"), str(folder / "runs" / date),
                          preprocess="tf", overlays="none", jit="off"), [])  # fmt: skip
    return folder


@pytest.mark.slow
def test_a_job_that_failed_is_launched_again_and_its_run_verified_and_audited(folder: Path) -> None:
    cloud = Cloud(["JOB_STATE_QUEUED", "JOB_STATE_FAILED", "JOB_STATE_RUNNING", "JOB_STATE_DONE"])
    night = pass_night(folder, cloud, {"date": "2026-11-20"}, "--history", "3")
    run = f"{folder}/runs/2026-11-20"
    assert (night.state, night.outcomes) == ("SUCCEEDED", ["passed"]), night.log
    assert night.result == {"run": run, "outcome": "passed"}
    assert [job["jobName"] for job in cloud.launched] == ["beamcam-2026-11-20-1", "beamcam-2026-11-20-2"]
    assert cloud.launched[1] | {"jobName": ""} == {
        "jobName": "",
        "containerSpecGcsPath": "gs://assets/template.json",
        "parameters": {"since": "latest", "images": "gs://photographs/", "output": run},
        "environment": {"maxWorkers": 8},
    }
    assert cloud.commands == [["verify", run], ["audit", run, "--history", "3"]]


@pytest.mark.slow
def test_findings_are_an_outcome_of_their_own_and_no_failure(folder: Path) -> None:
    cloud = Cloud(["JOB_STATE_DONE"])
    night = pass_night(folder, cloud, {"date": "2026-11-21"}, name="second-beamcam")
    assert (night.state, night.outcomes) == ("SUCCEEDED", ["findings"]), night.log
    assert [job["jobName"] for job in cloud.launched] == ["second-beamcam-2026-11-21-1"]
    assert night.result["outcome"] == "findings"


@pytest.mark.slow
def test_a_run_that_is_not_whole_is_a_failure_and_is_not_audited(folder: Path) -> None:
    shutil.copytree(folder / "runs/2026-11-20", folder / "runs/2026-11-19")
    next((folder / "runs/2026-11-19/records").iterdir()).write_bytes(b"")
    cloud = Cloud(["JOB_STATE_DONE"])
    night = pass_night(folder, cloud, {"date": "2026-11-19"})
    assert (night.state, night.outcomes) == ("FAILED", ["failed"]), night.log
    assert "night 2026-11-19: the run is not whole, beamcam verify ended with 1" in night.log
    assert [words[0] for words in cloud.commands] == ["verify"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("states", "launches", "words"),
    [
        (["JOB_STATE_FAILED"] * 2, 2, "the Dataflow job ended as JOB_STATE_FAILED"),
        (["JOB_STATE_CANCELLED"], 1, "the Dataflow job ended as JOB_STATE_CANCELLED"),
    ],
)
def test_a_job_that_ends_badly_is_a_failure(folder: Path, states: list[str], launches: int, words: str) -> None:
    cloud = Cloud(states)
    night = pass_night(folder, cloud, {"date": "2026-11-18"})
    assert (night.state, night.outcomes, len(cloud.launched), cloud.commands) == ("FAILED", ["failed"], launches, [])
    assert words in night.log


@pytest.mark.slow
def test_a_launch_that_is_refused_is_a_failure_and_without_a_date_it_is_todays(folder: Path) -> None:
    before = datetime.datetime.now(datetime.timezone.utc).date()
    night = pass_night(folder, Cloud([], refused=True), {})
    assert (night.state, night.outcomes) == ("FAILED", ["failed"]), night.log
    after = datetime.datetime.now(datetime.timezone.utc).date()
    assert any(f"night {date}: " in night.log for date in (before, after))


@pytest.mark.slow
def test_nights_of_the_template_go_on_from_each_other(folder: Path) -> None:
    parameters = {
        "since": "latest", "images": str(folder / "photographs"), "model": str(folder / "model.keras"),
        "preprocess": "tf", "overlays": "none", "jit": "off", "storage_timeout": "60",
    }  # fmt: skip
    draw_images(folder / "photographs", 12, seed=9, largest=64)
    later = folder / "later"
    later.mkdir()
    for path in sorted((folder / "photographs").iterdir())[8:]:
        path.rename(later / path.name)
    first = pass_night(folder, Cloud([], works=True), {"date": "2027-01-01"}, parameters=parameters)
    assert (first.state, first.outcomes) == ("SUCCEEDED", ["passed"]), first.log
    for path in later.iterdir():
        path.rename(folder / "photographs" / path.name)
    second = pass_night(folder, Cloud([], works=True), {"date": "2027-01-02"}, parameters=parameters)
    assert (second.state, second.outcomes) == ("SUCCEEDED", ["passed"]), second.log
    counts = [open_run(folder / "runs" / date).summary for date in ("2027-01-01", "2027-01-02")]
    assert [(one["records"], one["carried"]) for one in counts] == [(8, 0), (12, 8)]

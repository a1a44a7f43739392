"""Real jobs in processes of their own: what they log of runs and shards, and a watch that follows them."""

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@contextlib.contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen]:
    """A command that does not outlive the block, and neither do the processes that it has started."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **given) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run_options(photographs: Path, model: str, output: Path) -> tuple[object, ...]:
    return ("run", "--images", photographs / "manifest.jsonl", "--model", model, "--preprocess", "tf", "--jit", "off",
            "--shard-size", 2, "--overlays", "none", "--output", output)  # fmt: skip


def objects(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def watched(tmp_path_factory, photographs, tiny_model_path) -> dict[str, Any]:
    """A job in two processes, and a watch that was there before it; both log in JSON."""
    output = tmp_path_factory.mktemp("watched") / "run"
    two = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    options = (*run_options(photographs, tiny_model_path, output), "--log-format", "json", "--verbose", *two)
    with started("watch", output, "--interval", "0.05", "--log-format", "json") as watch, started(*options) as job:
        said, logged = job.communicate(timeout=200)
        told, complained = watch.communicate(timeout=60)
    markers = [json.loads(path.read_text()) for path in output.glob("shards/*.json")]
    summary = json.loads((output / "run.json").read_text())
    return {"output": output, "codes": (job.returncode, watch.returncode), "job": objects(said) + objects(logged),
            "told": objects(told), "said": said, "complained": complained, "markers": markers,
            "summary": summary}  # fmt: skip


@pytest.mark.slow
def test_a_watch_follows_a_job_to_its_end(watched) -> None:
    assert watched["codes"] == (0, 0)
    looks, last = watched["told"][:-1], watched["told"][-1]
    assert [look["shards_done"] for look in looks] == sorted(look["shards_done"] for look in looks)
    assert (looks[0]["images"], looks[0]["shards"]) == (13, 7)
    assert (looks[-1]["images_done"], looks[-1]["is_complete"], looks[-1]["workers"]) == (13, True, 2)
    assert last["message"] == "the run is complete: 13 records, 0 failures, 0 overlays"
    (waiting,) = objects(watched["complained"])
    assert "waiting for its manifest.parquet" in waiting["message"]


@pytest.mark.slow
def test_each_shard_is_logged_with_its_run_its_number_and_its_process(watched) -> None:
    committed = [line for line in watched["job"] if line["message"].startswith("committed in")]
    assert all(line["run"] == str(watched["output"]) for line in watched["job"])
    found = {line["shard"]: (line["worker"], line["records"]) for line in committed}
    assert len(committed) == len(found) == 7
    assert found == {marker["shard"]: (marker["worker"], marker["records"]) for marker in watched["markers"]}


@pytest.mark.slow
def test_each_process_loads_the_model_once_and_says_so(watched) -> None:
    workers = {marker["worker"] for marker in watched["markers"]}
    assert {marker["model_loads"] for marker in watched["markers"]} == {1}
    assert watched["summary"]["workers"] == watched["summary"]["model_loads"] == len(workers) == 2


@pytest.mark.slow
def test_a_job_ends_with_its_counts_as_fields(watched) -> None:
    lines = watched["said"].splitlines()
    assert len(objects(watched["said"])) == len(lines), "every line of a job that logs in JSON is an object"
    last = json.loads(lines[-1])
    assert {name: last[name] for name in ("inputs", "records", "failures", "workers")} == {
        "inputs": 13, "records": 13, "failures": 0, "workers": 2
    }  # fmt: skip
    assert last["seconds_by_stage"] == watched["summary"]["seconds_by_stage"]


def test_an_error_in_json_says_how_the_command_ends(tmp_path) -> None:
    with started("verify", tmp_path, "--log-format", "json") as process:
        _, complained = process.communicate(timeout=60)
    (told,) = [json.loads(line) for line in complained.splitlines()]
    assert (process.returncode, told["exit_code"], told["severity"], told["error"]) == (2, 2, "ERROR", "ConfigError")
    assert told["run"] == str(tmp_path)


def wait_for(process: subprocess.Popen, words: bytes, source: int) -> bytes:
    """What a process has written to a terminal when some words are there."""
    found, deadline = b"", time.monotonic() + 60
    while words not in found and time.monotonic() < deadline:
        if select.select([source], [], [], 1)[0]:
            found += os.read(source, 10_000)
    assert words in found, (found, process.poll())
    return found


def test_a_watch_that_is_interrupted_says_that_the_run_goes_on(tmp_path) -> None:
    from tests.pipeline.test_watching import begin, commit

    layout = begin(str(tmp_path))
    commit(layout, 0, 1)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    try:
        with started("watch", tmp_path, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            wait_for(process, b"8/10 images", ours)
            process.send_signal(signal.SIGINT)
            ending = wait_for(process, b"not watched any more; the run goes on", ours)
            assert b"Traceback" not in ending
            assert process.wait(30) == 130
    finally:
        os.close(ours)


@pytest.mark.parametrize("wrong", [("--interval", "0"), ("--interval", "soon"), ("--stalled-after", "-1")])
def test_times_are_numbers_above_nothing(wrong) -> None:
    with started("watch", "run", *wrong) as process:
        assert "a time is a number above 0" in process.communicate(timeout=30)[1]
    assert process.returncode == 2

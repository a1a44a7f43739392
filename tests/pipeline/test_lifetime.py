"""Workers end when their job does, whoever their parent is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

WORKER = """
import importlib.machinery, sys, time
sys.modules["__main__"].__spec__ = importlib.machinery.ModuleSpec("{name}", None)
from pipeline.lifetime import end_with_job
end_with_job()
print("ready", flush=True)
time.sleep(60)
"""


def start_worker(job: int | None, name: str = "apache_beam.runners.worker.sdk_worker_main") -> subprocess.Popen:
    variables = {key: value for key, value in os.environ.items() if key != "BEAMCAM_JOB"}
    variables |= {} if job is None else {"BEAMCAM_JOB": str(job)}
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER.format(name=name)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


@pytest.fixture
def job():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_worker_ends_with_its_job_though_its_parent_lives(job) -> None:
    worker = start_worker(job.pid)
    with worker:
        time.sleep(1.5)
        assert worker.poll() is None
        job.kill()
        job.wait()
        assert worker.wait(20) == 1


@pytest.mark.parametrize("name", ["pytest.__main__", "pipeline.cli"])
def test_what_is_no_worker_goes_on(job, name) -> None:
    job.kill()
    job.wait()
    worker = start_worker(job.pid, name)
    with worker:
        time.sleep(1.5)
        assert worker.poll() is None
        worker.kill()


def test_a_worker_of_nobody_goes_on() -> None:
    worker = start_worker(None)
    with worker:
        time.sleep(1.5)
        assert worker.poll() is None
        worker.kill()

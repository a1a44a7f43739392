"""infra/flink/cluster.sh with a program in Java's place: which processes it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.engines import commands
from tests.infra.programs import ROOT


def make_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def is_alive(process: int) -> bool:
    told = subprocess.run(["ps", "-p", str(process), "-o", "stat="], capture_output=True, text=True, check=False)
    return told.stdout.strip()[:1] not in ("", "Z")


def processes(cluster: Path) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in cluster.glob("*.pid")}


def test_taskmanagers_that_outlive_their_jobmanager_end_when_a_new_cluster_starts(tmp_path: Path) -> None:
    make_program(tmp_path / "bin/java", f"#!{sys.executable}\nimport time\ntime.sleep(100)\n")
    make_program(tmp_path / "bin/python", "#!/bin/sh\necho 2\n")  # asks how many slots there are
    (tmp_path / f"cache/flink/flink-{commands.flink_version()}/lib").mkdir(parents=True)
    cluster = tmp_path / "cluster"
    variables = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "BEAMCAM_CACHE": str(tmp_path / "cache"),
                 "CLUSTER": str(cluster), "PYTHON": str(tmp_path / "bin/python"), "TASKMANAGERS": "2"}  # fmt: skip

    def call(verb: str) -> None:
        script = str(ROOT / "infra/flink/cluster.sh")
        ended = subprocess.run(
            [script, verb], env=variables, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stderr

    try:
        call("start")
        old = processes(cluster)
        assert set(old) == {"jobmanager", "taskmanager-1", "taskmanager-2"}
        assert all(map(is_alive, old.values()))
        os.kill(old["jobmanager"], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while is_alive(old["jobmanager"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        call("start")
        new = processes(cluster)
        assert set(new) == set(old)
        assert not any(map(is_alive, old.values()))
        assert all(map(is_alive, new.values()))
    finally:
        call("stop")
    assert not any(map(is_alive, new.values()))
    assert processes(cluster) == {}

"""A night by the very commands of infra/kubernetes, with processes for pods: Flink, Beam's worker pool, night.sh."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import open_run
from tests import models
from tests.engines.cluster import free_ports, running_cluster
from tests.engines.commands import JAR, missing_flink
from tests.faults.jobs import ROOT, draw_images, start
from tests.infra.test_kubernetes import pod_of_night, pod_of_taskmanager


@pytest.mark.slow
def test_the_cronjobs_command_passes_a_night_with_the_pods_own_worker_pool(tmp_path: Path) -> None:
    if why := missing_flink():
        pytest.skip(why)
    models.gap_dense(3, size=32).save(tmp_path / "model.keras")
    draw_images(tmp_path / "images", 24, 3, largest=64)
    options = {"images": [str(tmp_path / "images")], "model": str(tmp_path / "model.keras"), "preprocess": "tf",
               "shard_size": 8, "overlays": "none", "jit": "off"}  # fmt: skip
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    program = tmp_path / "beamcam"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pipeline.cli "$@"\n')
    program.chmod(0o755)
    # In the image, `python` is the one that has beamcam.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = {"PATH": path, "PYTHONPATH": str(ROOT), "TASKMANAGERS": "1"}
    with running_cluster(tmp_path, environment=here) as cluster:
        (port,) = free_ports(1)
        (pool,) = (one["command"] for one in pod_of_taskmanager()["spec"]["containers"] if one["name"] == "workers")
        places = {
            "gs://my-audits": str(tmp_path / "runs"), "/etc/beamcam/": f"{tmp_path}/", "flink-rest:8081":
            f"localhost:{cluster.rest_port}", "/opt/beamcam/flink/job-server.jar": str(JAR), "50000": str(port),
            "--parallelism=8": "--parallelism=1", "/opt/beamcam/infra": f"{ROOT}/infra",
        }  # fmt: skip
        (night,) = pod_of_night()["containers"]
        command = [_replaced(word, places) for word in [*night["command"], *night["args"]]]
        with (tmp_path / "pool.log").open("w") as log:
            words = [_replaced(word, places) for word in pool]
            process = subprocess.Popen(words, env={**os.environ, **here}, stdout=log, stderr=subprocess.STDOUT)
        try:
            variables = {**here, "BEAMCAM": str(program), "DATE": "2026-11-21"}
            ended = start(command, tmp_path / "tmp", variables).wait(250)
        finally:
            process.terminate()
            process.wait(60)
    assert (ended.code, ended.complaint) == (0, "night 2026-11-21: all is well"), (
        ended.said + (tmp_path / "pool.log").read_text()
    )
    assert "FlinkRunner" in " ".join(command)
    assert len(open_run(tmp_path / "runs/2026-11-21")) == 24


def _replaced(word: str, places: dict[str, str]) -> str:
    for there, here in places.items():
        word = word.replace(there, here)
    return word

"""What is filled in and refused for Flink, by what its REST port says; and for Dask."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline import ConfigError, RunConfig
from pipeline.graph import prepare_options

CONFIG = RunConfig(("photos/",), "m.keras", "run", preprocess="tf")
POOL = ("--environment_type=EXTERNAL", "--environment_config=localhost:50000")


@pytest.fixture(autouse=True)
def java(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "java" else None)


@contextmanager
def answering(status: int, answer: object) -> Iterator[str]:
    """A JobManager's REST port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/overview" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def parallelism(*words: str) -> int:
    return prepare_options(["--runner=FlinkRunner", *words], CONFIG).get_all_options()["parallelism"]


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare_options(list(words), CONFIG)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_job_takes_all_slots_of_a_cluster_unless_somebody_says_how_many() -> None:
    with answering(200, {"slots-total": 7, "slots-available": 3}) as master:
        assert parallelism(f"--flink_master={master}", *POOL) == 7
        assert parallelism(f"--flink_master=http://{master}/", *POOL) == 7
        assert parallelism(f"--flink_master={master}", *POOL, "--parallelism=2") == 2


@pytest.mark.parametrize(("status", "answer"), [(200, {"slots-total": 0}), (401, {}), (503, {})])
def test_a_cluster_that_starts_its_workers_when_they_are_needed_or_asks_who_is_there_is_left_alone(
    status, answer
) -> None:
    with answering(status, answer) as master:
        assert parallelism(f"--flink_master={master}", *POOL) == -1


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    said = refusal("--runner=FlinkRunner", "--flink_master=127.0.0.1:9", *POOL)
    assert said.startswith("--flink_master: no Flink answers at http://127.0.0.1:9 (")
    assert "Connection refused" in said
    with answering(200, ["a web page"]) as master:
        assert "what answers is no Flink" in refusal("--runner=FlinkRunner", f"--flink_master={master}", *POOL)


def test_whoever_submits_to_a_job_server_need_not_reach_the_cluster() -> None:
    assert parallelism("--flink_master=127.0.0.1:9", "--job_endpoint=127.0.0.1:9", *POOL) == -1


def test_a_cluster_must_be_told_where_its_workers_come_from() -> None:
    with answering(200, {"slots-total": 2}) as master:
        assert "--environment_type=EXTERNAL" in refusal("--runner=FlinkRunner", f"--flink_master={master}")
        assert parallelism(f"--flink_master={master}", "--environment_config=image:1") == 2


@pytest.mark.parametrize("master", ["[local]", "[auto]"])
def test_an_embedded_cluster_needs_to_be_told_nothing(master) -> None:
    assert parallelism(f"--flink_master={master}") == -1


def test_a_job_server_that_is_not_there_and_a_java_that_is_missing_are_told(tmp_path) -> None:
    jar = tmp_path / "job-server.jar"
    said = refusal("--runner=FlinkRunner", f"--flink_job_server_jar={jar}")
    assert said == f"--flink_job_server_jar {str(jar)!r} is not there: infra/flink/get.sh makes one"
    jar.touch()
    assert parallelism(f"--flink_job_server_jar={jar}") == -1
    said = refusal("--runner=FlinkRunner", "--job_server_java_launcher=java-99")
    assert "there is no 'java-99' here: install Java 11 or 17" in said
    assert parallelism("--job_server_java_launcher=java-99", "--job_endpoint=127.0.0.1:9", "--flink_master=x") == -1


def test_a_detached_job_on_dask_would_never_be_summed_up() -> None:
    pytest.importorskip("distributed")
    dask = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
    assert "let the command wait" in refusal(dask, "--no_wait_until_finish")
    prepare_options([dask], CONFIG)

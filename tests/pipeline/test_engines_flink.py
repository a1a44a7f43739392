"""What is filled in and refused for Flink, by what its REST port says; and for Dask."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from apache_beam.runners.portability.flink_runner import FlinkRunner

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
    with answering(200, {"slots-total": 7, "slots-available": 7}) as master:
        assert parallelism(f"--flink_master={master}", *POOL) == 7
        assert parallelism(f"--flink_master=http://{master}/", *POOL) == 7
        assert parallelism(f"--flink_master={master}", *POOL, "--parallelism=2") == 2


@pytest.mark.parametrize(
    ("slots", "taken"),
    [
        ({"slots-total": 7, "slots-available": 3}, 3),
        ({"slots-total": 7, "slots-available": 0}, 7),  # the job waits until another one ends
        ({"slots-total": 7}, 7),
    ],
)
def test_a_job_leaves_the_slots_to_another_that_it_holds(slots, taken) -> None:
    with answering(200, slots) as master:
        assert parallelism(f"--flink_master={master}", *POOL) == taken


def test_a_cluster_is_asked_without_the_proxy_of_the_environment(monkeypatch) -> None:
    with answering(200, {"slots-total": 9}) as proxy, answering(200, {"slots-total": 2}) as master:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(urllib.request, "_opener", None)  # keeps the proxies of when it was first used
        assert parallelism(f"--flink_master={master}", *POOL) == 2


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


@pytest.mark.parametrize(
    ("master", "why"), [("localhost:80x", "nonnumeric port: '80x'"), ("a host:8081", "control characters")]
)
def test_an_address_that_is_none_is_told_in_one_line(master, why) -> None:
    said = refusal("--runner=FlinkRunner", f"--flink_master={master}", *POOL)
    assert said.startswith(f"--flink_master: no Flink answers at http://{master} (")
    assert why in said


def test_a_port_that_does_not_speak_http_is_told_in_one_line() -> None:
    def greet(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(b"220 mail.example.com\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet, args=(server,), daemon=True)
        thread.start()
        master = f"127.0.0.1:{server.getsockname()[1]}"
        said = refusal("--runner=FlinkRunner", f"--flink_master={master}", *POOL, "--parallelism=2")
        thread.join()
    assert said.startswith(f"--flink_master: no Flink answers at http://{master} (what answers is no Flink)")


@pytest.mark.parametrize("words", [(), ("--flink_master=[auto]",), ("--flink_submit_uber_jar",)])
def test_a_job_that_nobody_waits_for_is_refused_where_the_command_starts_the_job_server(words) -> None:
    said = refusal("--runner=FlinkRunner", "--no_wait_until_finish", *words)
    assert said.startswith("--no_wait_until_finish would submit nothing: Beam's job server is started by this command")
    assert said.endswith("with --job_endpoint")


def test_a_job_that_nobody_waits_for_is_refused_on_a_cluster_unless_a_job_server_stays() -> None:
    with answering(200, {"slots-total": 2}) as master:
        words = (f"--flink_master={master}", "--no_wait_until_finish", *POOL)
        assert "would submit nothing" in refusal("--runner=FlinkRunner", *words)
        assert parallelism(*words, "--job_endpoint=127.0.0.1:9") == -1
        assert parallelism(*words, "--flink_submit_uber_jar") == 2


def test_a_job_that_is_handed_over_as_a_jar_needs_no_java_here(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with answering(200, {"slots-total": 2}) as master:
        words = (f"--flink_master={master}", *POOL)
        assert "there is no 'java' here" in refusal("--runner=FlinkRunner", *words)
        assert parallelism(*words, "--flink_submit_uber_jar") == 2
    assert "there is no 'java' here" in refusal("--runner=FlinkRunner", "--flink_submit_uber_jar")  # embedded


def test_workers_come_from_the_image_that_is_named_and_not_from_beams_own() -> None:
    def image_of(*words: str) -> str:
        options = prepare_options(["--runner=FlinkRunner", f"--flink_master={master}", *words], CONFIG)
        return FlinkRunner().default_environment(options).container_image

    with answering(200, {"slots-total": 2}) as master:
        assert image_of("--sdk_container_image=mine:1") == "mine:1"
        assert image_of("--sdk_container_image=mine:1", "--environment_type=DOCKER") == "mine:1"
        assert image_of("--sdk_container_image=mine:1", "--environment_config=other:2") == "other:2"
        options = prepare_options(
            ["--runner=FlinkRunner", f"--flink_master={master}", "--sdk_container_image=mine:1", *POOL], CONFIG
        )
    assert options.get_all_options()["environment_config"] == "localhost:50000"


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
    assert "is an option of Dataflow" in refusal(dask, "--template_location=gs://b/t")
    prepare_options([dask], CONFIG)

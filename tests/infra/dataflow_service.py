"""What Dataflow's service does with a job, as far as a launcher sees it; the graph is really run, by Beam's own runner.

    with running_service() as endpoint: ...  # beamcam run --runner DataflowRunner --dataflow_endpoint ENDPOINT

Jobs are created, asked for and cancelled as Google documents it, and their graphs read from where they were staged.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import storage


def run_graph_of_job(data: bytes) -> None:
    """Runs a job's graph in a process that knows nothing else, in place of the container that Dataflow would start."""
    graph = beam_runner_api_pb2.Pipeline.FromString(data)
    for environment in graph.components.environments.values():
        environment.urn = python_urns.SUBPROCESS_SDK
        environment.payload = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main".encode()
        del environment.dependencies[:]
    FnApiRunner().run_via_runner_api(graph, PipelineOptions()).wait_until_finish()


@dataclass
class Service:
    """Jobs by their ids, and what became of them."""

    endpoint: str = ""
    before: Callable[[], None] = lambda: None  # what happens before a job begins
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    messages: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        """Begins a job."""
        number = f"2026-11-22_{len(self.jobs):02d}"
        self.jobs[number] = {**job, "id": number, "currentState": "JOB_STATE_RUNNING"}
        self.messages[number] = []
        threading.Thread(target=self._work, args=(number,), daemon=True).start()
        return {name: self.jobs[number][name] for name in ("id", "name", "clientRequestId", "currentState")}

    def _work(self, number: str) -> None:
        place = self.jobs[number]["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
        try:
            self.before()
            run_graph_of_job(storage.read_bytes(place))
            self.jobs[number]["currentState"] = "JOB_STATE_DONE"
        except Exception as error:  # noqa: BLE001 - whatever it is, the job has failed by it
            told = {"time": "2026-11-22T00:00:00Z", "messageImportance": "JOB_MESSAGE_ERROR", "messageText": str(error)}
            self.messages[number].append(told)
            self.jobs[number]["currentState"] = "JOB_STATE_FAILED"


@contextlib.contextmanager
def running_service() -> Iterator[Service]:
    """A service at an address of its own."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(service.create(job))

        def do_GET(self) -> None:
            number, messages = re.findall(r"/jobs/([^/?]+)(/messages)?", self.path)[0]
            self.answer({"jobMessages": service.messages[number]} if messages else service.jobs[number])

        def answer(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Requests are no news."""

    with ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        service.endpoint = f"http://localhost:{server.server_address[1]}"  # Beam talks HTTP to no other host
        yield service
        server.shutdown()

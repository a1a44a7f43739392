"""Beam's worker pool for a machine with any number of TaskManagers: `python infra/flink/pool.py --port 50000`.

Flink asks it for Python processes (`--environment_type=EXTERNAL`). Beam's own, `worker_pool_main`, does for one
TaskManager, as in a pod of Kubernetes. Beside two it does not: each counts its workers from 1-1, the pool knows a
worker by that number alone, and stops the other's (Beam 2.77: the job hung for three minutes, and went on by Flink's
restart).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from types import FrameType
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.utils import thread_pool_executor

logger = logging.getLogger("pool")

PROGRAM = """import sys
from apache_beam.runners.worker.sdk_worker import SdkHarness
SdkHarness(sys.argv[1], worker_id=sys.argv[2], state_cache_size=0, data_buffer_time_limit_ms=-1).run()"""
"""What Beam's own pool runs."""

PATIENCE = 10  # seconds for a worker to end


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts workers, and ends those of which there is no doubt whose they are."""

    def __init__(self) -> None:
        self.workers: dict[str, list[subprocess.Popen]] = defaultdict(list)
        self.lock = threading.Lock()

    def StartWorker(self, request: beam_fn_api_pb2.StartWorkerRequest, _: Any) -> Any:  # noqa: N802 - gRPC's name
        """A process that talks to the TaskManager which asks for it."""
        command = [sys.executable, "-c", PROGRAM, request.control_endpoint.url, request.worker_id]
        # Standard output goes where the pool's goes: in a pipe that nobody reads, 64 KB of it would stop the worker.
        worker = subprocess.Popen(command)  # noqa: S603 - its arguments are no program: an address and a number
        with self.lock:
            self.workers = defaultdict(
                list, {name: list(filter(is_running, some)) for name, some in self.workers.items()}
            )
            self.workers[request.worker_id].append(worker)
        logger.info("worker %s of %s is process %d", request.worker_id, request.control_endpoint.url, worker.pid)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: beam_fn_api_pb2.StopWorkerRequest, _: Any) -> Any:  # noqa: N802 - gRPC's name
        """Ends a worker; where two have its number, each ends by itself as soon as its TaskManager hangs up."""
        with self.lock:
            running = list(filter(is_running, self.workers.pop(request.worker_id, [])))
            if len(running) > 1:
                self.workers[request.worker_id] = running
        if len(running) == 1:
            end(running[0])
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """Ends all workers."""
        with self.lock:
            workers = [worker for some in self.workers.values() for worker in some]
        for worker in workers:
            worker.terminate()
        for worker in workers:
            end(worker)


def is_running(worker: subprocess.Popen) -> bool:
    """Whether a process has not ended by itself; one that has is taken leave of."""
    return worker.poll() is None


def end(worker: subprocess.Popen) -> None:
    """Asks a process to end, and makes it end if it does not."""
    worker.terminate()
    try:
        worker.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def serve(host: str, port: int) -> None:
    """Serves until it is interrupted or terminated."""
    pool = Pool()
    # Without this, a second pool on a port would be given half of the calls.
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=[("grpc.so_reuseport", 0)])
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    bound = server.add_insecure_port(f"{host}:{port}")
    server.start()
    logger.info("ready: --environment_type=EXTERNAL --environment_config=%s:%d", host, bound)
    ended = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    ended.wait()
    server.stop(0)
    pool.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Whoever can reach the port can start processes here.
    parser.add_argument("--host", default="localhost", help="the address to listen at, default localhost")
    parser.add_argument("--port", type=int, default=50000, help="default 50000; 0 for any that is free")
    arguments = parser.parse_args()
    logging.basicConfig(force=True, level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its workers inherit it
    serve(arguments.host, arguments.port)


if __name__ == "__main__":
    main()

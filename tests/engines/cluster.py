"""A Flink cluster of two TaskManagers and a pool of Python workers, started as the documentation says."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.engines.commands import documented
from tests.faults.jobs import ROOT

SCRIPT = str(ROOT / "infra/flink/cluster.sh")


@dataclass(frozen=True)
class Cluster:
    """One that is running."""

    folder: Path
    rest_port: int
    pool_port: int
    environment: Mapping[str, str]

    @property
    def options(self) -> tuple[str, ...]:
        """Those of the documented command, with this cluster's ports."""
        words = documented("infra/flink/README.md", "--environment_type")
        ports = {"localhost:8081": self.rest_port, "localhost:50000": self.pool_port}
        changed = [re.sub("|".join(ports), lambda found: f"localhost:{ports[found[0]]}", word) for word in words]
        assert sum(one != other for one, other in zip(words, changed, strict=True)) == len(ports)
        return tuple(changed)

    def taskmanager(self, number: int) -> int:
        """The process of a TaskManager."""
        return int((self.folder / f"cluster/taskmanager-{number}.pid").read_text())

    def workers(self) -> list[int]:
        """The Python processes that the pool has started, in the order of their start; the dead ones too."""
        return [int(number) for number in re.findall(r"is process (\d+)", self.pool_log)]

    @property
    def pool_log(self) -> str:
        """What the pool and its workers say."""
        return self._pool_file.read_text(errors="replace")

    @property
    def _pool_file(self) -> Path:
        return self.folder / f"pool-{self.pool_port}.log"

    @contextlib.contextmanager
    def running_pool(self, prefix: Sequence[str] = ()) -> Iterator[None]:
        """The pool, for as long as the block runs.

        Args:
            prefix: a command that runs others, such as taskset.

        Raises:
            RuntimeError: it did not come up; with what it said.
        """
        command = [*prefix, sys.executable, "infra/flink/pool.py", "--port", str(self.pool_port)]
        variables = {**self.environment, "PYTHONPATH": str(ROOT)}  # as where beamcam is installed
        with self._pool_file.open("w") as log:
            pool = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while "pool ready" not in self.pool_log:
                if pool.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the pool did not come up: {self.pool_log}")
                time.sleep(0.1)
            yield
        finally:
            pool.terminate()
            pool.wait(60)

    @contextlib.contextmanager
    def beside(self, prefix: Sequence[str], environment: Mapping[str, str]) -> Iterator[Cluster]:
        """The same cluster with a pool of another kind."""
        port, variables = free_ports(1)[0], {**self.environment, **environment}
        other = dataclasses.replace(self, pool_port=port, environment=variables)
        with other.running_pool(prefix):
            yield other

    def history(self) -> list[str]:
        """What the JobManager tells of jobs that change their state, and of TaskManagers that come and go."""
        text = (self.folder / "cluster/log/jobmanager.log").read_text(errors="replace")
        told = (
            r"Job \S+ \(\w+\) switched|tasks will be restarted|Registering TaskManager|unreachable|no longer reachable"
        )
        return [line for line in text.splitlines() if re.match(r"\d\d:", line) and re.search(told, line)]


@contextlib.contextmanager
def running_cluster(folder: Path, slots: int = 1, environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster for as long as the block runs.

    Args:
        folder: for its logs.
        slots: of each TaskManager: with two, one does the work of the other if that dies.
        environment: more variables, for the workers.

    Raises:
        RuntimeError: it did not come up; with what it said.
    """
    rest, rpc, pool = free_ports(3)
    settings = {"CLUSTER": folder / "cluster", "REST_PORT": rest, "RPC_PORT": rpc, "SLOTS": slots}
    settings |= {"PYTHON": sys.executable, "TF_CPP_MIN_LOG_LEVEL": 3}
    texts = {name: str(value) for name, value in settings.items()}
    cluster = Cluster(folder, rest, pool, {**os.environ, **texts, **(environment or {})})
    try:
        _call(cluster.environment, "start")
        with cluster.running_pool():
            yield cluster
    finally:
        _call(cluster.environment, "stop")


def kill(process: int) -> None:
    """SIGKILL."""
    os.kill(process, signal.SIGKILL)


def _call(variables: Mapping[str, str], verb: str) -> None:
    ended = subprocess.run(
        [SCRIPT, verb], env=dict(variables), capture_output=True, text=True, timeout=120, check=False
    )
    if ended.returncode != 0:
        raise RuntimeError(f"cluster.sh {verb} ended with {ended.returncode}: {ended.stderr}")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]

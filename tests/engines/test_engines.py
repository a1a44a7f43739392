"""One job on every engine that can be had here: the same records, and nothing lost when a part of one is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from pipeline.counting import count_workers
from tests.engines import commands
from tests.engines.cluster import Cluster, free_ports, kill, running_cluster
from tests.faults.jobs import PROCESSES, ROOT, Job, Running, Workplace, verify, wait_for
from tests.faults.places import Place

pytestmark = pytest.mark.slow

FLINK = "infra/flink/README.md"
PRISM = "infra/prism/README.md"

WAIT = 200  # seconds, within the time that a test has: a job that hangs is killed, and says where it was


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """320 photographs in 40 shards, some of the photographs damaged."""
    return Workplace(tmp_path_factory.mktemp("engines"), seed=17, count=320, shard_size=8)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two TaskManagers of two slots each, so that one can do the work of both."""
    if why := commands.missing_flink():
        pytest.skip(why)
    with running_cluster(tmp_path_factory.mktemp("flink"), slots=2) as found:
        yield found


def job_on(work: Workplace, folder: Path, options: tuple[str, ...]) -> tuple[Job, Place]:
    place = Place("local", str(folder / "run"), {})
    if "FlinkRunner" in options:  # the job server's own temporary files, which Java does not put into TMPDIR
        options = (*options, f"--job_server_jvm_properties=-Djava.io.tmpdir={folder}")
    return work.job(place.root, *options), place


def check_run(work: Workplace, place: Place, running: Running, workers: int | None) -> None:
    """The job has ended well, with what one process writes; each of its workers has loaded the model once."""
    ended = running.wait(WAIT)
    assert ended.code == 0, ended.said
    assert list(work.whole.compare(place)) == []
    assert list(verify(place, Path(place.root).parent / "tmp")) == []
    found = count_workers(markers_of(place))
    if workers is not None:
        assert found == {"workers": workers, "model_loads": workers}


def markers_of(place: Place) -> list[dict]:
    return [json.loads(data) for data in place.read(place.names("shards")).values()]


def shares(place: Place) -> list[int]:
    """How many shards each worker has committed, ascending."""
    names = [marker["worker"] for marker in markers_of(place)]
    return sorted(names.count(name) for name in set(names))


def wait_for_shards(place: Place, running: Running, count: int) -> None:
    assert wait_for(lambda: len(place.names("shards")) >= count, running, limit=WAIT), running.output.read_text()


def test_one_process_loads_the_model_once(work) -> None:
    assert count_workers(markers_of(work.whole.place)) == {"workers": 1, "model_loads": 1}


def test_two_processes_write_what_one_writes(work, tmp_path, watched) -> None:
    job, place = job_on(work, tmp_path, PROCESSES)
    check_run(work, place, watched(job.start()), workers=2)
    assert min(shares(place)) >= 5


def test_embedded_flink_writes_what_one_process_writes(work, tmp_path, watched) -> None:
    if why := commands.missing_flink():
        pytest.skip(why)
    job, place = job_on(work, tmp_path, commands.documented(FLINK, "[local]"))
    check_run(work, place, watched(job.start()), workers=1)


def test_a_flink_cluster_spreads_the_same_records_over_its_workers(cluster, work, tmp_path, watched) -> None:
    job, place = job_on(work, tmp_path, cluster.options)
    check_run(work, place, watched(job.start()), workers=2)
    assert min(shares(place)) >= 10, "half of 40, if neither is much slower than the other"


def test_a_taskmanager_is_killed_and_nothing_is_lost_or_doubled(cluster, work, tmp_path, watched) -> None:
    job, place = job_on(work, tmp_path, cluster.options)
    before = len(cluster.history())
    running = watched(job.start())
    wait_for_shards(place, running, 8)
    kill(cluster.taskmanager(2))
    committed = {name: place.read({name})[name] for name in place.names("shards")}
    assert len(committed) < work.n_shards - 8, "the job was to be half-way"
    check_run(work, place, running, workers=None)
    assert any("tasks will be restarted" in line for line in cluster.history()[before:])
    assert place.read(set(committed)) == committed, "what is committed is not made again"
    subprocess.run([str(ROOT / "infra/flink/cluster.sh"), "taskmanager"], env=dict(cluster.environment), check=True)


def test_a_worker_is_killed_and_nothing_is_lost_or_doubled(cluster, work, tmp_path, watched) -> None:
    job, place = job_on(work, tmp_path, cluster.options)
    before = len(cluster.history())
    running = watched(job.start())
    wait_for_shards(place, running, 8)
    kill(int(markers_of(place)[-1]["worker"].rpartition("/")[2]))
    assert len(place.names("shards")) < work.n_shards - 8, "the job was to be half-way"
    check_run(work, place, running, workers=None)
    assert any("tasks will be restarted" in line for line in cluster.history()[before:])


def test_prism_writes_what_one_process_writes(work, tmp_path, watched) -> None:
    if why := commands.missing_prism():
        pytest.skip(why)
    job, place = job_on(work, tmp_path, commands.documented(PRISM, "--prism_location"))
    check_run(work, place, watched(job.start()), workers=1)


def test_dask_writes_what_one_process_writes(work, tmp_path, watched) -> None:
    if why := commands.missing_dask():
        pytest.skip(why)
    job, place = job_on(work, tmp_path, ("--runner", commands.DASK))
    check_run(work, place, watched(job.start()), workers=None)
    found = count_workers(markers_of(place))
    assert found["workers"] == found["model_loads"]


def test_two_workers_of_one_number_do_not_end_each_other() -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "infra/flink/pool.py", "--port", str(port)]
    pool = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with pool, grpc.insecure_channel(f"localhost:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(60)
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            for name in ("1-1", "1-1", "2-1"):
                request = beam_fn_api_pb2.StartWorkerRequest(worker_id=name)
                request.control_endpoint.url = "localhost:1"  # nobody, so that each waits
                stub.StartWorker(request)
            assert pool.stderr is not None
            lines = (line for line in pool.stderr if " is process " in line)
            one, other, alone = (int(next(lines).rsplit(" ", 1)[1]) for _ in range(3))
            for name in ("1-1", "2-1"):
                stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id=name))
            os.kill(one, 0)
            os.kill(other, 0)
            with pytest.raises(ProcessLookupError):
                os.kill(alone, 0)
        finally:
            pool.terminate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{number}").exists() for number in (one, other)):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{number}").exists() for number in (one, other)), "workers end with their pool"

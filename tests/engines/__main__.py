"""`python -m tests.engines`: engines with a thousand images.

    records     the same images on every engine: what they write, what verify says, how often the model was loaded
    throughput  two single-threaded workers against one, locally and on Flink, in turns
    killed      a TaskManager of the cluster is killed while it works, then a worker; with all that was said

Engines that are not there are passed over with the reason (infra/flink/get.sh, infra/prism/get.sh). It tells Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from pipeline.counting import count_workers
from tests.engines import commands
from tests.engines.cluster import SCRIPT, Cluster, kill, running_cluster
from tests.faults.jobs import PROCESSES, Job, Running, Workplace, start, verify, wait_for
from tests.faults.places import Place

FLINK = "infra/flink/README.md"

SINGLE = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""TensorFlow in one thread."""

PINNED = ("taskset", "-c", "0")
"""On one processor, whatever threads a worker reads and writes with; two workers have two processors."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """A way to run the job."""

    name: str
    options: tuple[str, ...]
    missing: str = ""  # why it is not there


def list_engines(cluster: Cluster | None) -> list[Engine]:
    """All of them; the first is what the others are compared with."""
    flink = commands.missing_flink()
    return [
        Engine("local, one process", ()),
        Engine("local, two processes", PROCESSES),
        Engine("Flink, embedded", commands.documented(FLINK, "[local]"), flink),
        Engine("Flink, two TaskManagers", cluster.options if cluster else (), flink),
        Engine("Prism", commands.documented("infra/prism/README.md", "--prism_location"), commands.missing_prism()),
        Engine("Dask", ("--runner", commands.DASK), commands.missing_dask()),
    ]


def show_records(folder: Path, images: int) -> Iterator[str]:
    """A row for each engine."""
    work = Workplace(folder, seed=23, count=images, shard_size=20)
    yield "| engine | images | same as one process | verify | shards of each worker | model loads | seconds |"
    yield "|---|---|---|---|---|---|---|"
    with _cluster(folder, slots=1) as cluster:
        for engine in list_engines(cluster):
            if engine.missing:
                yield f"| {engine.name} | not tried: {engine.missing} | | | | | |"
                continue
            _ = work.whole
            place = Place("local", str(folder / engine.name), {})
            ended = work.job(place.root, *_with_java(engine.options, folder)).run()
            if ended.code != 0:
                yield f"| {engine.name} | {images} | ended with {ended.code}: {ended.complaint} | | | | |"
                continue
            other = list(work.whole.compare(place)) or ["byte for byte"]
            problems = list(verify(place, folder / "tmp")) or ["clean"]
            names = [marker["worker"] for marker in _markers(place)]
            shares = ", ".join(str(names.count(name)) for name in sorted(set(names)))
            loads = count_workers(_markers(place))["model_loads"]
            yield (
                f"| {engine.name} | {images} | {'; '.join(other)} | {'; '.join(problems)} | {shares} | {loads} | "
                f"{ended.seconds:.0f} |"
            )


def show_throughput(folder: Path, images: int, rounds: int) -> Iterator[str]:
    """Images a second of one worker and of two, from when all are at work until the first of them has nothing to do."""
    work = Workplace(folder, seed=29, count=images, shard_size=10)
    model = keras.applications.MobileNet((224, 224, 3), weights=None, classes=10)
    model.save(folder / "model.keras")
    processes = "--direct_running_mode=multi_processing"
    rates: dict[str, list[float]] = {}

    def measure(name: str, options: tuple[str, ...], prefix: tuple[str, ...] = ()) -> None:
        place = Place("local", str(folder / f"{name} {len(rates.get(name, ()))}"), {})
        job = work.job(place.root, "--overlays", "none", *_with_java(options, folder))
        ended = start([*prefix, *job.command], job.temporary, SINGLE).wait()
        if ended.code != 0:
            raise RuntimeError(f"{name} ended with {ended.code}: {ended.said}")
        rates.setdefault(name, []).append(_rate(place, job.shard_size))

    with contextlib.ExitStack() as held:
        cluster = held.enter_context(_cluster(folder, slots=1, environment=SINGLE))
        alone = held.enter_context(cluster.beside(PINNED, SINGLE)) if cluster else None
        for _ in range(rounds):
            measure("local, 1", (processes, "--direct_num_workers=1"), PINNED)
            measure("local, 2", (processes, "--direct_num_workers=2"))
            if cluster and alone:
                measure("Flink, 1", tuple(word.replace("ism=2", "ism=1") for word in alone.options))
                measure("Flink, 2", cluster.options)
    yield "| engine | one worker, images/s | two workers | ratio of the medians |"
    yield "|---|---|---|---|"
    for engine in sorted({name.partition(",")[0] for name in rates}):
        one, two = rates[f"{engine}, 1"], rates[f"{engine}, 2"]
        ratio = statistics.median(two) / statistics.median(one)
        words = (f"{statistics.median(some):.1f} ({min(some):.1f} to {max(some):.1f})" for some in (one, two))
        yield f"| {engine} | {' | '.join(words)} | {ratio:.2f} |"


def show_killed(folder: Path, images: int) -> Iterator[str]:
    """What was said by everybody while a part of the cluster was killed."""
    work = Workplace(folder, seed=31, count=images, shard_size=10)
    _ = work.whole
    with _cluster(folder, slots=2) as cluster:
        if cluster is None:
            yield commands.missing_flink()
            return
        for what in ("TaskManager", "worker"):
            before = len(cluster.history()), len(cluster.pool_log)
            place = Place("local", str(folder / what), {})
            job = work.job(place.root, *_with_java(cluster.options, folder))
            yield f"\n## A {what} is killed\n\n$ {_shown(job)}"
            running = job.start()
            yield _strike(what, cluster, place, running, work)
            ended = running.wait()
            yield f"beamcam ended with {ended.code} after {ended.seconds:.0f} s:\n\n{_indented(ended.said)}"
            yield f"\nThe JobManager:\n\n{_indented(chr(10).join(cluster.history()[before[0] :]))}"
            started = [line for line in cluster.pool_log[before[1] :].splitlines() if " pool " in line]
            yield f"\nThe pool:\n\n{_indented(chr(10).join(started))}"
            names = [marker["worker"] for marker in _markers(place)]
            yield f"\nshards by worker: { {name: names.count(name) for name in sorted(set(names))} }"
            yield f"verify: {list(verify(place, folder / 'tmp')) or 'clean'}"
            same = "records, failures, sums, overlays and manifest are the undisturbed run's, byte for byte"
            yield f"comparison: {list(work.whole.compare(place)) or same}"
            if what == "TaskManager":
                subprocess.run([SCRIPT, "taskmanager"], env=dict(cluster.environment), check=True)


def _strike(what: str, cluster: Cluster, place: Place, running: Running, work: Workplace) -> str:
    wait_for(lambda: len(place.names("shards")) >= work.n_shards // 4, running)
    last = int(_markers(place)[-1]["worker"].rpartition("/")[2])
    victim = last if what == "worker" else cluster.taskmanager(2)
    kill(victim)
    return f"kill -9 {victim} ({what}), when {len(place.names('shards'))} of {work.n_shards} shards were committed"


@contextlib.contextmanager
def _cluster(folder: Path, slots: int, environment: dict[str, str] | None = None) -> Iterator[Cluster | None]:
    """A cluster, if Flink is there."""
    if commands.missing_flink():
        yield None
        return
    with running_cluster(folder, slots, environment) as cluster:
        yield cluster


def _with_java(options: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """With Java's temporary files in our folder, if there are any."""
    return (*options, f"--job_server_jvm_properties=-Djava.io.tmpdir={folder}") if "FlinkRunner" in options else options


def _markers(place: Place) -> list[dict]:
    return [json.loads(data) for data in place.read(place.names("shards")).values()]


def _rate(place: Place, shard_size: int) -> float:
    """Images a second while all workers work, by the times of the markers."""
    times: dict[str, list[float]] = {}
    for name in sorted(place.names("shards")):
        path = Path(place.root, name)
        times.setdefault(json.loads(path.read_text())["worker"], []).append(path.stat().st_mtime)
    begin, end = max(map(min, times.values())), min(map(max, times.values()))
    if end <= begin:
        raise RuntimeError("one worker was done before the other had begun: take more --images")
    done = sum(begin < moment <= end for some in times.values() for moment in some)
    return done * shard_size / (end - begin)


def _shown(job: Job) -> str:
    return " ".join(["beamcam", *job.command[3:]])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="PART", help="records, throughput or killed; default all")
    parser.add_argument("--images", type=int, default=1000, help="default 1000")
    parser.add_argument("--rounds", type=int, default=5, help="of throughput, default 5")
    options = parser.parse_args()
    parts = {
        "records": lambda folder: show_records(folder, options.images),
        "throughput": lambda folder: show_throughput(folder, options.images, options.rounds),
        "killed": lambda folder: show_killed(folder, options.images),
    }
    if unknown := set(options.what) - set(parts):
        parser.error(f"there is no part {min(unknown)!r}: the parts are {', '.join(parts)}")
    for name in options.what or parts:
        with tempfile.TemporaryDirectory(prefix=f"engines-{name}-") as folder:
            for line in parts[name](Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    main()

"""What a runner is told while a job runs, against the files that the job has written."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import RunConfig, RunError, run_job, shard
from pipeline.counting import COUNTERS, DISTRIBUTIONS, Tally
from pipeline.flow import process_shards
from pipeline.graph import define_pipeline
from pipeline.layout import RunLayout
from pipeline.records import Entry, Shard
from pipeline.run import Plan, list_input, plan_run
from pipeline.worker import Worker, shared_worker


def metrics_of(plan: Plan) -> dict[str, Any]:
    """Name -> the value, after the plan's shards went through Beam's runner in this process."""
    root = beam.Pipeline(runner=FnApiRunner())
    define_pipeline(root, plan)
    result = root.run()
    result.wait_until_finish()
    found = result.metrics().query()
    metrics = [*found["counters"], *found["distributions"]]
    return {metric.key.metric.name: metric.committed for metric in metrics if metric.key.metric.namespace == "beamcam"}


def size_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


@pytest.fixture(scope="module")
def config(tmp_path_factory, photographs, tiny_model_path) -> RunConfig:
    folder = tmp_path_factory.mktemp("metrics")
    manifest = folder / "manifest.txt"
    (folder / "page.jpg").write_text("<html>not found</html>")
    uris = [*sorted(photographs.glob("??.*")), folder / "page.jpg", folder / "missing.jpg"]
    manifest.write_text("\n".join(map(str, uris)))
    return RunConfig((str(manifest),), tiny_model_path, str(folder / "run"), preprocess="tf", jit="off", batch_size=3,
                     shard_size=6)  # fmt: skip


@pytest.fixture(scope="module")
def planned(config) -> Plan:
    worker = shared_worker(config)
    with list_input(worker.config) as listing, contextlib.ExitStack() as held:
        return plan_run(worker.config, listing, worker.metadata, held=held)


@pytest.fixture(scope="module")
def metrics(planned) -> dict[str, Any]:
    return metrics_of(planned)


def test_every_name_is_one_that_stands_in_the_table(metrics) -> None:
    kinds = {name for name in metrics if name.startswith("failures/")}
    assert kinds == {"failures/decode:NotAnImage", "failures/read:FileNotFoundError"}
    assert set(metrics) - kinds <= {*COUNTERS, *DISTRIBUTIONS}


def test_images_are_counted_as_they_ended(metrics) -> None:
    names = ("images_in", "records", "failures", "failures/decode:NotAnImage", "failures/read:FileNotFoundError",
             "overlays", "shards_committed")  # fmt: skip
    assert [metrics[name] for name in names] == [15, 13, 2, 1, 1, 13, 3]
    assert not {"carried", "shards_skipped", "shards_broken"} & set(metrics)


def test_bytes_are_those_of_the_files(metrics, photographs, config) -> None:
    run, sizes = Path(config.output), [path.stat().st_size for path in photographs.glob("??.*")]
    sizes.append(len("<html>not found</html>"))
    read = metrics["image_bytes"]
    assert (read.count, read.sum, read.min, read.max) == (14, sum(sizes), min(sizes), max(sizes))
    assert metrics["bytes_read"] == sum(sizes)
    patterns = ("records/*", "failures/*", "sums/part-*", "overlays/*/*.png")
    assert metrics["bytes_written"] == sum(size_of(run, pattern) for pattern in patterns)


def test_batches_are_counted_with_their_sizes(metrics) -> None:
    sizes = metrics["batch_size"]  # shards of 6, 6 and 3 images, of which the last has one that can be explained
    assert (metrics["batches"], sizes.count, sizes.sum, sizes.min, sizes.max) == (5, 5, 13, 1, 3)


def test_each_shard_gives_its_milliseconds(metrics, config) -> None:
    markers = [json.loads(path.read_text()) for path in Path(config.output).glob("shards/*.json")]
    assert metrics["shard_ms"].count == metrics["stage_ms/model"].count == 3
    for stage in ("read", "decode", "write"):
        exact = sum(marker["seconds"][stage] + marker["waiting"][stage] for marker in markers)
        assert metrics[f"stage_ms/{stage}"].sum == pytest.approx(1000 * exact, abs=3)
    model = sum(marker["seconds"]["model"] for marker in markers)
    assert metrics["stage_ms/model"].sum == pytest.approx(1000 * model, abs=3)


def test_a_shard_that_was_committed_before_is_skipped_and_counts_no_image(metrics, planned) -> None:
    again = metrics_of(dataclasses.replace(planned, pending=(0, 2)))
    assert {name: value for name, value in again.items() if name in COUNTERS} == {"shards_skipped": 2}


def test_the_summary_says_how_many_worked_and_what_they_read(metrics, config, planned) -> None:
    from pipeline.run import finish_run

    summary = finish_run(planned, 1.0)
    assert (summary["workers"], summary["bytes_read"]) == (1, metrics["bytes_read"])
    assert summary["bytes_written"] == metrics["bytes_written"]


def test_a_model_that_was_loaded_is_told_once(metrics, planned, config) -> None:
    from pipeline import worker

    worker.new_loads()
    every = dataclasses.replace(planned, pending=(1,))
    assert "model_loads" not in metrics_of(every)
    worker._workers.clear()
    assert metrics_of(every)["model_loads"] == 1
    assert "model_loads" not in metrics_of(every)


def break_one(job: shard.ShardJob, commit: Callable) -> Any:
    if job.number == 1:
        raise RuntimeError("a fault of nobody's")
    return commit(job)


def test_a_shard_that_breaks_is_counted_with_what_it_read(tmp_path, photographs, tiny_model_path, monkeypatch) -> None:
    commit, tally = shard.ShardJob.commit, Tally()
    monkeypatch.setattr(shard.ShardJob, "commit", lambda job: break_one(job, commit))
    worker = Worker(RunConfig(("-",), tiny_model_path, "-", preprocess="tf", jit="off", overlays="none"))
    entries = [Entry(str(path)) for path in sorted(photographs.glob("??.*"))]
    shards = [Shard(0, entries[:4]), Shard(1, entries[4:9])]
    with pytest.raises(RunError, match="shard 1 broke"):
        list(process_shards(shards, worker, RunLayout(str(tmp_path)), tally=tally))
    new = tally.take()
    assert (new.counts["shards_broken"], new.counts["shards_committed"], new.counts["images_in"]) == (1, 1, 4)
    assert new.counts["bytes_read"] == sum(Path(entry.uri).stat().st_size for entry in entries[:9])


def test_a_shard_that_another_job_committed_meanwhile_is_skipped(tmp_path, photographs, tiny_model_path) -> None:
    worker = Worker(RunConfig(("-",), tiny_model_path, "-", preprocess="tf", jit="off", overlays="none"))
    tally = Tally()
    shards, theirs = [Shard(0, [Entry(str(next(photographs.glob("??.*"))))])], {"shard": 0, "records": 1}
    layout = RunLayout(str(tmp_path))
    assert list(process_shards(shards, worker, layout, find_commit=lambda _: theirs, tally=tally)) == [theirs]
    counts = tally.take().counts
    assert (counts["shards_skipped"], counts["batches"]) == (1, 1)
    assert not {"shards_committed", "images_in", "records", "bytes_written"} & set(counts)


def test_a_job_of_several_shards_of_several_bundles_tells_all_of_them(tmp_path, photographs, tiny_model_path) -> None:
    config = RunConfig((str(photographs / "manifest.jsonl"),), tiny_model_path, str(tmp_path / "run"), preprocess="tf",
                       jit="off", shard_size=2, overlays="none")  # fmt: skip
    summary = run_job(config, ["--direct_num_workers=2", "--direct_running_mode=multi_threading"])
    assert (summary["records"], summary["workers"]) == (13, 1)

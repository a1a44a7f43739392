"""What a job will cost follows from a few trials: which images they take, how many, and what is made of them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import planning
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.listing import list_images
from pipeline.parquet import encode_failures
from pipeline.planning import Cost, Estimate, FileSize, Trial, choose_sample, describe_estimate, run_trials, sum_up
from pipeline.records import Entry, Failure, image_id
from pipeline.run import Plan, marked_shards, plan_run
from pipeline.shard import wants_overlays
from pipeline.worker import shared_worker

NONE = FileSize(0, 0)


def make_config(**options) -> RunConfig:
    return RunConfig(**{"images": ("-",), "model": "m", "output": "/nowhere", "preprocess": "tf", **options})


def make_plan(n_images: int, pending: tuple[int, ...] | None = None, **options) -> Plan:
    config = make_config(**options)
    n_shards = -(-n_images // config.shard_size)
    return Plan(config, n_images, 0, n_shards, tuple(range(n_shards)) if pending is None else pending, {})


def make_cost(**values) -> Cost:
    zeros = {field.name: 0 for field in dataclasses.fields(Cost)}
    files = {"records": NONE, "failure_rows": NONE, "sums": NONE, "failures": {}, "tried": 10, "batch_size": 32}
    return Cost(**{**zeros, **files, **values})


# Which images


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[list[Entry]]:
    path = tmp_path / "m.txt"
    path.write_text("".join(f"/x/{i:06d}.jpg\n" for i in range(10_000)))
    with list_images([str(path)]) as listing:
        yield listing


def number(entry: Entry) -> int:
    return int(entry.uri[3:9])


def test_a_sample_and_every_part_of_it_are_spread_over_the_input(lines, monkeypatch) -> None:
    monkeypatch.setattr(planning, "SAMPLE", 200)
    sample, overlaid = choose_sample(lines, make_config())
    assert sorted(map(number, sample)) == list(range(0, 10_000, 50))
    assert overlaid == 10_000
    for start in range(0, 200, 20):
        thirds = {number(entry) // 3334 for entry in sample[start : start + 20]}
        assert thirds == {0, 1, 2}, "no part comes from one end of the input"


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_sample_has_as_many_images_with_overlays_as_the_input(lines, monkeypatch, share) -> None:
    monkeypatch.setattr(planning, "SAMPLE", 200)
    config = make_config(overlay_sample=share)
    sample, overlaid = choose_sample(lines, config)
    assert overlaid == sum(wants_overlays(entry, config) for entry in lines) != 10_000 * share
    for start in range(0, 200, 20):
        wanting = sum(wants_overlays(entry, config) for entry in sample[start : start + 20])
        assert abs(wanting - 20 * share) <= 1
    assert len(set(sample)) == len(sample) == pytest.approx(200, abs=2)


def test_a_rare_overlay_is_among_the_first_to_be_tried(lines) -> None:
    config = make_config(overlay_sample=0.0005)
    sample, overlaid = choose_sample(lines, config)
    assert 0 < overlaid < 20
    assert any(wants_overlays(entry, config) for entry in sample[:2])
    assert choose_sample(lines, make_config(overlays="none"))[1] == 0


# How many


class FakeJob:
    """Trials that take what they are told to, by a clock of their own."""

    def __init__(self, monkeypatch, once: float, batch: float, warming: float = 0.0, expanding: bool = False):
        self.now, self.once, self.batch, self.warming, self.tried = 0.0, once, batch, warming, []
        methods = {"m": SimpleNamespace(expanding=expanding)}
        self.explainer = SimpleNamespace(metrics=(), methods=methods)
        monkeypatch.setattr(planning, "_try", self.explain)
        monkeypatch.setattr(planning, "Worker", self.make_worker)
        monkeypatch.setattr(planning.time, "perf_counter", lambda: self.now)

    def make_worker(self, config: RunConfig) -> SimpleNamespace:
        return SimpleNamespace(config=config, explainer=self.explainer)

    def run(self, n: int, **options) -> list[Trial]:
        return run_trials(self.make_worker(make_config(**options)), [Entry(f"/{i}") for i in range(min(n, 3000))])

    def explain(self, worker, entries: list[Entry]) -> Trial:
        size, shard = worker.config.batch_size, worker.config.shard_size
        batches = sum(-(-min(shard, len(entries) - first) // size) for first in range(0, len(entries), shard))
        seconds = self.warming + self.once + self.batch * batches
        self.warming = 0.0
        self.now += seconds
        self.tried.append(entries)
        return Trial(len(entries), batches, size, seconds, (), (), 500, 0, 0)


@pytest.mark.parametrize(
    ("once", "batch", "sizes"),
    [
        (0.0, 0.001, [32, 32, 256, 2000, 2000, 2000, 2000, 2000]),  # no more than enough
        (0.1, 0.4, [32, 32, 256, 864]),  # as many batches as time is left for
        (0.5, 1.3, [32, 32, 224]),
        (0.0, 6.0, [32, 32, 32]),
        (1.0, 40.0, [32]),  # one, whatever it takes
    ],
)
def test_trials_grow_while_time_is_left(monkeypatch, once, batch, sizes) -> None:
    job = FakeJob(monkeypatch, once, batch)
    assert [trial.images for trial in job.run(100_000)] == sizes
    assert all(len(set(entries)) == len(entries) for entries in job.tried)
    assert len(set(itertools.chain(*job.tried))) == min(sum(sizes), 3000), "fresh images as long as there are some"
    assert job.now <= planning.SECONDS + 2 * (batch + once)


@pytest.mark.parametrize(("n", "options", "sizes"), [(13, {}, [13] * 8), (13, {"shard_size": 5}, [5, 5, *[13] * 6]),
                                                     (40, {"batch_size": 7}, [7, 7, *[40] * 6]),
                                                     (3, {"batch_size": 1}, [1, 1, *[3] * 6])])  # fmt: skip
def test_few_images_are_tried_again_and_none_twice_at_a_time(monkeypatch, n, options, sizes) -> None:
    job = FakeJob(monkeypatch, 0.001, 0.01)
    assert [trial.images for trial in job.run(n, **options)] == sizes
    assert all(len(set(entries)) == len(entries) for entries in job.tried)


def test_where_a_batch_takes_many_passes_images_are_tried_one_by_one(monkeypatch) -> None:
    slow = FakeJob(monkeypatch, 0.1, 5.0, expanding=True).run(1000)
    assert [trial.images for trial in slow] == [1, 1, 1]
    assert sum_up(slow, 1000, 32, 0.0, {}).batch == pytest.approx(32 * 5.1)
    quick = FakeJob(monkeypatch, 0.0, 0.01, expanding=True).run(1000)
    assert quick[0].images == 32


# What is made of them


@pytest.mark.parametrize(("once", "batch"), [(0.3, 0.5), (0.0, 0.05), (1.0, 1.5)])
@pytest.mark.parametrize("shard_size", [256, 40, 7])
@pytest.mark.parametrize("n", [13, 256, 1_000_003])
def test_the_time_is_that_of_every_batch_of_every_shard(monkeypatch, once, batch, n, shard_size) -> None:
    job = FakeJob(monkeypatch, once, batch, warming=4.0)
    cost = sum_up(job.run(n, shard_size=shard_size), n, 32, 20.0, {})
    batches = sum(-(-min(shard_size, n - first) // 32) for first in range(0, n, shard_size))
    estimate = Estimate(make_plan(n, shard_size=shard_size), cost, 0, 0)
    assert estimate.seconds(1) == pytest.approx(20 + once + batch * batches)
    assert estimate.rate == pytest.approx(n / (once + batch * batches))


def test_one_trial_is_all_that_is_known_where_it_takes_long(monkeypatch) -> None:
    cost = sum_up(FakeJob(monkeypatch, 1.0, 40.0).run(1000), 1000, 32, 0.0, {})
    assert (cost.once, cost.batch) == (0.0, 41.0)


def test_noise_makes_no_time_negative() -> None:
    one, many = (Trial(32 * n, n, 32, seconds, (), (), 0, 0, 0) for n, seconds in ((1, 5.0), (2, 4.0)))
    faster = sum_up([one, one, many], 100, 32, 0.0, {})
    assert (faster.once, faster.batch) == (4.0, 0.0)
    slower = sum_up([one, one, dataclasses.replace(many, seconds=20.0)], 100, 32, 0.0, {})
    assert (slower.once, slower.batch) == (0.0, 10.0)


def test_workers_share_whole_shards() -> None:
    estimate = Estimate(make_plan(1000, shard_size=100), make_cost(start=5.0, once=1.0, batch=2.0), 0, 0)
    assert [estimate.seconds(workers) for workers in (1, 3, 4, 10, 64)] == [
        5 + 1 + 2 * 4 * shards for shards in (10, 4, 3, 1, 1)
    ]
    short = Estimate(make_plan(101, shard_size=100), make_cost(once=1.0, batch=2.0), 0, 0)
    assert (short.seconds(1), short.seconds(2)) == (1 + 2 * 5, 1 + 2 * 4)


def test_only_what_is_left_of_a_run_is_counted() -> None:
    cost = make_cost(once=1.0, batch=2.0, records=FileSize(100, 10), marker=7)
    estimate = Estimate(make_plan(1030, (3, 10), shard_size=100), cost, 0, 0)
    assert estimate.seconds(1) == 1 + 2 * (4 + 1)
    assert estimate.storage() == {"records": 2 * 100 + 130 * 10, "overlays": 0, "sums": 0, "others": 2 * 7}


def test_storage_is_so_much_a_file_and_so_much_an_image() -> None:
    cost = make_cost(
        tried=50, failures={"decode:BrokenImage": 4, "read:OSError": 1}, records=FileSize(1000, 20),
        failure_rows=FileSize(300, 5), marker=40, overlays=6000, sums=FileSize(700, 3),
    )  # fmt: skip
    estimate = Estimate(make_plan(2000, shard_size=100), cost, 600, 9)
    assert cost.failing == 0.1
    assert estimate.storage() == {
        "records": 20 * 1000 + 1800 * 20,
        "overlays": pytest.approx(540 * 6000),
        "sums": 20 * 700 + 2000 * 3,
        "others": 20 * (300 + 40) + 200 * 5 + 9,
    }


def test_failures_are_counted_once_however_often_an_image_is_tried() -> None:
    bad = [Failure(str(i), f"/{i}", "decode", "BrokenImage", "") for i in range(3)]
    trial = Trial(10, 1, 32, 1.0, (), tuple(bad), 0, 0, 0)
    cost = sum_up([trial, trial, trial], 10, 32, 0.0, {})
    assert (cost.tried, cost.failures, cost.failing) == (10, {"decode:BrokenImage": 3}, 0.3)
    fresh = [dataclasses.replace(trial, failures=(bad[i],)) for i in range(3)]
    assert sum_up(fresh, 1000, 32, 0.0, {}).failing == pytest.approx(0.1)


def test_a_files_own_bytes_are_told_from_those_of_its_rows() -> None:
    """Of forty rows, and of one; rows that were tried twice would compress to nothing."""
    rows = [Failure(image_id(str(i)), f"/{image_id(f'{i}!')}", "decode", "BrokenImage", "") for i in range(500)]
    metadata = {"class_names": "x" * 500}
    empty, whole = (len(encode_failures(some, metadata)) for some in ([], rows))
    trials = [Trial(40, 2, 32, 1.0, (), tuple(rows[:40]), 0, 0, 0)] * 3
    size = sum_up(trials, 1000, 32, 0.0, metadata).failure_rows
    assert size.fixed + 500 * size.each == pytest.approx(whole, rel=0.05)
    assert size.fixed > empty
    assert sum_up([dataclasses.replace(trials[0], failures=())], 40, 32, 0.0, metadata).failure_rows == FileSize(
        empty, 0
    )


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([[(20, 900)], [(100, 1700), (60, 1400)]], FileSize(700, 10)),
        ([[(20, 900)], [(20, 1000)]], FileSize(0, 50)),
        ([[], []], FileSize(0, 0)),
    ],
)
def test_sums_grow_from_the_smallest_shard_that_was_tried_to_the_largest(sizes, expected) -> None:
    trials = [Trial(32, 1, 32, 1.0, (), (), 0, 0, 0, tuple(of_trial)) for of_trial in sizes]
    assert sum_up(trials, 64, 32, 0.0, {}).sums == expected


def test_bytes_of_an_overlay_are_those_of_images_that_have_one() -> None:
    trials = [Trial(32, 1, 32, 1.0, (), (), 0, overlays, images) for overlays, images in ((700, 7), (60, 1))]
    assert sum_up(trials, 64, 32, 0.0, {}).overlays == 95
    assert sum_up([dataclasses.replace(trials[0], overlays=0, overlaid=0)], 64, 32, 0.0, {}).overlays == 0


def test_the_plan_is_told_in_a_few_lines(monkeypatch) -> None:
    monkeypatch.setattr(planning.os, "cpu_count", lambda: 2)
    cost = make_cost(
        tried=96, failures={"decode:BrokenImage": 3}, start=6.04, once=1.0, batch=0.5,
        records=FileSize(45_678, 3912.3), failure_rows=FileSize(2000, 100), marker=900, overlays=341_000,
        sums=FileSize(20_000, 100),
    )  # fmt: skip
    estimate = Estimate(make_plan(1_000_000), cost, 10_000, 20_000_000)
    assert list(describe_estimate(estimate)) == [
        "96 images tried: 64.0 images/s on 2 cores, 6.0 s to start",
        "3 of them failed (3 x decode:BrokenImage): of all, about 31250",
        "workers like this  time         worker hours",
        "1                  4 h 20 min   4.34",
        "4                  1 h 5 min    4.35",
        "16                 16 min 27 s  4.39",
        "64                 4 min 15 s   4.53",
        "records   4.0 GB   3.9 kB an image, 45.7 kB a shard",
        "overlays  3.3 GB   341 kB an image, 10000 images",
        "sums      178 MB   45.6 kB a shard",
        "others    34.5 MB  manifest, failures and markers",
        "in all    7.5 GB",
    ]
    slow = dataclasses.replace(estimate, cost=dataclasses.replace(cost, batch=160.0))
    assert next(describe_estimate(slow)).startswith("96 images tried: 5.0 s an image on 2 cores")
    monkeypatch.setattr(planning.models, "count_gpus", lambda: 1)
    remote = dataclasses.replace(estimate, plan=make_plan(300, output="gs://bucket/run"))
    told = list(describe_estimate(remote))
    assert told[0].endswith("images/s on a GPU, 6.0 s to start")
    assert told[2] == "what they gave was written to a local folder: gs://bucket/run may take longer"
    assert re.split("  +", told[3]) == ["workers like this", "time", "GPU hours"]
    assert [line.split()[0] for line in told[4:6]] == ["1", "2"], "there is work for two"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_400, "99.4 kB"), (99_600, "100 kB"), (999_600, "1.0 MB"),
     (1.5e9, "1.5 GB"), (3.21e12, "3.2 TB"), (4e15, "4000.0 TB")],
)  # fmt: skip
def test_bytes_are_told_in_three_digits(size, text) -> None:
    assert planning._bytes(size) == text


# With a model


def estimate_lines(config: RunConfig, **options) -> list[str]:
    return list(planning.estimate_run(config, **options))


@pytest.fixture
def config(tmp_path, photographs, tiny_model_path, monkeypatch) -> RunConfig:
    monkeypatch.setattr(planning, "TRIALS", 3)
    return make_config(images=(str(photographs / "manifest.jsonl"),), model=tiny_model_path, jit="off", shard_size=5,
                       output=str(tmp_path / "run"))  # fmt: skip


def test_failing_images_are_told_and_counted(config, tmp_path, photographs) -> None:
    (tmp_path / "empty.jpg").touch()
    images = (*config.images, str(tmp_path / "empty.jpg"), *config.images)
    lines = estimate_lines(dataclasses.replace(config, images=images))
    assert lines[:2] == ["14 images in 3 shards; gradcam at last", "13 repetitions in the input are left out"]
    assert "1 of them failed (1 x decode:EmptyFile): of all, about 1" in lines
    assert not (tmp_path / "run").exists()


def test_a_job_of_failures_only_has_no_plan(config, tmp_path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"nothing")
    bad = dataclasses.replace(config, images=(str(tmp_path / "*.jpg"),))
    with pytest.raises(
        ConfigError,
        match=r"not one of 3 images tried could be explained \(decode:NotAnImage\), such as '.*\d\.jpg': not an image",
    ):
        estimate_lines(bad)


def test_a_run_that_is_there_is_gone_on_with(config) -> None:
    from pipeline import run_job

    run_job(config, [])
    layout = planning.RunLayout(config.output)
    assert estimate_lines(config) == [f"the run in {config.output} is complete: 13 images; nothing to do"]
    Path(layout.uri(layout.marker(1))).unlink()
    before = marked_shards(layout)
    lines = estimate_lines(config)
    assert lines[0] == "13 images in 3 shards, 2 of them done before; gradcam at last"
    assert next(line for line in lines if line.startswith("overlays")).endswith("5 images")
    assert marked_shards(layout) == before
    other = dataclasses.replace(config, methods=("cam",))
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        estimate_lines(other)
    assert estimate_lines(other, overwrite=True)[0] == "13 images in 3 shards; cam at last"
    assert marked_shards(layout) == before


def test_a_method_of_many_passes_is_tried_without_a_batch_of_it(config, monkeypatch) -> None:
    """A second worker explains an image at a time; its numbers stand for batches of the job's size."""
    monkeypatch.setattr(planning, "SECONDS", 1e-9)
    many = dataclasses.replace(config, methods=("scorecam",), shard_size=13)
    with planning.list_input(many) as listing:
        worker = shared_worker(many)
        estimate = planning.measure(planning.new_plan(worker.config, listing, worker.metadata), listing, worker, 0.0)
    assert (estimate.cost.tried, estimate.cost.batch_size) == (1, 32)
    assert estimate.seconds(1) == pytest.approx(estimate.cost.batch)


def test_a_plan_writes_nothing_to_the_output(config, tmp_path) -> None:
    with planning.list_input(config) as listing:
        worker = shared_worker(config)
        plan = planning.new_plan(worker.config, listing, worker.metadata)
        assert list(tmp_path.iterdir()) == []
        written = plan_run(worker.config, listing, worker.metadata)
    assert {**vars(plan), "metadata": None} == {**vars(written), "metadata": None}

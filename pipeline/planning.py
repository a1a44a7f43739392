"""`beamcam run --dry-run`: what a job will cost, from a few shards of its images that go the very way of all."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from pipeline import models, parquet, storage
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.flow import process_shards
from pipeline.job import as_decided_before, check_labels, describe_plan, settle_since
from pipeline.layout import RunLayout
from pipeline.listing import Listing
from pipeline.progress import describe_duration, tell
from pipeline.records import Entry, Failure, Record, Shard
from pipeline.run import Plan, check_output, list_input, new_plan, read_plan
from pipeline.shard import count_by_type, wants_overlays
from pipeline.worker import Worker, shared_worker

SECONDS = 15.0  # to measure for; a batch that takes longer by itself is measured once

TRIALS = 8  # at most, however little time they take

SAMPLE = 2000  # images to draw trials from, and the most of a trial, whose files lie in a temporary folder

KEPT = 64  # records of a trial that the size of files is told from

WORKERS = (1, 4, 16, 64)  # to tell the time for

T = TypeVar("T")


@dataclass(frozen=True)
class FileSize:
    """Bytes of a file of rows: what it takes without any, and what each row adds."""

    fixed: float
    each: float


@dataclass(frozen=True)
class Trial:
    """Some sampled images, explained in shards as the job has them."""

    images: int
    batches: int
    batch_size: int
    seconds: float
    records: tuple[Record, ...]  # of the first shard, or some of them
    failures: tuple[Failure, ...]
    marker: int  # bytes
    overlays: int  # bytes
    overlaid: int  # images that asked for overlays and did not fail
    sums: tuple[tuple[int, int], ...] = ()  # of each shard: its images, and the bytes of its sums


@dataclass(frozen=True)
class Cost:
    """What the parts of a job cost."""

    tried: int  # images
    failures: Mapping[str, int]  # of those tried, by type
    batch_size: int
    start: float  # seconds until a worker has loaded the model
    once: float  # seconds until the first image reaches the model, and from the last one to its record
    batch: float  # seconds
    records: FileSize
    failure_rows: FileSize
    marker: float  # bytes
    sums: FileSize  # rows are a shard's images
    overlays: float  # bytes of an image that has them

    @property
    def failing(self) -> float:
        """The share of images that fail, in [0, 1]."""
        return sum(self.failures.values()) / self.tried


@dataclass(frozen=True)
class Estimate:
    """What is left of a job, and what that will cost."""

    plan: Plan
    cost: Cost
    overlaid: float  # images that want overlays
    manifest: int  # bytes still to be written

    @property
    def rate(self) -> float:
        """Images a second of one worker that has started."""
        return self.plan.n_pending / (self.seconds(1) - self.cost.start)

    def seconds(self, workers: int) -> float:
        """From the start of so many workers to the last record; each is a process with a machine like this one."""
        batches = [count_batches(size, self.cost.batch_size) for size in map(self.plan.size_of, self.plan.pending)]
        of_one = min(sum(batches), -(-len(batches) // workers) * max(batches))  # shards are not divided
        return self.cost.start + self.cost.once + of_one * self.cost.batch

    def storage(self) -> dict[str, float]:
        """Bytes to be written, by what they are."""
        cost, shards, images = self.cost, len(self.plan.pending), self.plan.n_pending
        failures = cost.failing * images
        others = shards * (cost.failure_rows.fixed + cost.marker) + failures * cost.failure_rows.each + self.manifest
        return {
            "records": shards * cost.records.fixed + (images - failures) * cost.records.each,
            "overlays": (1 - cost.failing) * self.overlaid * cost.overlays,
            "sums": shards * cost.sums.fixed + images * cost.sums.each,
            "others": others,
        }


def estimate_run(config: RunConfig, overwrite: bool = False, latest: bool = False) -> Iterator[str]:
    """What a job will do and cost, in lines; nothing is written to its output. The arguments are those of `run_job`.

    Raises:
        ConfigError: the job could not be started, or no image of the sample could be explained.
    """
    with list_input(config) as listing:
        tell(f"{listing.n_images} images listed; loading the model")
        began = time.perf_counter()
        worker = shared_worker(as_decided_before(config, overwrite))
        start = time.perf_counter() - began
        yield from check_labels(worker, listing.labels)
        config, notes = settle_since(worker.config, worker.metadata, latest)
        yield from notes
        resumes = check_output(config, listing, worker.metadata, overwrite) is not None and not overwrite
        plan = read_plan(config, resumes) if resumes else new_plan(config, listing, worker.metadata)
        yield describe_plan(plan)
        if plan.n_duplicates:
            yield f"{plan.n_duplicates} repetitions in the input are left out"
        if plan.pending:
            yield from describe_estimate(measure(plan, listing, worker, start))


def measure(plan: Plan, listing: Listing, worker: Worker, start: float) -> Estimate:
    """The cost of what is left of a run, from a sample of its images.

    Args:
        plan: the run.
        listing: its input.
        worker: its model.
        start: seconds that it took to load that.

    Raises:
        ConfigError: no image of the sample could be explained.
    """
    sample, overlaid = choose_sample(listing, worker.config)
    trials = run_trials(worker, sample)
    manifest = 0 if plan.resumed else Path(listing.path).stat().st_size
    cost = sum_up(trials, len(sample), worker.config.batch_size, start, worker.metadata)
    return Estimate(plan, cost, overlaid * plan.n_pending / plan.n_images, manifest)


def count_batches(images: int, batch_size: int) -> int:
    """The batches of a shard, the last of them filled up."""
    return -(-images // batch_size)


def choose_sample(listing: Listing, config: RunConfig) -> tuple[list[Entry], int]:
    """Images to try a job on, and how many of all want overlays.

    They are spread over the whole input, as are any that stand together among them, and those that want overlays have
    the same share in both; if there are any at all, one stands among the first two.
    """
    step = max(1, listing.n_images // SAMPLE)
    chosen: tuple[list[Entry], list[Entry]] = ([], [])  # without overlays, with them
    counts = [0, 0]
    for entry in listing:
        wants = wants_overlays(entry, config)
        if counts[wants] % step == 0:
            chosen[wants].append(entry)
        counts[wants] += 1
    # Sorted by the end of their ids, which is no order; the beginning decides on overlays.
    shuffled = [sorted(entries, key=lambda entry: entry.id[8:]) for entries in chosen]
    places = [(place / len(entries), entry) for entries in shuffled for place, entry in enumerate(entries)]
    return [entry for _, entry in sorted(places, key=lambda pair: pair[0])], counts[True]


def run_trials(worker: Worker, sample: Sequence[Entry]) -> list[Trial]:
    """Explains sampled images, a batch at first and then more, for some seconds.

    Raises:
        ConfigError: not one of them could be explained.
    """
    images = itertools.cycle(sample)
    worker = _quick_worker(worker, sample)
    most = min(SAMPLE, len(sample))
    batch = min(worker.config.batch_size, worker.config.shard_size, most)
    tell(f"measuring on a sample of the images, for about {SECONDS:.0f} s")
    trials = [_try(worker, list(itertools.islice(images, batch)))]
    end = time.perf_counter() + SECONDS
    while len(trials) < TRIALS:
        last = trials[-1]
        affordable = int((end - time.perf_counter()) / last.seconds * last.images / batch) * batch
        # What happens once, happens in the first trial: the second is of its size, and those after it grow.
        count = min(last.images * (8 if len(trials) > 1 else 1), affordable, most)
        if count < last.images:
            break
        trials.append(_try(worker, list(itertools.islice(images, count))))
    if all(len(trial.failures) == trial.images for trial in trials):
        raise ConfigError(_nothing_explained(trials))
    return trials


def sum_up(trials: Sequence[Trial], n_sampled: int, batch_size: int, start: float, metadata: dict[str, str]) -> Cost:
    """What the parts of a job cost, by its trials.

    Args:
        trials: at least one; the first counts for time only if it is the only one.
        n_sampled: images that the trials took theirs from, in turns.
        batch_size: of the job, whatever that of the trials was.
        start: seconds until a worker has loaded the model.
        metadata: what every file says of the model.
    """
    timed = trials[1:] or trials
    batches = max(trial.batches for trial in timed)
    seconds = median(trial.seconds for trial in timed if trial.batches == batches)
    each = seconds / batches
    if batches > 1:  # what does not grow with the batches is filling and emptying the threads on both sides
        each = min(each, max(0.0, (seconds - timed[0].seconds) / (batches - 1)))
    # An image that was tried twice counts once: its copy would compress to nothing.
    records = {record.id: record for trial in trials for record in trial.records}
    failures = {failure.id: failure for trial in trials for failure in trial.failures}
    overlaid = sum(trial.overlaid for trial in trials)
    return Cost(
        tried=min(n_sampled, sum(trial.images for trial in trials)),
        failures=count_by_type(failures.values()),
        batch_size=batch_size,
        start=start,
        once=seconds - batches * each,
        batch=each * batch_size / timed[0].batch_size,
        records=_file_size(lambda rows: parquet.encode_records(rows, metadata), list(records.values())),
        failure_rows=_file_size(lambda rows: parquet.encode_failures(rows, metadata), list(failures.values())),
        marker=median(trial.marker for trial in trials),
        sums=_growing([size for trial in trials for size in trial.sums]),
        overlays=sum(trial.overlays for trial in trials) / max(1, overlaid),
    )


def describe_estimate(estimate: Estimate) -> Iterator[str]:
    """What a job will cost, in lines."""
    plan, cost = estimate.plan, estimate.cost
    device = "a GPU" if models.count_gpus() else f"{os.cpu_count()} cores"
    pace = f"{estimate.rate:.1f} images/s" if estimate.rate >= 1 else f"{1 / estimate.rate:.1f} s an image"
    yield f"{cost.tried} images tried: {pace} on {device}, {cost.start:.1f} s to start"
    if cost.failures:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in cost.failures.items())
        failed = sum(cost.failures.values())
        yield f"{failed} of them failed ({kinds}): of all, about {cost.failing * plan.n_pending:.0f}"
    if not storage.is_local(plan.config.output):
        yield f"what they gave was written to a local folder: {plan.config.output} may take longer"
    rows = [("workers like this", "time", f"{'GPU' if models.count_gpus() else 'worker'} hours")]
    for workers in sorted({min(count, len(plan.pending)) for count in WORKERS}):
        seconds = estimate.seconds(workers)
        rows.append((str(workers), describe_duration(seconds), f"{workers * seconds / 3600:.2f}"))
    yield from _align(rows)
    yield from _align(_describe_storage(estimate))


def _describe_storage(estimate: Estimate) -> list[tuple[str, ...]]:
    plan, cost, sizes = estimate.plan, estimate.cost, estimate.storage()
    notes = {
        "records": f"{_bytes(cost.records.each)} an image, {_bytes(cost.records.fixed)} a shard",
        "overlays": f"{_bytes(cost.overlays)} an image, {estimate.overlaid:.0f} images",
        "sums": f"{_bytes(sizes['sums'] / len(plan.pending))} a shard",
        "others": "manifest, failures and markers",
    }
    rows = [(name, _bytes(size), notes[name]) for name, size in sizes.items() if size]
    return [*rows, ("in all", _bytes(sum(sizes.values())), "")]


def _quick_worker(worker: Worker, sample: Sequence[Entry]) -> Worker:
    """The worker to try images with: where many passes make a batch take minutes, one that takes an image at a time.

    Passes of such methods are as long for one image as for a batch of them, and an image has accordingly fewer.
    """
    explainer = worker.explainer
    if not explainer.metrics and not any(method.expanding for method in explainer.methods.values()):
        return worker
    single = Worker(dataclasses.replace(worker.config, batch_size=1))
    for entry in sample[: worker.config.batch_size]:
        trial = _try(single, [entry])
        if not trial.failures:
            return worker if trial.seconds * worker.config.batch_size < SECONDS / 4 else single
    return single


def _try(worker: Worker, entries: list[Entry]) -> Trial:
    with tempfile.TemporaryDirectory(prefix="beamcam-") as folder:
        layout = RunLayout(folder)
        size = worker.config.shard_size
        shards = [Shard(i // size, entries[i : i + size]) for i in range(0, len(entries), size)]
        start = time.perf_counter()
        for _ in process_shards(shards, worker, layout):
            pass
        seconds = time.perf_counter() - start
        records = tuple(itertools.islice(parquet.read_records(layout.uri(layout.records(0))), KEPT))
        failures = [parquet.read_failures(layout.uri(layout.failures(shard.number))) for shard in shards]
        failed = {failure.id: failure for failure in itertools.chain(*failures)}
        return Trial(
            images=len(entries),
            batches=sum(count_batches(len(shard.entries), worker.config.batch_size) for shard in shards),
            batch_size=worker.config.batch_size,
            seconds=seconds,
            records=records,
            failures=tuple(failed.values()),
            marker=Path(layout.uri(layout.marker(0))).stat().st_size,
            overlays=sum(file.stat().st_size for file in Path(folder, "overlays").rglob("*.png")),
            overlaid=sum(wants_overlays(entry, worker.config) and entry.id not in failed for entry in entries),
            sums=tuple(
                (len(shard.entries), Path(layout.uri(layout.sums(shard.number))).stat().st_size) for shard in shards
            ),
        )


def _file_size(encode: Callable[[Sequence[T]], bytes], rows: Sequence[T]) -> FileSize:
    """From all rows and half of them: what does not double is the file's own."""
    some = rows[: len(rows) // 2]
    fewer, more = len(encode(some)), len(encode(rows))
    each = (more - fewer) / max(1, len(rows) - len(some))
    return FileSize(more - each * len(rows), each)


def _growing(sizes: Sequence[tuple[int, int]]) -> FileSize:
    """From files of different numbers of rows; those of one number tell nothing of what is the file's own."""
    if not sizes:
        return FileSize(0, 0)
    (few, least), (many, most) = min(sizes), max(sizes)
    each = (most - least) / (many - few) if many > few else most / many
    return FileSize(most - each * many, each)


def _nothing_explained(trials: Sequence[Trial]) -> str:
    failures = [failure for trial in trials for failure in trial.failures]
    kinds = ", ".join(count_by_type(failures))
    return (
        f"not one of {len({failure.id for failure in failures})} images tried could be explained ({kinds}), such as "
        f"{failures[0].uri!r}: {failures[0].message}"
    )


def _bytes(size: float) -> str:
    if size < 999.5:
        return f"{size:.0f} B"
    thousands = size / 1000
    for unit in ("kB", "MB", "GB"):
        if thousands < 999.5:
            return f"{thousands:.{1 if thousands < 99.5 else 0}f} {unit}"
        thousands /= 1000
    return f"{thousands:.1f} TB"


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

"""Many shards on their way at once: threads on either side of the model, and what becomes of a shard that breaks."""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import logs, storage
from pipeline.counting import Tally
from pipeline.errors import BeamcamError, RunError
from pipeline.layout import RunLayout
from pipeline.records import Failure, Record, Shard
from pipeline.shard import Explained, Loaded, Outage, ShardJob

if TYPE_CHECKING:
    from pipeline.worker import Worker

logger = logging.getLogger(__name__)

IN_FLIGHT = 16  # images that are read at a time from an object store, which answers late, and overlays written to it

UNAFFECTED = (
    64  # images beyond a batch that go on while one of them waits for an object store: half a second of a model
)

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Threads that compute at a time on either side of the model; more would take turns, and a tenth of the time for it."""

BROKEN_IN_A_ROW = 3  # shards that break one after the other show that the fault is not theirs

T = TypeVar("T")
U = TypeVar("U")


def process_shards(
    shards: Iterable[Shard],
    worker: Worker,
    layout: RunLayout,
    progress: Callable[[int], None] = lambda _: None,
    find_commit: Callable[[int], dict[str, Any] | None] = lambda _: None,
    claim: str = "",
    tally: Tally | None = None,
) -> Iterator[dict[str, Any]]:
    """Explains shards and commits each, without a pause from one to the next.

    Reading and decoding run ahead of the model in threads, into the next shard if need be; what follows the model runs
    behind it. A batch and sixteen images are alive ahead of the model, and a batch behind it; on the side of an object
    store, where one request in a hundred takes ten times as long as the others, a batch and sixty-four.

    Args:
        shards: their images.
        worker: the model, with the job's configuration.
        layout: where the run's files lie.
        progress: called with the number of images finished since the last call.
        find_commit: called with a shard's number before it is committed: its marker if another job has committed it;
            raises if the run is not this job's any more.
        claim: of the run; markers say it.
        tally: gets what was counted of each shard, before its marker is yielded.

    Yields:
        The content of each shard's marker, which was written last: a shard is done if and only if it is there.

    Raises:
        RunError: some shards broke, and all others are committed; or a store is away, and nothing more was tried.
        OSError: the output cannot be written; nothing more was tried.
    """
    complete = explain_shards(shards, worker, layout, progress, find_commit, claim)
    with ThreadPoolExecutor(1) as committer, contextlib.closing(complete):
        committed = map_ahead(
            committer, lambda job: (job, attempt(job, None, lambda job, _: job.commit())), complete, 2, cancel=False
        )
        yield from _tell_broken(committed, tally or Tally())


def explain_shards(
    shards: Iterable[Shard],
    worker: Worker,
    layout: RunLayout,
    progress: Callable[[int], None] = lambda _: None,
    find_commit: Callable[[int], dict[str, Any] | None] = lambda _: None,
    claim: str = "",
) -> Generator[ShardJob]:
    """As `process_shards`, without a commitment: yields each shard, in order, once all its images have their outcome.

    A shard that broke is yielded too; its `broken` tells why.
    """
    ahead, behind = threading.Semaphore(CORES), threading.Semaphore(CORES)
    shards = iter(shards)
    first = list(itertools.islice(shards, 1))
    outage = Outage()
    jobs = (
        ShardJob(worker, layout, shard, find_commit, claim, outage, ahead, behind)
        for shard in itertools.chain(first, shards)
    )
    batch = worker.config.batch_size
    sources = [*worker.config.images, *(entry.uri for shard in first for entry in shard.entries)]
    read_afar, write_afar = (not all(map(storage.is_local, uris)) for uris in (sources, [layout.output]))
    with _pool(read_afar) as loaders, _pool(write_afar) as recorders:
        tasks = ((job, entry) for job in jobs for entry in job.entries)
        limit = batch + (UNAFFECTED if read_afar else IN_FLIGHT)
        loaded = map_ahead(loaders, lambda task: (task[0], attempt(*task, ShardJob.load)), tasks, limit)
        explained = explain(loaded)
        limit = max(2, batch) + (UNAFFECTED if write_afar else 0)
        outcomes = map_ahead(recorders, lambda task: (task[0], attempt(*task, ShardJob.make_record)), explained, limit)
        try:
            yield from _collect(outcomes, progress)
        except BaseException:
            # What broke is to be told at once, and not after everything that was waiting.
            for pool in (loaders, recorders):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


def attempt(job: ShardJob, item: T, step: Callable[[ShardJob, T], U]) -> U | None:
    """What a step makes of an item; None if its shard is broken, or breaks now, which harms no other shard.

    Raises:
        OSError: the output refuses to be written, which it does for every shard.
        BeamcamError: the job cannot go on.
    """
    if job.broken:
        return None
    with logs.about(job.layout.output, job.number):
        try:
            return step(job, item)
        except (OSError, BeamcamError):
            raise
        except Exception as error:
            logger.info("shard %d broke", job.number, exc_info=True)
            job.broken.append(error)
            return None


def explain(
    loaded: Iterable[tuple[ShardJob, Loaded | Record | Failure | None]],
) -> Iterator[tuple[ShardJob, Explained | Record | Failure | None]]:
    """Sends images to the model in batches of one shard each, and books how long the model waits on either side."""
    batch: list[Loaded | Record | Failure | None] = []
    items, seen, has_run = iter(loaded), 0, False
    while True:
        start = time.perf_counter()
        job, item = next(items, (None, None))
        if job is None:
            return
        if has_run:  # no model runs before its first batch is there
            job.watch.time_wait("images", time.perf_counter() - start)
        batch.append(item)
        seen += 1
        is_last = seen == len(job.entries)
        if is_last or sum(isinstance(other, Loaded) for other in batch) == job.config.batch_size:
            outcomes = attempt(job, batch, ShardJob.explain) or [None] * len(batch)
            for outcome in outcomes:
                start = time.perf_counter()
                yield job, outcome
                job.watch.time_wait("room", time.perf_counter() - start)
            batch, seen, has_run = [], 0 if is_last else seen, True


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T], limit: int, cancel: bool = True
) -> Iterator[U]:
    """`map` in threads and in order, with at most `limit` items begun and not yet taken.

    When it is broken off, items that no thread has taken up are cancelled, unless `cancel` is False.
    """
    begun: collections.deque[Future[U]] = collections.deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) >= limit:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            if cancel:
                future.cancel()


def _pool(afar: bool) -> ThreadPoolExecutor:
    """Threads for work on files: as many as compute, and more where they wait for an object store."""
    return ThreadPoolExecutor(max(CORES, IN_FLIGHT) if afar else CORES)


def _collect(
    outcomes: Iterable[tuple[ShardJob, Record | Failure | None]], progress: Callable[[int], None]
) -> Iterator[ShardJob]:
    """Hands outcomes to their shards, and yields each shard that has all of them."""
    for job, outcome in outcomes:
        job.outcomes.append(outcome)
        progress(1)
        if len(job.outcomes) == len(job.entries):
            yield job


def _tell_broken(committed: Iterable[tuple[ShardJob, dict[str, Any] | None]], tally: Tally) -> Iterator[dict[str, Any]]:
    """The markers of the shards that were committed; at the end, which ones were not."""
    broken: list[ShardJob] = []
    in_a_row = 0
    for job, marker in committed:
        tally.absorb(job.tally)
        if marker is not None:
            in_a_row = 0
            yield marker
            continue
        broken.append(job)
        tally.add("shards_broken")
        in_a_row += 1
        if in_a_row == BROKEN_IN_A_ROW:
            break
    if broken:
        numbers = ", ".join(str(job.number) for job in broken)
        error = broken[0].broken[0]
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{'shards' if len(broken) > 1 else 'shard'} {numbers} broke: {reason}") from error

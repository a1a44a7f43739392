"""The DoFns and PTransforms: each one wires a function of another module, and holds no logic of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from pipeline import logs
from pipeline.config import configure_storage
from pipeline.counting import NAMESPACE, Tally
from pipeline.flow import process_shards
from pipeline.lifetime import end_with_job
from pipeline.progress import images_done
from pipeline.run import Ending, RunningJob, cover, finish_detached
from pipeline.stream import Stream
from pipeline.sums import Sums
from pipeline.totals import Basis, gather, read_part, write_partial

Marker = dict[str, Any]


class PendingShards(beam.PTransform):
    """Numbers of shards, which travel as ranges: a night of a hundred million images has 400,000 of them."""

    def __init__(self, numbers: Iterable[int]):
        super().__init__()
        self.ranges = cover(numbers)

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        """Ranges are written out on a worker."""
        ranges = root | "Ranges" >> beam.Create(self.ranges, reshuffle=False)
        return ranges | "Numbers" >> beam.FlatMapTuple(_write_out)


def _write_out(first: int, end: int) -> Iterator[int]:
    yield from range(first, end)


class ProcessShardsDoFn(beam.DoFn):
    """`process_shards` for the shards of a bundle; the model is loaded once a process."""

    def __init__(self, job: RunningJob):
        self.job = job
        self.logs = logs.current()

    def setup(self) -> None:
        """Loads the model; never in the constructor, which is pickled."""
        from pipeline.worker import shared_worker

        logs.adopt(self.logs, self.job.layout.output, is_local=end_with_job())
        configure_storage(self.job.config.storage_options, self.job.config.storage_timeout)
        self.worker = shared_worker(self.job.config)
        self.tally = Tally()

    def start_bundle(self) -> None:
        """Opens the stream that the bundle's shards flow through, so that no shard waits for the one before it."""
        from pipeline.worker import new_loads

        self.teardown()  # that of a bundle that was given up
        self.tally.add("model_loads", new_loads())
        self.stream = Stream[int, Marker](self._process)

    def process(self, shard: int) -> Iterator[Marker]:
        """Begins a shard; yields the markers of those that were committed meanwhile."""
        yield from self._book(self.stream.put(shard))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Waits for the shards that are left; yields their markers."""
        yield from map(GlobalWindows.windowed_value, self._book(self.stream.close()))

    def teardown(self) -> None:
        """Ends the stream of a bundle that was given up."""
        if getattr(self, "stream", None) is not None:
            self.stream.stop()

    def _process(self, numbers: Iterator[int]) -> Iterator[Marker]:
        job, tally = self.job, self.tally
        shards = job.read_shards(numbers, skipped=lambda _: tally.add("shards_skipped"))
        return process_shards(shards, self.worker, job.layout, images_done.add, job.find_commit, job.claim, tally)

    def _book(self, markers: Iterator[Marker]) -> Iterator[Marker]:
        try:
            yield from markers
        finally:
            book_metrics(self.tally)


def book_metrics(tally: Tally) -> None:
    """Tells the runner what is new in a tally. To be called in the thread of a bundle: Beam heeds no other."""
    new = tally.take()
    for name, amount in new.counts.items():
        Metrics.counter(NAMESPACE, name).inc(amount)
    for name, values in new.values.items():
        distribution = Metrics.distribution(NAMESPACE, name)
        for value in values:
            distribution.update(value)


class ProcessShards(beam.PTransform):
    """Shards' numbers to shards' markers, with all files written."""

    def __init__(self, job: RunningJob):
        super().__init__()
        self.job = job

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """One ParDo: pixels never cross a stage boundary."""
        return shards | "ProcessShards" >> beam.ParDo(ProcessShardsDoFn(self.job))


class SumsCombineFn(beam.CombineFn):
    """`Sums.merge` of the parts of shards, by their markers."""

    def __init__(self, job: RunningJob, basis: Basis):
        self.job = job
        self.basis = basis

    def setup(self) -> None:
        """As where shards are processed: this may be another machine."""
        configure_storage(self.job.config.storage_options, self.job.config.storage_timeout)

    def create_accumulator(self) -> list[Sums]:
        """Sums that wait to be added up."""
        return []

    def add_input(self, sums: list[Sums], marker: Marker) -> list[Sums]:
        """Reads the shard's part."""
        return gather(sums, [read_part(self.job.layout, marker, self.basis)])

    def merge_accumulators(self, accumulators: Iterable[list[Sums]]) -> list[Sums]:
        """Those of several workers."""
        total: list[Sums] = []
        for sums in accumulators:  # each is as large as the total, so two of them are in memory and not many
            total = self.compact([*total, *sums])
        return total

    def compact(self, sums: list[Sums]) -> list[Sums]:
        """What is sent to another worker is one."""
        return [Sums.merge(sums)] if sums else []

    def extract_output(self, sums: list[Sums]) -> Sums:
        """Their total."""
        return Sums.merge([Sums.empty(self.basis.method), *sums])


class WriteSums(beam.PTransform):
    """Shards' markers to a file with the sums of all of them, which is small however many there are."""

    def __init__(self, job: RunningJob, basis: Basis):
        super().__init__()
        self.job = job
        self.basis = basis

    def expand(self, markers: beam.PCollection) -> beam.PCollection:
        """Whole numbers add up to the same whatever the order, so workers add up what they have first."""
        total = markers | "CombineSums" >> beam.CombineGlobally(SumsCombineFn(self.job, self.basis))
        return total | "WriteSums" >> beam.Map(functools.partial(write_partial, self.job.layout))


class FinishRun(beam.PTransform):
    """`finish_detached` after the sums, where nobody waits for the job."""

    def __init__(self, ending: Ending):
        super().__init__()
        self.ending = ending

    def expand(self, written: beam.PCollection) -> beam.PCollection:
        """The sums' file is one element; so is run.json."""
        return written | "FinishRun" >> beam.Map(functools.partial(finish_detached, self.ending))

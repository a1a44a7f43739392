"""The DoFns and PTransforms: each one wires a function of another module, and holds no logic of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline import parquet
from pipeline.config import RunConfig
from pipeline.layout import RunLayout
from pipeline.progress import images_done
from pipeline.shard import process_shard
from pipeline.worker import shared_worker


class ProcessShardsDoFn(beam.DoFn):
    """`process_shard` for each shard's number; the model is loaded once a process."""

    def __init__(self, config: RunConfig, resumed: bool):
        self.config, self.resumed = config, resumed
        self.records = Metrics.counter("beamcam", "records")
        self.failures = Metrics.counter("beamcam", "failures")

    def setup(self) -> None:
        """Loads the model; never in the constructor, which is pickled."""
        self.worker = shared_worker(self.config)
        self.layout = RunLayout(self.config.output)

    def process(self, shard: int) -> Iterator[dict[str, Any]]:
        """Explains and commits a shard; yields its marker."""
        entries = parquet.read_manifest_shard(self.layout.uri(self.layout.MANIFEST), shard)
        marker = process_shard(shard, entries, self.worker, self.layout, images_done.add, self.resumed)
        self.records.inc(marker["records"])
        self.failures.inc(marker["failures"])
        yield marker


class ProcessShards(beam.PTransform):
    """Shards' numbers to shards' markers, with all files written."""

    def __init__(self, config: RunConfig, resumed: bool = False):
        super().__init__()
        self.config, self.resumed = config, resumed

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """One ParDo: pixels never cross a stage boundary."""
        return shards | "ProcessShards" >> beam.ParDo(ProcessShardsDoFn(self.config, self.resumed))

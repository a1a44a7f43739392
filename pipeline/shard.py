"""Shards from uris to committed files: the whole way of an image, read from top to bottom.

load (read, decode) -> explain (in batches) -> make_record (encode the map, render its overlay) -> commit
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from pipeline import parquet, storage
from pipeline.codec import encode_map
from pipeline.config import RunConfig
from pipeline.decode import Decoded, decode_reduced
from pipeline.errors import ImageError
from pipeline.geometry import (
    Geometry,
    cell_center,
    clip_boxes,
    fit_view,
    make_input,
    project_map,
    shrink_geometry,
    strongest_region,
)
from pipeline.layout import RunLayout, digest_of_overlays
from pipeline.overlay import color_table, draw_overlay, encode_png
from pipeline.records import Entry, Failure, MapRecord, Record
from pipeline.timing import Stopwatch
from pipeline.worker import BatchResult, Worker

KEPT_PIXELS = 2_000_000  # larger photographs are decoded again for their overlays, so that few of them are alive
KEPT_BYTES = 4_000_000  # and larger files are read again

MEASURED_SIDE = 512  # maps are compared with boxes at this size: a gigapixel photograph has no finer map

RANKED = 5  # targets beyond so many best classes, or beyond the requested top, get the rank -1

IN_FLIGHT = 16  # images that are read at a time from an object store, which answers late, and overlays written to it

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Threads that compute at a time on either side of the model; more would take turns, and a tenth of the time for it."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Loaded:
    """An image that is ready for the model."""

    entry: Entry
    content_sha256: str
    geometry: Geometry
    pixels: np.ndarray  # the model's view, (h, w, 3) uint8
    photograph: Decoded | bytes | str | None  # to lay maps over: pixels; of large images the file's bytes, or its uri


@dataclass(frozen=True)
class Explained:
    """An image and its row in a batch's results."""

    loaded: Loaded
    batch: BatchResult
    row: int


def process_shards(
    shards: Iterable[tuple[int, list[Entry]]],
    worker: Worker,
    layout: RunLayout,
    progress: Callable[[int], None] = lambda _: None,
    resumed: bool = False,
) -> Iterator[dict[str, Any]]:
    """Explains shards and commits each, without a pause from one to the next.

    Reading and decoding run ahead of the model in threads, into the next shard if need be; what follows the model runs
    behind it. A batch and sixteen images are alive ahead of the model, and a batch behind it.

    Args:
        shards: their numbers and images.
        worker: the model, with the job's configuration.
        layout: where the run's files lie.
        progress: called with the number of images finished since the last call.
        resumed: whether an earlier attempt may have left overlays behind, to be cleared of what no record names.

    Yields:
        The content of each shard's marker, which was written last: a shard is done if and only if it is there.
    """
    ahead, behind = threading.Semaphore(CORES), threading.Semaphore(CORES)
    shards = iter(shards)
    first = list(itertools.islice(shards, 1))
    jobs = (
        ShardJob(worker, layout, number, entries, resumed, ahead, behind)
        for number, entries in itertools.chain(first, shards)
    )
    batch = worker.config.batch_size
    with (
        _pool_for([*worker.config.images, *(entry.uri for _, entries in first for entry in entries)]) as loaders,
        _pool_for([layout.output]) as recorders,
        ThreadPoolExecutor(1) as committer,
    ):
        tasks = ((job, entry) for job in jobs for entry in job.entries)
        loaded = map_ahead(loaders, lambda task: (task[0], task[0].load(task[1])), tasks, batch + IN_FLIGHT)
        explained = explain(loaded)
        outcomes = map_ahead(recorders, lambda task: (task[0], task[0].make_record(task[1])), explained, max(2, batch))
        complete = _collect(outcomes, progress)
        try:
            yield from map_ahead(committer, ShardJob.commit, complete, 2, cancel=False)
        except BaseException:
            # What broke is to be told at once, and not after everything that was waiting.
            for pool in (loaders, recorders):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pool_for(uris: Iterable[str]) -> ThreadPoolExecutor:
    """Threads for work on files: as many as compute, and more where they wait for an object store."""
    return ThreadPoolExecutor(CORES if all(map(storage.is_local, uris)) else max(CORES, IN_FLIGHT))


def explain(loaded: Iterable[tuple[ShardJob, Loaded | Failure]]) -> Iterator[tuple[ShardJob, Explained | Failure]]:
    """Sends images to the model in batches of one shard each, and books how long the model waits on either side."""
    batch: list[Loaded | Failure] = []
    items, seen, has_run = iter(loaded), 0, False
    while True:
        start = time.perf_counter()
        job, item = next(items, (None, None))
        if job is None or item is None:
            return
        if has_run:  # no model runs before its first batch is there
            job.watch.time_wait("images", time.perf_counter() - start)
        batch.append(item)
        seen += 1
        is_last = seen == len(job.entries)
        if is_last or sum(isinstance(other, Loaded) for other in batch) == job.config.batch_size:
            for outcome in job.explain(batch):
                start = time.perf_counter()
                yield job, outcome
                job.watch.time_wait("room", time.perf_counter() - start)
            batch, seen, has_run = [], 0 if is_last else seen, True


def _collect(
    outcomes: Iterable[tuple[ShardJob, Record | Failure]], progress: Callable[[int], None]
) -> Iterator[ShardJob]:
    """Hands outcomes to their shards, and yields each shard that has all of them."""
    for job, outcome in outcomes:
        job.outcomes.append(outcome)
        progress(1)
        if len(job.outcomes) == len(job.entries):
            yield job


@dataclass(frozen=True)
class ShardJob:
    """A shard's images on their way, and what all of them need."""

    worker: Worker
    layout: RunLayout
    number: int = 0
    entries: list[Entry] = field(default_factory=list)
    resumed: bool = False
    ahead: threading.Semaphore = field(default_factory=threading.Semaphore)  # processors for loading
    behind: threading.Semaphore = field(default_factory=threading.Semaphore)  # and for making records
    watch: Stopwatch = field(default_factory=Stopwatch)
    outcomes: list[Record | Failure] = field(default_factory=list)
    overlays: dict[str, str] = field(default_factory=dict)  # path -> SHA-256 of those written

    @property
    def config(self) -> RunConfig:
        """The job's."""
        return self.worker.config

    def load(self, entry: Entry) -> Loaded | Failure:
        """Reads and decodes one image; whatever goes wrong is that image's failure."""
        try:
            data = self.watch.time("read", _read, entry.uri)
            with self.ahead:
                return self._decode(entry, data)
        except ImageError as error:
            return _failure(entry, error)

    def explain(self, batch: list[Loaded | Failure]) -> Iterator[Explained | Failure]:
        """Explains the images of a batch that could be loaded; failures pass by, in their place."""
        images = [item for item in batch if isinstance(item, Loaded)]
        labels = [self.worker.label_index(item.entry.label) for item in images]
        targets = [self.config.parsed_targets.row(label, self.worker.n_classes) for label in labels]
        pixels = [item.pixels for item in images]
        rows: Iterator[Explained] = iter(())
        if images:
            result = self.watch.time_model(self.worker.explain, pixels, targets)
            rows = (Explained(item, result, row) for row, item in enumerate(images))
        for item in batch:
            yield item if isinstance(item, Failure) else next(rows)

    def make_record(self, item: Explained | Failure) -> Record | Failure:
        """The record of one image; its overlays are written on the way."""
        if isinstance(item, Failure):
            return item
        loaded, logits = item.loaded, item.batch.logits[item.row]
        try:
            _refuse_not_finite(logits, "the logits")
            for method, values in item.batch.maps.items():
                _refuse_not_finite(values[item.row], f"the map of {method}")
            with self.behind:
                photograph = self._photograph(loaded)
        except ImageError as error:
            return _failure(loaded.entry, error)
        columns = self._columns(loaded.entry, item.batch.targets[item.row])
        maps = tuple(self._make_map(item, method, k, photograph) for method in self.config.methods for k in columns)
        kept, classes = _keep_logits(logits, self.config.top_logits)
        return Record(
            loaded.entry.id,
            loaded.entry.uri,
            loaded.content_sha256,
            loaded.entry.label,
            loaded.geometry,
            kept,
            classes,
            maps,
        )

    def commit(self) -> dict[str, Any]:
        """Writes the shard's files, its marker last."""
        if self.resumed:
            self.watch.time("write", self._remove_orphans)
        records = [outcome for outcome in self.outcomes if isinstance(outcome, Record)]
        failures = [outcome for outcome in self.outcomes if isinstance(outcome, Failure)]
        metadata = self.worker.metadata
        files = {
            self.layout.records(self.number): self.watch.time("codec", parquet.encode_records, records, metadata),
            self.layout.failures(self.number): self.watch.time("codec", parquet.encode_failures, failures, metadata),
        }
        for path, data in files.items():
            self.watch.time("write", storage.write_bytes, self.layout.uri(path), data)
        marker = {
            "shard": self.number,
            "config_digest": self.config.digest(),
            "model_digest": self.worker.model_digest,
            "inputs": len(self.entries),
            "records": len(records),
            "failures": len(failures),
            "failures_by_type": count_by_type(failures),
            "overlays": len(self.overlays),
            "overlays_sha256": digest_of_overlays(self.overlays),
            "files": {p: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for p, d in files.items()},
            "metrics": sum_metrics(records),
            "batch_size": self.worker.batch_size,
            **self.watch.to_dict(),
        }
        storage.write_bytes(self.layout.uri(self.layout.marker(self.number)), json.dumps(marker, indent=1).encode())
        return marker

    def _remove_orphans(self) -> None:
        """Removes overlays of these images that an earlier attempt wrote, and that no record of this one names."""
        ids = {entry.id for entry in self.entries}
        for folder in sorted({self.layout.overlay_folder(image_id) for image_id in ids}):
            for uri in storage.list_files(self.layout.uri(folder)):
                name = uri.rsplit("/", 1)[-1]
                if name.split("-", 1)[0] in ids and f"{folder}/{name}" not in self.overlays:
                    storage.remove_file(uri)

    def _decode(self, entry: Entry, data: bytes) -> Loaded:
        height, width = self.worker.input_size
        decoded = self.watch.time("decode", decode_reduced, data, self.config.max_pixels, (width, height))
        view = fit_view(self.config.resize, (decoded.width, decoded.height), (width, height))
        geometry = Geometry(decoded.width, decoded.height, view)
        pixels = self.watch.time("preprocess", make_input, decoded.image, geometry, decoded.reduction)
        kept: Decoded | bytes | str | None = None
        if self.config.overlays == "blend" and wants_overlays(entry, self.config):
            whole = decoded.reduction == 1 and geometry.width * geometry.height <= KEPT_PIXELS
            kept = decoded if whole else data if len(data) <= KEPT_BYTES else entry.uri
        return Loaded(entry, hashlib.sha256(data).hexdigest(), geometry, pixels, kept)

    def _columns(self, entry: Entry, targets: np.ndarray) -> list[int]:
        """The columns of the targets that an image wants: none for a label that it has not, none for a repetition."""
        if self.config.parsed_targets.need_labels and self.worker.label_index(entry.label) is None:
            targets = targets[:-1]
        return [column for column, target in enumerate(targets) if target not in targets[:column]]

    def _photograph(self, loaded: Loaded) -> Decoded | None:
        data = loaded.photograph
        if isinstance(data, str):
            data = self.watch.time("read", _read, data)
            if hashlib.sha256(data).hexdigest() != loaded.content_sha256:
                raise ImageError("read", "Changed", "the file changed while it was being explained")
        if not isinstance(data, bytes):
            return data
        needed = None
        if self.config.overlay_size is not None:
            small, _ = shrink_geometry(loaded.geometry, self.config.overlay_size)
            needed = small.width, small.height
        return self.watch.time("decode", decode_reduced, data, self.config.max_pixels, needed)

    def _make_map(self, item: Explained, method: str, column: int, photograph: Decoded | None) -> MapRecord:
        if not wants_overlays(item.loaded.entry, self.config):
            with self.behind:
                return self._describe_map(item, method, column)
        with self.behind:
            values = self._describe_map(item, method, column)
            shown = item.batch.shown[method][item.row, ..., column]
            png = self._render_overlay(shown, item.loaded.geometry, photograph)
        path = self.layout.overlay(item.loaded.entry.id, method, values.target)
        self.watch.time("write", storage.write_bytes, self.layout.uri(path), png)
        self.overlays[path] = hashlib.sha256(png).hexdigest()
        return dataclasses.replace(values, overlay=path)

    def _render_overlay(self, shown: np.ndarray, geometry: Geometry, photograph: Decoded | None) -> bytes:
        config = self.config
        image, reduction = (photograph.image, photograph.reduction) if photograph else (None, 1)
        style = (config.overlays, config.colormap, config.overlay_size)
        pixels = self.watch.time("overlay", draw_overlay, image, shown, geometry, *style, reduction)
        return self.watch.time("encode", encode_png, pixels, color_table(config.colormap))

    def _describe_map(self, item: Explained, method: str, column: int) -> MapRecord:
        batch, geometry = item.batch, item.loaded.geometry
        values = batch.maps[method][item.row, ..., column]
        target = int(batch.targets[item.row, column])
        peak_x, peak_y = _peak(values, geometry)
        metrics = {name: float(found[item.row, column]) for name, found in batch.metrics.get(method, {}).items()}
        metrics |= self.watch.time("metrics", self._localize, item, values, target)
        positive, negative = _mass(values)
        return MapRecord(
            method=method,
            target=target,
            rank=_rank(batch.logits[item.row], target, max(RANKED, batch.targets.shape[1])),
            score=float(batch.logits[item.row, target]),
            probability=float(batch.probabilities[item.row, target]),
            encoded=self.watch.time("codec", encode_map, values, self.config.map_dtype),
            box=self.watch.time("codec", strongest_region, values, geometry),
            peak_x=peak_x,
            peak_y=peak_y,
            total=positive,
            negative_share=negative / (positive + negative) if negative else 0.0,
            overlay=None,
            geometry=geometry,
            metrics=metrics,
        )

    def _localize(self, item: Explained, values: np.ndarray, target: int) -> dict[str, float]:
        entry = item.loaded.entry
        # Boxes are those of the image's label: what other classes' maps show is none of their business.
        asked = {"pointing", "energy"} & set(self.config.metrics)
        if not asked or not entry.boxes or self.worker.label_index(entry.label) not in (None, target):
            return {}
        geometry, scale = shrink_geometry(item.loaded.geometry, MEASURED_SIDE)
        boxes = clip_boxes(((scale * x, scale * y, scale * w, scale * h) for x, y, w, h in entry.boxes), geometry)
        return self.worker.localize(project_map(values, geometry), boxes) if boxes else {}


def wants_overlays(entry: Entry, config: RunConfig) -> bool:
    """Whether an image is in the sample that gets overlays; decided by its id, so the same in every run."""
    return config.overlays != "none" and int(entry.id[:8], 16) < config.overlay_sample * 16**8


def count_by_type(failures: Iterable[Failure]) -> dict[str, int]:
    """How many failures of each kind, as "stage:error_type"."""
    return dict(sorted(collections.Counter(f"{f.stage}:{f.error_type}" for f in failures).items()))


def sum_metrics(records: Iterable[Record]) -> dict[str, dict[str, tuple[float, int]]]:
    """For each method and metric the sum over maps and their number: what shards' means are merged from."""
    sums: dict[str, dict[str, tuple[float, int]]] = {}
    for values in (values for record in records for values in record.maps):
        for name, value in values.metrics.items():
            of_method = sums.setdefault(values.method, {})
            total, count = of_method.get(name, (0.0, 0))
            of_method[name] = (total + value, count + 1)
    return sums


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


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ImageError("read", "FileNotFoundError", "there is no file of that name (any more)") from error
    except Exception as error:
        raise ImageError("read", type(error).__name__, str(error) or type(error).__name__) from error


def _refuse_not_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise ImageError("explain", "NotFinite", f"{what} came out of the model as NaN or infinity")


def _rank(logits: np.ndarray, target: int, ranked: int) -> int:
    # Of equal logits the lower index comes first, as in top_k, so that no two classes share a place.
    rank = int((logits > logits[target]).sum() + (logits[:target] == logits[target]).sum())
    return rank if rank < ranked else -1


def _peak(values: np.ndarray, geometry: Geometry) -> tuple[float, float]:
    row, column = np.unravel_index(np.argmax(values), values.shape)
    x, y = cell_center(int(row), int(column), values.shape, geometry.view)
    # A peak in a bar of padding is told by the nearest point of the image.
    return min(max(x, 0.0), float(geometry.width)), min(max(y, 0.0), float(geometry.height))


def _mass(values: np.ndarray) -> tuple[float, float]:
    """The sums of a map's positive and negative parts, both as magnitudes."""
    positive = np.maximum(values, 0).sum(dtype=np.float64)
    return float(positive), float(positive - values.sum(dtype=np.float64))


def _keep_logits(logits: np.ndarray, count: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    if count is None or count >= len(logits):
        return logits, None
    best = np.argsort(-logits, kind="stable")[:count]
    return logits[best], best.astype(np.int32)


def _failure(entry: Entry, error: ImageError) -> Failure:
    return Failure(entry.id, entry.uri, error.stage, error.error_type, str(error))

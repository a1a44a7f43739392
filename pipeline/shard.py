"""One shard from uris to committed files: the whole way of an image, read from top to bottom.

load (read, decode) -> explain (in batches) -> make_record (encode the map, render its overlay) -> commit
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from pipeline import parquet, storage
from pipeline.codec import encode_map
from pipeline.config import RunConfig
from pipeline.decode import decode_image
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
from pipeline.overlay import render_overlay
from pipeline.records import Entry, Failure, MapRecord, Record
from pipeline.worker import BatchResult, Worker

KEPT_PIXELS = 2_000_000  # larger photographs are decoded again for their overlays, so that few of them are alive

MEASURED_SIDE = 512  # maps are compared with boxes at this size: a gigapixel photograph has no finer map

RANKED = 5  # targets beyond so many best classes, or beyond the requested top, get the rank -1

THREADS_AHEAD = 2  # read and decode
THREADS_BEHIND = 2  # encode maps, render and write overlays

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Loaded:
    """An image that is ready for the model."""

    entry: Entry
    content_sha256: str
    geometry: Geometry
    pixels: np.ndarray  # the model's view, (h, w, 3) uint8
    photograph: Image.Image | bytes | None  # for the overlays: RGB pixels, or the file's bytes of a large image


@dataclass(frozen=True)
class Explained:
    """An image and its row in a batch's results."""

    loaded: Loaded
    batch: BatchResult
    row: int


@dataclass(frozen=True)
class Stopwatch:
    """Seconds of work by stage, summed over threads."""

    seconds: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def time(self, stage: str, function: Callable[..., T], *args: Any) -> T:
        """Calls a function and books its time."""
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            with self.lock:
                self.seconds[stage] += time.perf_counter() - start


def process_shard(
    shard: int,
    entries: list[Entry],
    worker: Worker,
    layout: RunLayout,
    progress: Callable[[int], None] = lambda _: None,
    resumed: bool = False,
) -> dict[str, Any]:
    """Explains one shard and commits it.

    Reading and decoding run ahead of the model in threads, and what follows the model runs behind it; at most one
    batch is alive on either side.

    Args:
        shard: its number.
        entries: its images.
        worker: the model, with the job's configuration.
        layout: where the run's files lie.
        progress: called with the number of images finished since the last call.
        resumed: whether an earlier attempt may have left overlays behind, to be cleared of what no record names.

    Returns:
        The marker's content, which was written last: the shard is done if and only if it is there.
    """
    job = ShardJob(worker.config, worker, layout)
    batch = worker.config.batch_size
    with ThreadPoolExecutor(THREADS_AHEAD) as ahead, ThreadPoolExecutor(THREADS_BEHIND) as behind:
        loaded = map_ahead(ahead, job.load, entries, batch)
        explained = job.explain(loaded)
        outcomes = []
        for outcome in map_ahead(behind, job.make_record, explained, batch):
            outcomes.append(outcome)
            progress(1)
    if resumed:
        job.remove_orphans(entries)
    return job.commit(shard, len(entries), outcomes)


@dataclass(frozen=True)
class ShardJob:
    """The steps of a shard, and what all of them need."""

    config: RunConfig
    worker: Worker
    layout: RunLayout
    watch: Stopwatch = field(default_factory=Stopwatch)
    overlays: dict[str, str] = field(default_factory=dict)  # path -> SHA-256 of those written

    def load(self, entry: Entry) -> Loaded | Failure:
        """Reads and decodes one image; whatever goes wrong is that image's failure."""
        try:
            data = self.watch.time("read", _read, entry.uri)
            photograph = self.watch.time("decode", decode_image, data, self.config.max_pixels)
        except ImageError as error:
            return _failure(entry, error)
        height, width = self.worker.input_size
        geometry = Geometry(*photograph.size, fit_view(self.config.resize, photograph.size, (width, height)))
        pixels = self.watch.time("decode", make_input, photograph, geometry)
        kept = None
        if wants_overlays(entry, self.config):
            kept = photograph if geometry.width * geometry.height <= KEPT_PIXELS else data
        return Loaded(entry, hashlib.sha256(data).hexdigest(), geometry, pixels, kept)

    def explain(self, loaded: Iterable[Loaded | Failure]) -> Iterator[Explained | Failure]:
        """Fills batches with images that could be loaded; failures pass by, in their place."""
        waiting: list[Loaded | Failure] = []
        for item in loaded:
            waiting.append(item)
            if sum(isinstance(other, Loaded) for other in waiting) == self.config.batch_size:
                yield from self._explain_batch(waiting)
                waiting = []
        yield from self._explain_batch(waiting)

    def make_record(self, item: Explained | Failure) -> Record | Failure:
        """The record of one image; its overlays are written on the way."""
        if isinstance(item, Failure):
            return item
        loaded, logits = item.loaded, item.batch.logits[item.row]
        try:
            _refuse_not_finite(logits, "the logits")
            for method, values in item.batch.maps.items():
                _refuse_not_finite(values[item.row], f"the map of {method}")
        except ImageError as error:
            return _failure(loaded.entry, error)
        columns = self._columns(loaded.entry, item.batch.targets[item.row])
        photograph = self._photograph(loaded)
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

    def remove_orphans(self, entries: list[Entry]) -> None:
        """Removes overlays of these images that an earlier attempt wrote, and that no record of this one names."""
        ids = {entry.id for entry in entries}
        for folder in sorted({self.layout.overlay_folder(image_id) for image_id in ids}):
            for uri in storage.list_files(self.layout.uri(folder)):
                name = uri.rsplit("/", 1)[-1]
                if name.split("-", 1)[0] in ids and f"{folder}/{name}" not in self.overlays:
                    storage.remove_file(uri)

    def commit(self, shard: int, inputs: int, outcomes: list[Record | Failure]) -> dict[str, Any]:
        """Writes a shard's files, its marker last."""
        records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if len(outcomes) != inputs:
            raise AssertionError(f"shard {shard}: {inputs} images went in, {len(outcomes)} came out")
        files = {
            self.layout.records(shard): self.watch.time("codec", parquet.encode_records, records, self.worker.metadata),
            self.layout.failures(shard): self.watch.time(
                "codec", parquet.encode_failures, failures, self.worker.metadata
            ),
        }
        for path, data in files.items():
            self.watch.time("write", storage.write_bytes, self.layout.uri(path), data)
        marker = {
            "shard": shard,
            "config_digest": self.worker.config.digest(),
            "model_digest": self.worker.model_digest,
            "inputs": inputs,
            "records": len(records),
            "failures": len(failures),
            "failures_by_type": count_by_type(failures),
            "overlays": len(self.overlays),
            "overlays_sha256": digest_of_overlays(self.overlays),
            "files": {p: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for p, d in files.items()},
            "metrics": sum_metrics(records),
            "seconds": {stage: round(seconds, 4) for stage, seconds in sorted(self.watch.seconds.items())},
        }
        storage.write_bytes(self.layout.uri(self.layout.marker(shard)), json.dumps(marker, indent=1).encode())
        return marker

    def _explain_batch(self, waiting: list[Loaded | Failure]) -> Iterator[Explained | Failure]:
        batch = [item for item in waiting if isinstance(item, Loaded)]
        if not batch:
            yield from (item for item in waiting if isinstance(item, Failure))
            return
        targets = [
            self.config.parsed_targets.row(self.worker.label_index(item.entry.label), self.worker.n_classes)
            for item in batch
        ]
        result = self.watch.time("model", self.worker.explain, [item.pixels for item in batch], targets)
        rows = itertools.count()
        for item in waiting:
            yield item if isinstance(item, Failure) else Explained(item, result, next(rows))

    def _columns(self, entry: Entry, targets: np.ndarray) -> list[int]:
        """The columns of the targets that an image wants: none for a label that it has not, none for a repetition."""
        if self.config.parsed_targets.need_labels and self.worker.label_index(entry.label) is None:
            targets = targets[:-1]
        return [column for column, target in enumerate(targets) if target not in targets[:column]]

    def _photograph(self, loaded: Loaded) -> Image.Image | None:
        if isinstance(loaded.photograph, bytes):
            return self.watch.time("decode", decode_image, loaded.photograph, self.config.max_pixels)
        return loaded.photograph

    def _make_map(self, item: Explained, method: str, column: int, photograph: Image.Image | None) -> MapRecord:
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
            overlay=None if photograph is None else self._write_overlay(item, method, column, photograph),
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

    def _write_overlay(self, item: Explained, method: str, column: int, photograph: Image.Image) -> str:
        config, loaded = self.config, item.loaded
        shown = item.batch.shown[method][item.row, ..., column]
        path = self.layout.overlay(loaded.entry.id, method, int(item.batch.targets[item.row, column]))
        png = self.watch.time(
            "overlay",
            render_overlay,
            photograph,
            shown,
            loaded.geometry,
            config.overlays,
            config.colormap,
            config.overlay_size,
        )
        self.watch.time("write", storage.write_bytes, self.layout.uri(path), png)
        self.overlays[path] = hashlib.sha256(png).hexdigest()
        return path


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


def map_ahead(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T], limit: int) -> Iterator[U]:
    """`map` in threads and in order, with at most `limit` items begun and not yet taken."""
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

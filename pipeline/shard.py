"""A shard from uris to committed files: the whole way of an image, read from top to bottom.

load (read, decode) -> explain (in batches) -> make_record (encode the map, render its overlay) -> commit
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import parquet, patience, storage
from pipeline.attention import correlate, describe_map
from pipeline.codec import encode_map
from pipeline.config import RunConfig
from pipeline.counting import Tally, tally_images, tally_shard
from pipeline.decode import Decoded, decode_reduced
from pipeline.errors import ImageError, RunError
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
from pipeline.logs import worker_name
from pipeline.overlay import color_table, draw_overlay
from pipeline.png import encode_png, fingerprint
from pipeline.prediction import Prediction, describe_prediction
from pipeline.records import Entry, Failure, MapRecord, Record, Shard
from pipeline.timing import Stopwatch
from pipeline.totals import Basis, make_part

if TYPE_CHECKING:
    from pipeline.worker import BatchResult, Worker

logger = logging.getLogger(__name__)

KEPT_PIXELS = 2_000_000  # larger photographs are decoded again for their overlays, so that few of them are alive
KEPT_BYTES = 4_000_000  # and larger files are read again

MEASURED_SIDE = 512  # maps are compared with boxes at this size: a gigapixel photograph has no finer map

RANKED = 5  # targets beyond so many best classes, or beyond the requested top, get the rank -1


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


class Outage:
    """Tells a store that is away from a few images that cannot be read."""

    UNANSWERED = 24  # reads in a row

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row = 0

    def answered(self) -> None:
        """Takes note of a read that was answered, well or not."""
        self._in_a_row = 0

    def unanswered(self, error: Exception) -> None:
        """Takes note of one that was not.

        Raises:
            RunError: it was the last of many.
        """
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= self.UNANSWERED:
                raise RunError(f"{self._in_a_row} reads in a row were not answered, the last: {error}") from error


@dataclass(frozen=True)
class ShardJob:
    """A shard's images on their way, and what all of them need."""

    worker: Worker
    layout: RunLayout
    shard: Shard
    find_commit: Callable[[int], dict[str, Any] | None] = lambda _: None
    claim: str = ""  # of the run, see `running`
    outage: Outage = field(default_factory=Outage)
    ahead: threading.Semaphore = field(default_factory=threading.Semaphore)  # processors for loading
    behind: threading.Semaphore = field(default_factory=threading.Semaphore)  # and for making records
    watch: Stopwatch = field(default_factory=Stopwatch)
    outcomes: list[Record | Failure | None] = field(default_factory=list)
    overlays: dict[str, str] = field(default_factory=dict)  # path -> fingerprint of those of this run
    tally: Tally = field(default_factory=Tally)  # what metrics and the marker tell of the way
    begun: float = field(default_factory=time.monotonic)
    broken: list[Exception] = field(default_factory=list)  # what no image can be blamed for: the shard is given up

    @property
    def config(self) -> RunConfig:
        """The job's."""
        return self.worker.config

    @property
    def number(self) -> int:
        """The shard's."""
        return self.shard.number

    @property
    def entries(self) -> list[Entry]:
        """The shard's."""
        return self.shard.entries

    def load(self, entry: Entry) -> Loaded | Record | Failure:
        """Reads and decodes one image; whatever goes wrong is that image's failure.

        An image whose record is known comes back as that record.
        """
        known = self.shard.known.get(entry.id)
        try:
            if known is not None and self.shard.mending:
                if self._keep_overlays(known):
                    return known
                known = None
            data = self._bytes_of(entry)
            with self.ahead:
                digest = hashlib.sha256(data).hexdigest()
                if known is not None and known.content_sha256 == digest:
                    return known
                return self._decode(entry, data, digest)
        except ImageError as error:
            return _failure(entry, error)
        except RunError:
            raise
        except Exception as error:  # noqa: BLE001 - an image that trips us up costs no other
            return _failure(entry, _blame("decode", error))

    def explain(self, batch: Sequence[Loaded | Record | Failure | None]) -> list[Explained | Record | Failure | None]:
        """Explains the images of a batch that could be loaded; all else passes by, in its place."""
        images = [item for item in batch if isinstance(item, Loaded)]
        rows = iter(self._explain(images) if images else ())
        return [next(rows) if isinstance(item, Loaded) else item for item in batch]

    def make_record(self, item: Explained | Record | Failure | None) -> Record | Failure | None:
        """The record of one image; its overlays are written on the way."""
        if not isinstance(item, Explained):
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
        try:
            sure = describe_prediction(logits, item.batch.probabilities[item.row])
            rivals = _best_two(sure, item, columns)
            maps = tuple(
                self._make_map(item, method, k, rivals.get(k), photograph)
                for method in self.config.methods
                for k in columns
            )
        except (OSError, RunError):
            raise
        except Exception as error:  # noqa: BLE001 - an image that trips us up costs no other
            self._drop_overlays(loaded.entry)
            return _failure(loaded.entry, _blame("explain", error))
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
            sure.confidence,
            sure.runner_up,
            sure.runner_up_confidence,
            sure.entropy,
        )

    def commit(self) -> dict[str, Any]:
        """Writes the shard's files, its marker last; or finds that another job has done so meanwhile."""
        records = [outcome for outcome in self.outcomes if isinstance(outcome, Record)]
        failures = [outcome for outcome in self.outcomes if isinstance(outcome, Failure)]
        metadata, kinds = self.worker.metadata, count_by_type(failures)
        basis = Basis.of_job(self.config.methods, metadata)
        files = {
            self.layout.records(self.number): self.watch.time("codec", parquet.encode_records, records, metadata),
            self.layout.failures(self.number): self.watch.time("codec", parquet.encode_failures, failures, metadata),
            self.layout.sums(self.number): self.watch.time(
                "sums", make_part, self.number, self.entries, records, kinds, basis
            ),
        }
        if (done := self.find_commit(self.number)) is not None:
            self.tally.add("shards_skipped")
            return done
        for path, data in files.items():
            self.watch.time("write", storage.write_bytes, self.layout.uri(path), data)
        self.tally.add("bytes_written", sum(map(len, files.values())))
        marker = {
            "shard": self.number,
            "claim": self.claim,
            "config_digest": self.config.digest(),
            "model_digest": self.worker.model_digest,
            "inputs": len(self.entries),
            "records": len(records),
            "carried": sum(map(self._is_carried, records)),
            "failures": len(failures),
            "failures_by_type": kinds,
            "overlays": len(self.overlays),
            "overlays_sha256": digest_of_overlays(self.overlays),
            "files": {p: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for p, d in files.items()},
            "metrics": sum_metrics(records),
            "batch_size": self.worker.batch_size,
            "bytes_read": self.tally.count("bytes_read"),
            "bytes_written": self.tally.count("bytes_written"),
            "batches": self.tally.count("batches"),
            "store_troubles": patience.new_troubles(),
            "worker": worker_name(),
            "model_loads": self.worker.loads,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **self.watch.to_dict(),
        }
        self.find_commit(self.number)  # raises if another job took the run over, which then finds no marker of ours
        uri, content = self.layout.uri(self.layout.marker(self.number)), json.dumps(marker, indent=1).encode()
        if not storage.create_bytes(uri, content):
            # Another job commits the shard at this very time, or a damaged marker lies there. The files may be a
            # mixture of both: the job that comes second writes all of them.
            for path, data in files.items():
                storage.write_bytes(self.layout.uri(path), data)
            storage.write_bytes(uri, content)
        seconds = time.monotonic() - self.begun
        tally_shard(self.tally, marker, seconds)
        told = {name: marker[name] for name in ("records", "failures", "failures_by_type")}
        logger.info(
            "committed in %.1f s: %d records, %d failures", seconds, len(records), len(failures), extra={"fields": told}
        )
        return marker

    def take_outcomes(self) -> list[Record | Failure]:
        """What became of the images, in order, for those who commit nothing; it is counted.

        Raises:
            RunError: the shard broke.
        """
        if self.broken:
            error = self.broken[0]
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RunError(f"{len(self.entries)} images could not be explained: {reason}") from error
        outcomes = [outcome for outcome in self.outcomes if outcome is not None]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        counts = {"inputs": len(outcomes), "records": len(outcomes) - len(failures), "failures": len(failures)}
        counts |= {"carried": 0, "overlays": len(self.overlays)}
        troubles = {"failures_by_type": count_by_type(failures), "store_troubles": patience.new_troubles()}
        tally_images(self.tally, {**counts, **troubles, **self.watch.to_dict()})
        return outcomes

    def _is_carried(self, record: Record) -> bool:
        """Whether a record was taken over from another run."""
        if self.shard.mending:
            return any(values.overlay and storage.is_absolute(values.overlay) for values in record.maps)
        return record is self.shard.known.get(record.id)

    def _bytes_of(self, entry: Entry) -> bytes:
        if entry.data is None:
            return self.watch.time("read", self._read, entry.uri)
        if len(entry.data) > self.config.max_bytes:
            raise self._too_large()
        return entry.data

    def _read(self, uri: str) -> bytes:
        try:
            data = storage.read_bytes(uri, self.config.max_bytes)
        except storage.UnavailableError as error:
            self.outage.unanswered(error)
            raise _blame("read", error) from error
        except FileNotFoundError as error:
            self.outage.answered()
            raise ImageError("read", "FileNotFoundError", "there is no file of that name (any more)") from error
        except OSError as error:
            self.outage.answered()
            if error.errno == errno.EFBIG:
                raise self._too_large() from error
            raise _blame("read", error) from error
        except Exception as error:
            raise _blame("read", error) from error
        self.outage.answered()
        self.tally.add("bytes_read", len(data))
        self.tally.note("image_bytes", len(data))
        return data

    def _too_large(self) -> ImageError:
        words = f"the file has more than the {self.config.max_bytes} bytes that --max-bytes allows"
        return ImageError("read", "TooLarge", words)

    def _drop_overlays(self, entry: Entry) -> None:
        """Removes the overlays of an image that has no record after all."""
        for path in [path for path in self.overlays if entry.id in path]:
            del self.overlays[path]
            storage.remove_file(self.layout.uri(path))

    def _keep_overlays(self, record: Record) -> bool:
        """Books the overlays of a record that stays; False if one of them is gone or damaged."""
        paths = {values.overlay for values in record.maps if values.overlay is not None}
        own = [path for path in paths if not storage.is_absolute(path)]
        shown: dict[str, str | None] = {}
        try:
            for path in own:
                data = self.watch.time("read", storage.read_bytes, self.layout.uri(path))
                self.tally.add("bytes_read", len(data))
                shown[path] = fingerprint(data)
        except storage.UnavailableError as error:
            raise RunError(f"an overlay of a record that is to stay cannot be read: {error}") from error
        except OSError:
            return False
        if None in shown.values():  # damaged
            return False
        self.overlays.update({path: str(found) for path, found in shown.items()})
        return True

    def _explain(self, images: Sequence[Loaded]) -> list[Explained | Failure]:
        """A batch at once; one by one if that fails, so that an image that the model cannot take costs no other."""
        targets = [self._targets(item) for item in images]
        try:
            result = self.watch.time_model(self.worker.explain, [item.pixels for item in images], targets)
        except Exception:  # noqa: BLE001 - the same again, an image at a time
            # A model that fails on a blank image too has a fault of its own.
            self.worker.explain([np.zeros_like(images[0].pixels)], targets[:1])
            return [self._explain_alone(item) for item in images]
        self._note_batch(len(images))
        return [Explained(item, result, row) for row, item in enumerate(images)]

    def _explain_alone(self, item: Loaded) -> Explained | Failure:
        try:
            result = self.watch.time_model(self.worker.explain, [item.pixels], [self._targets(item)])
        except Exception as error:  # noqa: BLE001 - the model takes others
            return _failure(item.entry, _blame("explain", error))
        self._note_batch(1)
        return Explained(item, result, 0)

    def _note_batch(self, size: int) -> None:
        self.tally.add("batches")
        self.tally.note("batch_size", size)

    def _targets(self, item: Loaded) -> list[int]:
        return self.config.parsed_targets.row(self.worker.label_index(item.entry.label), self.worker.n_classes)

    def _decode(self, entry: Entry, data: bytes, digest: str) -> Loaded:
        height, width = self.worker.input_size
        decoded = self.watch.time("decode", decode_reduced, data, self.config.max_pixels, (width, height))
        view = fit_view(self.config.resize, (decoded.width, decoded.height), (width, height))
        geometry = Geometry(decoded.width, decoded.height, view)
        pixels = self.watch.time("preprocess", make_input, decoded.image, geometry, decoded.reduction)
        kept: Decoded | bytes | str | None = None
        if self.config.overlays == "blend" and wants_overlays(entry, self.config):
            whole = decoded.reduction == 1 and geometry.width * geometry.height <= KEPT_PIXELS
            kept = decoded if whole else data if len(data) <= KEPT_BYTES or entry.data is not None else entry.uri
        return Loaded(entry, digest, geometry, pixels, kept)

    def _columns(self, entry: Entry, targets: np.ndarray) -> list[int]:
        """The columns of the targets that an image wants: none for a label that it has not, none for a repetition."""
        if self.config.parsed_targets.need_labels and self.worker.label_index(entry.label) is None:
            targets = targets[:-1]
        return [column for column, target in enumerate(targets) if target not in targets[:column]]

    def _photograph(self, loaded: Loaded) -> Decoded | None:
        data = loaded.photograph
        if isinstance(data, str):
            data = self.watch.time("read", self._read, data)
            if hashlib.sha256(data).hexdigest() != loaded.content_sha256:
                raise ImageError("read", "Changed", "the file changed while it was being explained")
        if not isinstance(data, bytes):
            return data
        needed = None
        if self.config.overlay_size is not None:
            small, _ = shrink_geometry(loaded.geometry, self.config.overlay_size)
            needed = small.width, small.height
        return self.watch.time("decode", decode_reduced, data, self.config.max_pixels, needed)

    def _make_map(
        self, item: Explained, method: str, column: int, rival: int | None, photograph: Decoded | None
    ) -> MapRecord:
        if not wants_overlays(item.loaded.entry, self.config):
            with self.behind:
                return self._describe_map(item, method, column, rival)
        with self.behind:
            values = self._describe_map(item, method, column, rival)
            shown = item.batch.shown[method][item.row, ..., column]
            png = self._render_overlay(shown, item.loaded.geometry, photograph)
        path = self.layout.overlay(item.loaded.entry.id, method, values.target)
        self.watch.time("write", storage.write_bytes, self.layout.uri(path), png)
        self.tally.add("bytes_written", len(png))
        self.overlays[path] = fingerprint(png) or ""
        return dataclasses.replace(values, overlay=path)

    def _render_overlay(self, shown: np.ndarray, geometry: Geometry, photograph: Decoded | None) -> bytes:
        config = self.config
        image, reduction = (photograph.image, photograph.reduction) if photograph else (None, 1)
        style = (config.overlays, config.colormap, config.overlay_size)
        pixels = self.watch.time("overlay", draw_overlay, image, shown, geometry, *style, reduction)
        return self.watch.time("encode", encode_png, pixels, color_table(config.colormap))

    def _describe_map(self, item: Explained, method: str, column: int, rival: int | None) -> MapRecord:
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
            top2_cc=None if rival is None else correlate(values, batch.maps[method][item.row, ..., rival]),
            **vars(self.watch.time("codec", describe_map, values, geometry)),
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


def _refuse_not_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise ImageError("explain", "NotFinite", f"{what} came out of the model as NaN or infinity")


def _rank(logits: np.ndarray, target: int, ranked: int) -> int:
    # Of equal logits the lower index comes first, as in top_k, so that no two classes share a place.
    rank = int((logits > logits[target]).sum() + (logits[:target] == logits[target]).sum())
    return rank if rank < ranked else -1


def _best_two(sure: Prediction, item: Explained, columns: Sequence[int]) -> dict[int, int]:
    """The column of the best class, and that of the next best, if maps of both are to be stored."""
    column_of = {int(item.batch.targets[item.row, column]): column for column in columns}
    if sure.predicted in column_of and sure.runner_up in column_of:
        return {column_of[sure.predicted]: column_of[sure.runner_up]}
    return {}


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


def _blame(stage: str, error: Exception) -> ImageError:
    """An error that nobody foresaw, as that of one image."""
    reason = (str(error).splitlines() or [""])[0]
    return ImageError(stage, type(error).__name__, reason or type(error).__name__)


def _failure(entry: Entry, error: ImageError) -> Failure:
    return Failure(entry.id, entry.uri, error.stage, error.error_type, str(error))

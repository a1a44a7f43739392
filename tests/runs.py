"""Whole runs made without a model, and ways to change them so that all but the change agrees."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import parquet, storage
from pipeline.attention import describe_map
from pipeline.codec import encode_map
from pipeline.config import RunConfig
from pipeline.geometry import Geometry, fit_view
from pipeline.layout import RunLayout, digest_of_overlays
from pipeline.png import encode_png, fingerprint
from pipeline.prediction import describe_prediction
from pipeline.records import Entry, Failure, MapRecord, Record

METHODS = ("gradcam", "scorecam(channels=32)")
N_CLASSES = 5


@dataclass(frozen=True)
class FakeRun:
    """A run to be written: every seventh image is a failure."""

    output: str
    n_images: int = 10
    shard_size: int = 4
    overlays: bool = True
    logits: str = "all"
    map_dtype: str = "float16"
    has_names: bool = True
    earlier: str | None = None  # a run that has every image whose number ends in 1

    @property
    def config(self) -> RunConfig:
        """What the job was asked to do."""
        overlays = "blend" if self.overlays else "none"
        return RunConfig(("-",), "m.keras", self.output, methods=METHODS, shard_size=self.shard_size, overlays=overlays,
                         logits=self.logits, map_dtype=self.map_dtype, since=self.earlier)  # fmt: skip

    @property
    def metadata(self) -> dict[str, str]:
        """What its files say of it."""
        return {"schema_version": "1", "config_digest": self.config.digest(), "model_digest": "d" * 64}

    def entry(self, number: int) -> Entry:
        """One image; some have labels and boxes."""
        boxes = (((1.0, 2.0, 3.0, 4.0),), None)[number % 2]
        earlier = 0 if self.earlier and number % 10 == 1 else None
        return Entry(f"/photos/{number:07d}.jpg", (None, "cat", "3")[number % 3], boxes, earlier)

    def outcome(self, entry: Entry, pngs: dict[str, bytes]) -> Record | Failure:
        """What became of an image."""
        number = int(entry.uri[-11:-4])
        if number % 7 == 5:
            return Failure(entry.id, entry.uri, "decode", "BrokenImage", "OSError: cut off")
        rng = np.random.default_rng(number)
        geometry = Geometry(64, 48, fit_view("crop", (64, 48), (32, 32)))
        logits = rng.normal(size=N_CLASSES).astype(np.float32)
        order = np.argsort(-logits).astype(np.int32)
        maps = tuple(
            self._map(entry, method, int(order[0]), rng.normal(size=(2, 3)), geometry, pngs) for method in METHODS
        )
        best = None if self.logits == "all" else int(self.logits[4:])
        kept, classes = (logits, None) if best is None or best >= N_CLASSES else (logits[order[:best]], order[:best])
        sure = describe_prediction(logits, np.exp(logits) / np.exp(logits).sum())
        how_sure = (sure.confidence, sure.runner_up, sure.runner_up_confidence, sure.entropy)
        return Record(entry.id, entry.uri, "ab" * 32, entry.label, geometry, kept, classes, maps, *how_sure)

    def _map(
        self, entry: Entry, method: str, target: int, values: np.ndarray, geometry: Geometry, pngs: dict[str, bytes]
    ) -> MapRecord:
        path = RunLayout(self.output).overlay(entry.id, method, target)
        if not self.overlays:
            path = None
        elif entry.earlier_shard is not None:
            path = storage.join(str(self.earlier), path)
        else:
            pngs[path] = make_png(entry.uri + method)
        encoded = encode_map(values.astype(np.float32), self.map_dtype)
        box = (8.0, 0.0, 40.0, 48.0) if len(method) % 2 else None
        attention = vars(describe_map(values, geometry))
        return MapRecord(method, target, 0, 1.5, 0.5, encoded, box, 20.0, 30.0, 2.0, 0.25, path, geometry, **attention)

    def write(self) -> RunLayout:
        """Writes all of it."""
        layout, entries = RunLayout(self.output), [self.entry(i) for i in range(self.n_images)]
        n_shards = -(-self.n_images // self.shard_size)
        with tempfile.TemporaryDirectory() as folder:
            first, second = f"{folder}/1", f"{folder}/2"
            parquet.write_manifest(first, entries, self.shard_size, {})
            facts = self.metadata | {"n_images": str(self.n_images), "n_shards": str(n_shards)}
            find = (lambda some: [self.entry(int(e.uri[-11:-4])).earlier_shard for e in some]) if self.earlier else None
            parquet.copy_manifest(first, second, facts, find)
            storage.write_file(layout.uri(layout.MANIFEST), second)
        size = self.shard_size
        markers = [self._write_shard(layout, i, entries[i * size : (i + 1) * size]) for i in range(n_shards)]
        counts = {name: sum(marker[name] for marker in markers)
                  for name in ("inputs", "records", "failures", "overlays", "carried")}  # fmt: skip
        kinds = sum((Counter(marker["failures_by_type"]) for marker in markers), Counter())
        summary = {"schema_version": 1, "config": self.config.to_dict(), **self.metadata, **counts, "shards": n_shards,
                   "failures_by_type": dict(kinds), "class_names": [*"abcde"] if self.has_names else None}  # fmt: skip
        summary["schema_version"] = 1
        storage.write_bytes(layout.uri(layout.SUMMARY), json.dumps(summary).encode())
        return layout

    def _write_shard(self, layout: RunLayout, number: int, entries: list[Entry]) -> dict[str, Any]:
        pngs: dict[str, bytes] = {}
        outcomes = [self.outcome(entry, pngs) for entry in entries]
        records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        for path, png in pngs.items():
            storage.write_bytes(layout.uri(path), png)
        files = {
            layout.records(number): parquet.encode_records(records, self.metadata),
            layout.failures(number): parquet.encode_failures(failures, self.metadata),
        }
        ids = {entry.id for entry in entries if entry.earlier_shard is not None}
        marker = {
            "shard": number, **{name: self.metadata[name] for name in ("config_digest", "model_digest")},
            "inputs": len(entries), "records": len(records), "failures": len(failures),
            "carried": sum(record.id in ids for record in records),
            "failures_by_type": {"decode:BrokenImage": len(failures)} if failures else {}, "overlays": len(pngs),
            "overlays_sha256": digest_of_overlays({path: fingerprint(png) for path, png in pngs.items()}),
            "files": {path: {"bytes": len(data), "sha256": sha256(data)} for path, data in files.items()},
            "seconds": {},
        }  # fmt: skip
        for path, data in files.items():
            storage.write_bytes(layout.uri(path), data)
        storage.write_bytes(layout.uri(layout.marker(number)), json.dumps(marker).encode())
        return marker


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_png(seed: str) -> bytes:
    """A small picture that no other seed gives."""
    pixels = np.frombuffer(hashlib.sha256(seed.encode()).digest()[:24], np.uint8)
    return encode_png(pixels.reshape(2, 4, 3))


def change_json(path: Path, **values: object) -> None:
    """Changes some values of a JSON file; those that are None are taken out."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def put_file(run: Path, shard: int, name: str, data: bytes, **marker: object) -> None:
    """Replaces a shard's records or failures, with a marker that agrees."""
    path = f"{name}/part-{shard:05d}.parquet"
    (run / path).write_bytes(data)
    marker_path = run / f"shards/{shard:05d}.json"
    files = json.loads(marker_path.read_text())["files"] | {path: {"bytes": len(data), "sha256": sha256(data)}}
    change_json(marker_path, files=files, **marker)


def encode_table(table: pa.Table, metadata: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({f"beamcam.{k}": v for k, v in metadata.items()}), buffer)
    return buffer.getvalue()


def change_table(
    run: Path,
    shard: int,
    change: Callable[[pa.Table], pa.Table],
    name: str = "records",
    metadata: dict[str, str] | None = None,
    **marker: object,
) -> None:
    """Changes a shard's table, with a marker that agrees with what it is then."""
    table = pq.read_table(run / f"{name}/part-{shard:05d}.parquet")
    found = {k.decode().removeprefix("beamcam."): v.decode() for k, v in table.schema.metadata.items()}
    put_file(run, shard, name, encode_table(change(table), found | (metadata or {})), **marker)


def change_rows(
    run: Path, shard: int, change: Callable[[list[dict[str, Any]]], object], name: str = "records", **marker: object
) -> None:
    """Changes a shard's rows in place, with a marker that agrees with the file."""

    def changed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        change(rows)
        return pa.Table.from_pylist(rows, schema=table.schema)

    change_table(run, shard, changed, name, **marker)

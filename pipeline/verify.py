"""`beamcam verify`: proof that a run is whole, with nothing lost, doubled or damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline import parquet, storage
from pipeline.errors import RunError
from pipeline.layout import RunLayout, digest_of_overlays
from pipeline.records import SCHEMA_VERSION, Record, image_id
from pipeline.run import read_markers, read_summary


def verify_run(path: str) -> Iterator[str]:
    """Yields what is wrong with a run, a sentence each; nothing if all is well.

    Checked: the summary, every marker, the checksum of every file, that the images of each shard are those of the
    manifest, each once, as a record or a failure, that maps are finite and match their declared size, and that the
    overlays on disk are exactly those that the records name.
    """
    layout = RunLayout(storage.absolute(path))
    try:
        summary = read_summary(layout)
        markers = read_markers(layout, range(summary["shards"]))
    except RunError as error:
        yield str(error)
        return
    yield from _verify_counts(summary, markers)
    yield from _verify_listing(layout, markers)
    seen: set[str] = set()
    overlays: set[str] = set()
    for marker in markers:
        try:
            yield from _verify_shard(layout, marker, summary, seen, overlays)
        except (OSError, ValueError, KeyError, TypeError) as error:  # whatever a damaged Parquet file makes of itself
            yield f"shard {marker['shard']} cannot be read: {type(error).__name__}: {error}"
    yield from _verify_overlays(layout, overlays)


def _verify_counts(summary: dict[str, Any], markers: list[dict[str, Any]]) -> Iterator[str]:
    for name in ("inputs", "records", "failures", "overlays"):
        total = sum(marker[name] for marker in markers)
        if total != summary[name]:
            yield f"run.json counts {summary[name]} {name}, and the shards' markers {total}"
    if summary["records"] + summary["failures"] != summary["inputs"]:
        yield f"{summary['inputs']} inputs, but {summary['records']} records and {summary['failures']} failures"


def _verify_shard(
    layout: RunLayout, marker: dict[str, Any], summary: dict[str, Any], seen: set[str], overlays: set[str]
) -> Iterator[str]:
    shard = marker["shard"]
    for name in ("config_digest", "model_digest"):
        if marker[name] != summary[name]:
            yield f"shard {shard} was written with another {name.removesuffix('_digest')}"
    damaged = list(_verify_files(layout, marker))
    yield from damaged
    if damaged:
        return
    records = list(parquet.read_records(layout.uri(layout.records(shard))))
    failures = list(parquet.read_failures(layout.uri(layout.failures(shard))))
    version = parquet.read_metadata(layout.uri(layout.records(shard))).get("schema_version")
    if version != str(SCHEMA_VERSION):
        yield f"{layout.records(shard)} has the schema version {version}, and this program reads {SCHEMA_VERSION}"
    if (len(records), len(failures)) != (marker["records"], marker["failures"]):
        yield f"shard {shard} holds {len(records)} records and {len(failures)} failures, unlike its marker"
    ids = {item.uri: item.id for item in records} | {item.uri: item.id for item in failures}
    if len(ids) != len(records) + len(failures):
        yield f"shard {shard} holds an image twice"
    yield from _verify_ids(layout, shard, ids, seen)
    for record in records:
        yield from _verify_maps(record)
    named = {values.overlay for record in records for values in record.maps if values.overlay is not None}
    yield from _verify_pictures(layout, marker, named)
    overlays |= named


def _verify_listing(layout: RunLayout, markers: list[dict[str, Any]]) -> Iterator[str]:
    """Readers take every file of a folder: there must be none but the shards' own."""
    shards = range(len(markers))
    expected = {
        layout.uri(name(shard)) for name in (layout.records, layout.failures, layout.marker) for shard in shards
    }
    for folder in ("records", "failures", "shards"):
        for uri in sorted(set(storage.list_files(layout.uri(folder))) - expected)[:3]:
            yield f"{uri.removeprefix(layout.uri(''))} belongs to no shard"


def _verify_pictures(layout: RunLayout, marker: dict[str, Any], named: set[str]) -> Iterator[str]:
    there = sorted(path for path in named if storage.exists(layout.uri(path)))
    contents = storage.read_many([layout.uri(path) for path in there])
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in zip(there, contents, strict=True)}
    if len(there) == len(named) and digest_of_overlays(digests) != marker["overlays_sha256"]:
        small = min(zip(map(len, contents), there, strict=True), default=(0, "none"))
        yield f"shard {marker['shard']} has overlays of other content than its marker says; the smallest is {small[1]}"


def _verify_files(layout: RunLayout, marker: dict[str, Any]) -> Iterator[str]:
    for path, expected in marker["files"].items():
        try:
            data = storage.read_bytes(layout.uri(path))
        except OSError as error:
            yield f"{path} cannot be read: {type(error).__name__}"
            continue
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            yield f"{path} is damaged: {len(data)} bytes of another checksum than its shard's marker says"


def _verify_ids(layout: RunLayout, shard: int, ids: dict[str, str], seen: set[str]) -> Iterator[str]:
    expected = {entry.uri for entry in parquet.read_manifest_shard(layout.uri(layout.MANIFEST), shard)}
    for uri in sorted(expected - set(ids))[:3]:
        yield f"shard {shard} lost {uri}"
    for uri in sorted(set(ids) - expected)[:3]:
        yield f"shard {shard} holds {uri}, which is not in its part of the manifest"
    for uri, identity in ids.items():
        if identity != image_id(uri):
            yield f"the id of {uri} is {identity}, and should be {image_id(uri)}"
        if identity in seen:
            yield f"{uri} is there twice"
        seen.add(identity)


def _verify_maps(record: Record) -> Iterator[str]:
    for values in record.maps:
        try:
            finite = bool(np.isfinite(values.array()).all())
        except ValueError as error:
            yield f"the {values.method} map of {record.uri} cannot be decoded: {error}"
            continue
        if not finite:
            yield f"the {values.method} map of {record.uri} holds values that are not finite numbers"


def _verify_overlays(layout: RunLayout, expected: set[str]) -> Iterator[str]:
    base = layout.uri("")
    found = {uri.removeprefix(base) for uri in storage.list_files(layout.uri("overlays"), recursive=True)}
    for kind, paths in (("is missing", expected - found), ("belongs to no record", found - expected)):
        for path in sorted(paths)[:3]:
            yield f"{path} {kind}" + (
                f" (and {len(paths) - 3} more)" if len(paths) > 3 and path == sorted(paths)[2] else ""
            )

"""What to explain: folders, globs and manifests, resolved to one list of entries in a fixed order."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pipeline import parquet, storage
from pipeline.decode import IMAGE_SUFFIXES
from pipeline.errors import ConfigError, as_config_errors
from pipeline.records import Entry

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".parquet")

LABEL_SOURCES = ("column", "folder", "none")


def list_images(
    specs: Iterable[str], labels: str = "column", label_column: str = "label", output: str | None = None
) -> tuple[list[Entry], int]:
    """Every image that the specs name, in order, each uri once.

    Args:
        specs: folders (searched to any depth for image files), globs, single images, or manifests (.csv, .tsv, .jsonl,
            .txt, .parquet) whose relative uris are relative to the manifest's own folder.
        labels: "column" takes labels from a manifest's column, "folder" from the name of each image's folder, "none"
            has none.
        label_column: the name of that column.
        output: the folder of the run to come, which is passed over, as is every run that a folder holds: overlays are
            not input.

    Returns:
        The entries, and how many repetitions of a uri were left out.

    Raises:
        ConfigError: a spec matches nothing, or a manifest cannot be read.
    """
    unique: dict[str, Entry] = {}
    count = 0
    for spec in specs:
        found = 0
        for entry in _list_spec(spec, label_column, output):
            _check_name(entry.uri)
            unique.setdefault(entry.uri, _labelled(entry, labels))
            found += 1
        if not found:
            raise ConfigError(_nothing_found(spec))
        count += found
    return list(unique.values()), count - len(unique)


def _check_name(uri: str) -> None:
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the name {uri!r} is not UTF-8, and could not be written to a table: rename it") from error


def _list_spec(spec: str, label_column: str, output: str | None) -> Iterator[Entry]:
    if spec.lower().endswith(MANIFEST_SUFFIXES):
        return _read_manifest(spec, label_column)
    if spec.lower().endswith(".json"):
        raise ConfigError(f"{spec!r} is no manifest that is read: make it .jsonl, with one object a line, or .csv")
    with as_config_errors(f"{spec!r} cannot be listed"):
        if any(mark in spec for mark in "*?[") and not (storage.is_local(spec) and storage.exists(spec)):
            return map(Entry, _outside_runs(storage.glob(spec), output))
        if storage.is_folder(spec):
            files = _outside_runs(storage.list_files(spec, recursive=True), output)
            return (Entry(uri) for uri in files if PurePosixPath(uri).suffix.lower() in IMAGE_SUFFIXES)
        return iter([Entry(storage.absolute(spec))] if storage.exists(spec) else [])


def _outside_runs(uris: list[str], output: str | None) -> list[str]:
    manifests = {uri.removesuffix("/manifest.parquet") for uri in uris if uri.endswith("/manifest.parquet")}
    markers = {uri.removesuffix("/shards/00000.json") for uri in uris if uri.endswith("/shards/00000.json")}
    runs = manifests & markers
    folders = tuple(f"{run}/{name}/" for run in runs for name in ("overlays", "records", "failures", "shards"))
    if output is not None:
        folders += (f"{output}/overlays/",)
    return [uri for uri in uris if not uri.startswith(folders)]


def _nothing_found(spec: str) -> str:
    if spec.lower().endswith(MANIFEST_SUFFIXES):
        return f"the manifest {spec!r} lists no image: it needs a line an image, with its uri"
    if storage.is_folder(spec):
        return (
            f"the folder {spec!r} holds no image file (told by {', '.join(sorted(IMAGE_SUFFIXES))}): "
            "for other names give a glob or a manifest"
        )
    return f"no image matches {spec!r}: check the path; a glob must be quoted, so that the shell leaves it alone"


def _labelled(entry: Entry, labels: str) -> Entry:
    if labels == "folder":
        return Entry(entry.uri, PurePosixPath(entry.uri).parent.name or None, entry.boxes)
    return entry if labels == "column" else Entry(entry.uri, None, entry.boxes)


def _read_manifest(uri: str, label_column: str) -> Iterator[Entry]:
    with as_config_errors(f"the manifest {uri!r} cannot be read"):
        if not storage.exists(uri):
            raise ConfigError(f"the manifest {uri!r} is not there")
        data = storage.read_bytes(uri)
    folder = storage.absolute(uri).rsplit("/", 1)[0]
    try:
        for number, row in enumerate(_rows(uri.lower(), data), 1):
            yield _entry(row, number, uri, folder, label_column)
    except (ValueError, UnicodeError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the manifest {uri!r} cannot be parsed: {error}") from error


def _rows(name: str, data: bytes) -> Iterator[Mapping[str, Any]]:
    if name.endswith(".parquet"):
        yield from parquet.read_rows(data)
        return
    text = data.decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    if name.endswith((".csv", ".tsv")):
        lines = io.StringIO(text, newline="")
        delimiter = "\t" if name.endswith(".tsv") else ","
        yield from csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    elif name.endswith(".txt"):
        yield from ({"uri": line.strip()} for line in text.split("\n") if line.strip() and not line.startswith("#"))
    else:
        rows = (line for line in text.split("\n") if line.strip())  # splitlines would split inside a JSON string
        yield from (_parse_line(row, number) for number, row in enumerate(rows, 1))


def _parse_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error


def _entry(row: Any, number: int, manifest: str, folder: str, label_column: str) -> Entry:
    if not isinstance(row, Mapping) or "uri" not in row:
        columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else repr(row)
        raise ConfigError(f"the manifest {manifest!r} needs a column 'uri', and row {number} has: {columns}")
    uri = row["uri"]
    if not isinstance(uri, str) or not uri.strip():
        raise ConfigError(f"row {number} of the manifest {manifest!r} has no uri: {uri!r}")
    label = row.get(label_column)
    if isinstance(label, float) and label.is_integer():  # what pandas makes of a column of integers with a gap
        label = int(label)
    resolved = storage.absolute(uri if storage.is_absolute(uri) else storage.join(folder, uri))
    return Entry(resolved, None if label in (None, "") else str(label), _boxes(row.get("boxes"), number, manifest))


def _boxes(value: Any, number: int, manifest: str) -> tuple[tuple[float, float, float, float], ...] | None:
    if value in (None, ""):
        return None
    try:
        rows = json.loads(value) if isinstance(value, str) else value
        boxes = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in rows)
    except (TypeError, ValueError):
        boxes = None
    if boxes is None or not all(_is_box(box) for box in boxes):
        raise ConfigError(
            f"row {number} of the manifest {manifest!r} has boxes that are no list of [x, y, width, height]: {value!r}"
        )
    return boxes


def _is_box(box: tuple[float, float, float, float]) -> bool:
    return all(math.isfinite(number) for number in box) and min(box[2:]) >= 0

"""What to explain: folders, globs and manifests, resolved to one list of entries in a fixed order.

The list may be longer than memory is large: entries stream from the manifests into a file, and memory holds a hash of
each uri, to know the repeated ones by.
"""

from __future__ import annotations

import collections
import csv
import io
import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np

from pipeline import parquet, storage
from pipeline.decode import IMAGE_SUFFIXES
from pipeline.errors import ConfigError, as_config_errors
from pipeline.records import Entry

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".parquet")

LABEL_SOURCES = ("column", "folder", "none")


@dataclass(frozen=True)
class Listing:
    """Every image of a job, in order, each uri once; iterate over it for the entries."""

    path: str  # a local manifest, which lacks what is known of the model
    n_images: int
    n_duplicates: int  # repetitions of a uri that were left out
    labels: Mapping[str, int]  # how many images have each label, in the order of first mentions

    def __iter__(self) -> Iterator[Entry]:
        return parquet.read_manifest(self.path)


@contextmanager
def list_images(
    specs: Iterable[str],
    labels: str = "column",
    label_column: str = "label",
    output: str | None = None,
    shard_size: int = 256,
) -> Iterator[Listing]:
    """Every image that the specs name, in order, each uri once; for as long as the block runs.

    Args:
        specs: folders (searched to any depth for image files), globs, single images, or manifests (.csv, .tsv, .jsonl,
            .txt, .parquet) whose relative uris are relative to the manifest's own folder.
        labels: "column" takes labels from a manifest's column, "folder" from the name of each image's folder, "none"
            has none.
        label_column: the name of that column.
        output: the folder of the run to come, which is passed over, as is every run that a folder holds: overlays are
            not input.
        shard_size: images a shard.

    Raises:
        ConfigError: a spec matches nothing, or a manifest cannot be read.
    """
    mentions, counts = _Mentions(), collections.Counter[str | None]()
    with tempfile.TemporaryDirectory(prefix="beamcam-") as folder:
        path = f"{folder}/manifest.parquet"
        with as_config_errors(f"the list of images cannot be written to {folder}"):
            found = mentions.first(_list_specs(specs, labels, label_column, output))
            parquet.write_manifest(path, _counted(found, counts), shard_size, {})
        labelled = {label: count for label, count in counts.items() if label is not None}
        yield Listing(path, counts.total(), mentions.repeated, labelled)


class _Mentions:
    """Tells first mentions of a uri from later ones, by sixteen bytes for each.

    Attributes:
        repeated: how many mentions were not the first.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self._runs: list[np.ndarray] = []  # ids that were there, (n,) S16 each, sorted, every run shorter than the last

    def first(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Lets an entry pass if its uri was not there before."""
        while some := list(itertools.islice(entries, parquet.GROUP_ROWS)):
            ids = np.frombuffer(b"".join(bytes.fromhex(entry.id) for entry in some), "S16")
            new = self._are_new(ids)
            self.repeated += len(some) - int(new.sum())
            yield from itertools.compress(some, new)

    def _are_new(self, ids: np.ndarray) -> np.ndarray:
        new = np.zeros(len(ids), bool)
        new[np.unique(ids, return_index=True)[1]] = True
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, ids), len(run) - 1)
            new &= run[places] != ids
        self._keep(np.sort(ids[new]))
        return new

    def _keep(self, run: np.ndarray) -> None:
        # Runs of like length are merged, so that there are few of them, and none is merged often.
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)


def _counted(entries: Iterable[Entry], counts: collections.Counter[str | None]) -> Iterator[Entry]:
    for entry in entries:
        counts[entry.label] += 1
        yield entry


def _list_specs(specs: Iterable[str], labels: str, label_column: str, output: str | None) -> Iterator[Entry]:
    for spec in specs:
        found = False
        for entry in _list_spec(spec, label_column, output):
            _check_name(entry.uri)
            found = True
            yield _labelled(entry, labels)
        if not found:
            raise ConfigError(_nothing_found(spec))


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
        file = storage.open_file(uri)
    folder = storage.absolute(uri).rsplit("/", 1)[0]
    with file, as_config_errors(f"the manifest {uri!r} cannot be read"):
        try:
            for number, row in enumerate(_rows(uri.lower(), file, label_column), 1):
                yield _entry(row, number, uri, folder, label_column)
        except (ValueError, csv.Error) as error:  # Arrow's and Unicode's errors are ValueErrors
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the manifest {uri!r} cannot be parsed: {error}") from error


def _rows(name: str, file: IO[bytes], label_column: str) -> Iterator[Mapping[str, Any]]:
    if name.endswith(".parquet"):
        yield from parquet.read_rows(file, ("uri", label_column, "boxes"))
        return
    # Spreadsheets put a byte order mark in front. Lines end at \n alone: other ends may stand inside a JSON string.
    is_table = name.endswith((".csv", ".tsv"))
    with io.TextIOWrapper(file, "utf-8-sig", newline="" if is_table else "\n") as lines:
        if is_table:
            delimiter = "\t" if name.endswith(".tsv") else ","
            yield from csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        elif name.endswith(".txt"):
            yield from ({"uri": line.strip()} for line in lines if line.strip() and not line.startswith("#"))
        else:
            rows = (line for line in lines if line.strip())
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

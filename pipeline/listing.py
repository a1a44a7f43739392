"""What to explain: folders, globs and manifests, resolved to one list of entries in a fixed order.

The list may be longer than memory is large: entries stream from the manifests into a file, and memory holds a hash of
each uri, to know the repeated ones by.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from pipeline import parquet, storage
from pipeline.decode import IMAGE_SUFFIXES
from pipeline.errors import ConfigError, as_config_errors, without_secrets
from pipeline.idset import IdSet, as_ids
from pipeline.layout import RunLayout
from pipeline.manifests import MANIFEST_SUFFIXES, read_manifest
from pipeline.progress import Counter, show_count
from pipeline.records import Entry
from pipeline.walking import glob_files, walk_files

LABEL_SOURCES = ("column", "folder", "none")


@dataclass(frozen=True)
class Listing:
    """Every image of a job, in order, each uri once; iterate over it for the entries."""

    path: str  # a local manifest, which lacks what is known of the model
    n_images: int
    n_duplicates: int  # repetitions of a uri that were left out
    labels: Mapping[str, int]  # how many images have each label, in the order of first mentions
    digest: str = ""  # SHA-256 of all entries in their order

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
    mentions, counts, digest = _Mentions(), collections.Counter[str | None](), hashlib.sha256()
    listed = Counter()
    with tempfile.TemporaryDirectory(prefix="beamcam-") as folder:
        path = f"{folder}/manifest.parquet"
        writing = as_config_errors(f"the list of images cannot be written to {folder}")
        with writing, show_count("images listed", lambda: listed.value):
            found = mentions.first(_list_specs(specs, labels, label_column, output, listed))
            parquet.write_manifest(path, _counted(found, counts, digest), shard_size, {})
        labelled = {label: count for label, count in counts.items() if label is not None}
        yield Listing(path, counts.total(), mentions.repeated, labelled, digest.hexdigest())


class _Mentions:
    """Tells first mentions of a uri from later ones, by sixteen bytes for each.

    Attributes:
        repeated: how many mentions were not the first.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self._ids = IdSet()

    def first(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Lets an entry pass if its uri was not there before."""
        while some := list(itertools.islice(entries, parquet.GROUP_ROWS)):
            new = self._ids.add(as_ids(entry.id for entry in some))
            self.repeated += len(some) - int(new.sum())
            yield from itertools.compress(some, new)


def _counted(entries: Iterable[Entry], counts: collections.Counter[str | None], digest: Any) -> Iterator[Entry]:
    for entry in entries:
        counts[entry.label] += 1
        digest.update(repr(entry).encode())
        yield entry


def _list_specs(
    specs: Iterable[str], labels: str, label_column: str, output: str | None, listed: Counter
) -> Iterator[Entry]:
    for spec in specs:
        _check_secret(spec)
        found = False
        for entry in _list_spec(spec, label_column, output):
            check_uri(entry.uri)
            found = True
            listed.add(1)
            yield _labelled(entry, labels)
        if not found:
            raise ConfigError(_nothing_found(spec))


def check_uri(uri: str) -> None:
    """Raises ConfigError if an image's uri cannot be written down, or must not be."""
    _check_name(uri)
    _check_secret(uri)


def _check_name(uri: str) -> None:
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the name {uri!r} is not UTF-8, and could not be written to a table: rename it") from error


def _check_secret(uri: str) -> None:
    if ("@" in uri or "?" in uri) and storage.holds_secret(uri):
        raise ConfigError(
            f"{without_secrets(uri)!r} gives a password or a signature, and uris are stored with a run's records: "
            "leave it out, and give the store's credentials by its own means on each machine"
        )


def _list_spec(spec: str, label_column: str, output: str | None) -> Iterator[Entry]:
    if spec.lower().endswith(MANIFEST_SUFFIXES):
        return read_manifest(spec, label_column)
    if spec.lower().endswith(".json"):
        raise ConfigError(f"{spec!r} is no manifest that is read: make it .jsonl, with one object a line, or .csv")
    return map(Entry, _list_files(spec, output))


def _list_files(spec: str, output: str | None) -> Iterator[str]:
    enter = _Entrance(output)
    with as_config_errors(f"{spec!r} cannot be listed"):
        if any(mark in spec for mark in "*?[") and not (storage.is_local(spec) and storage.exists(spec)):
            found = glob_files(spec, enter)
        elif storage.is_folder(spec):
            found = (uri for uri in walk_files(spec, enter) if PurePosixPath(uri).suffix.lower() in IMAGE_SUFFIXES)
        else:
            yield from [storage.absolute(spec)] if storage.exists(spec) else []
            return
        yield from (uri for uri in found if output is None or not uri.startswith(f"{output}/overlays/"))


class _Entrance:
    """Tells whether a folder is to be searched: what a run has written is not input."""

    def __init__(self, output: str | None):
        self._output = output
        self._is_run = lru_cache(maxsize=1024)(_is_run)

    def __call__(self, folder: str) -> bool:
        base, _, name = folder.rpartition("/")
        if name not in RunLayout.FOLDERS:
            return True
        return (base, name) != (self._output, "overlays") and not self._is_run(base)


def _is_run(folder: str) -> bool:
    layout = RunLayout(folder)
    return storage.exists(layout.uri(layout.MANIFEST)) and storage.exists(layout.uri(layout.marker(0)))


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

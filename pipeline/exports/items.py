"""What an exporter gets: an image, the map that is shown of it, its regions, and names that other tools take."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.exports.regions import Region
from pipeline.records import MapRecord, Record
from pipeline.wording import printable

SHAPES = ("class", "box", "mask", "polygon", "peak")
"""What an exporter may write of an image: `class` is its tag, `peak` the centre of the strongest cell."""

_LONGEST_NAME = 255  # bytes that file systems take for a file's name


class Labels:
    """The names of classes as annotation tools take them: one line each, and no two the same.

    ImageNet has two cranes and two maillots; a tool that knows labels by their names would make one of them.
    """

    def __init__(self, names: Sequence[str] | None, only: Sequence[int] | None = None):
        self._names = None if names is None else [printable(name).strip() for name in names]
        self._often = Counter(self._names or ())
        self._only = only
        self._seen: set[int] = set()

    def name(self, index: int) -> str:
        """Of a class, which is remembered as seen."""
        self._seen.add(index)
        return self._of(index)

    def all(self) -> list[tuple[int, str]]:
        """Every class that may occur with its index: those chosen, else all, else (without names) those seen."""
        if self._only is not None:
            return [(index, self._of(index)) for index in sorted(self._only)]
        known = range(len(self._names)) if self._names is not None else ()
        return [(index, self._of(index)) for index in sorted({*known, *self._seen})]

    def _of(self, index: int) -> str:
        name = self._names[index] if self._names is not None and index < len(self._names) else ""
        if not name:
            return f"class {index}"
        return name if self._often[name] == 1 else f"{name} ({index})"


@dataclass(frozen=True)
class Item:
    """One image to be exported."""

    number: int  # from 1, over all files of the export
    record: Record
    shown: MapRecord  # the map that regions are cut from
    label: str  # the class of that map, as `Labels` writes it
    name: str  # the image's path below the export's root, with slashes
    regions: tuple[Region, ...]  # strongest first; at least one
    content: bytes | None = None  # of the image's file, where images are copied

    @property
    def score(self) -> float:
        """The probability of the class."""
        return float(self.shown.probability)

    def region_score(self, region: Region) -> float:
        """The probability of the class, times the region's share of the map."""
        return self.score * region.energy

    @property
    def peak(self) -> tuple[float, float]:
        """The centre of the strongest cell, within the image."""
        geometry = self.record.geometry
        return min(max(self.shown.peak_x, 0.0), geometry.width), min(max(self.shown.peak_y, 0.0), geometry.height)


@dataclass(frozen=True)
class ExportFacts:
    """What is the same for all images of an export."""

    run: str  # the run's folder
    model: str  # its file's name and the first digits of its digest
    method: str
    threshold: float
    labels: Labels
    shapes: frozenset[str]  # of `SHAPES`
    root: str  # what images' names leave out of their uris
    prefix: str | None  # what addresses of images begin with, instead of their own beginning
    overlays: bool = False  # whether the tool can reach the overlay of every map
    annotation_ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def attributes(self) -> dict[str, str | float]:
        """What says of each region that a machine has made it, and how."""
        return {"source": "auto", "cam_method": self.method, "threshold": self.threshold, "model": self.model}


def common_root(uris: Iterator[str]) -> str:
    """The deepest folder that holds all of some uris, with a slash at its end; empty if none does."""
    root: list[str] | None = None
    for uri in uris:
        parts = uri.split("/")[:-1]
        if root is None:
            root = parts
        elif root != parts[: len(root)]:
            root = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(root, parts, strict=False))]
    return "/".join(root) + "/" if root else ""


def name_below(uri: str, root: str) -> str:
    """An image's path below the root, or without scheme and leading slash where it lies elsewhere."""
    if root and uri.startswith(root):
        return uri[len(root) :].lstrip("/")
    return uri.partition("://")[2] or uri.lstrip("/")


def file_name(item: Item) -> str:
    """An image's name for files that are written after it: its own, or one from its id if that could lie elsewhere.

    Names come from whoever filled the bucket; `..`, empty parts, control characters, and parts that no file system
    takes do not become paths.
    """
    parts = item.name.split("/")
    fine = all(
        part not in ("", ".", "..")
        and printable(part) == part
        and not set(part) & set('\\:*?"<>|')
        and len(part.encode()) + 8 <= _LONGEST_NAME  # with another ending
        for part in parts
    )
    return item.name if fine else f"{item.record.id}.{_ending(parts[-1])}"


def _ending(name: str) -> str:
    ending = name.rpartition(".")[2].lower()
    return ending if ending.isalnum() and ending.isascii() and len(ending) <= 5 else "jpg"

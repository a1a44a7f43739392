"""The formats that can be written: one line here, one module, and a check against its official reader each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.exports.coco import CocoExporter
from pipeline.exports.cvat import CvatExporter
from pipeline.exports.fiftyone import FiftyOneExporter
from pipeline.exports.folder import Folder
from pipeline.exports.heatmaps import HeatmapsExporter
from pipeline.exports.items import ExportFacts, Item
from pipeline.exports.label_studio import LabelStudioExporter
from pipeline.exports.yolo import YoloExporter


class FileExporter(Protocol):
    """What gathers images for one file, or one of several."""

    def add(self, item: Item) -> None:
        """Adds an image."""

    def finish(self, uri: str) -> list[str]:
        """Writes the file; tells which ones were written."""


class FolderExporter(Protocol):
    """What writes images into a folder, as they come."""

    def add(self, item: Item) -> None:
        """Writes an image's part."""

    def finish(self) -> None:
        """Writes what is common to all."""


@dataclass(frozen=True)
class Format:
    """How a format is written."""

    summary: str
    shapes: frozenset[str]  # that it can show, of `items.SHAPES`
    shown: frozenset[str]  # of these, unless asked otherwise
    suffix: str | None = None  # of its file; None for a folder
    make_file: Callable[[ExportFacts], FileExporter] | None = None
    make_folder: Callable[[ExportFacts, Folder], FolderExporter] | None = None
    common: tuple[str, ...] = ()  # what of a folder holds for all images


_ALL = frozenset({"class", "box", "mask", "polygon", "peak"})
_USUAL = _ALL - {"polygon"}

EXPORTERS = {
    "coco": Format(
        "COCO instances (JSON)", frozenset({"box", "mask", "polygon"}), frozenset({"box", "mask"}), ".json",
        make_file=CocoExporter,
    ),
    "label-studio": Format(
        "Label Studio tasks with predictions (JSON), and the labelling interface (XML)", _ALL, _USUAL, ".json",
        make_file=LabelStudioExporter,
    ),
    "cvat": Format("CVAT for images 1.1 (XML)", _ALL, _USUAL, ".xml", make_file=CvatExporter),
    "fiftyone": Format(
        "a FiftyOne dataset on disk (folder)", _USUAL, _USUAL, make_folder=FiftyOneExporter,
        common=("samples.json", "metadata.json"),
    ),
    "yolo": Format(
        "YOLO labels in the layout of Ultralytics (folder)", frozenset({"box", "polygon"}), frozenset({"box"}),
        make_folder=YoloExporter, common=("train.txt", "data.yaml"),
    ),
    "heatmaps": Format("grey PNGs of the maps and a CSV (folder)", frozenset(), frozenset(),
                       make_folder=HeatmapsExporter, common=("index.csv",)),
}  # fmt: skip
"""By the names of `--to`."""

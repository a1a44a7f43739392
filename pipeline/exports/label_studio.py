"""Label Studio: tasks with predictions, and the labelling interface that shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipeline import storage
from pipeline.exports.items import ExportFacts, Item, name_below
from pipeline.exports.regions import Region, outline
from pipeline.exports.rle import brush_rle
from pipeline.exports.writing import Rows, write_parts

LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio's own server is asked for a file below its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""

_TAGS = {
    "box": ("RectangleLabels", "boxes"),
    "mask": ("BrushLabels", "masks"),
    "polygon": ("PolygonLabels", "polygons"),
    "peak": ("KeyPointLabels", "peaks"),
}
"""The control that holds each shape, and its name in the interface."""


class LabelStudioExporter:
    """Writes one JSON array of tasks, and beside it the interface's XML, without which the predictions do not show.

    Predictions are for import into a project that has this interface. Coordinates are in percent of the image. Maps
    themselves are never sent as brushes, which would take 681 kB of JSON for one image of 480x640: a second panel shows
    the overlay instead, where the run has one for every map and the tool can reach it.
    """

    def __init__(self, facts: ExportFacts):
        self._facts = facts
        self._tasks = Rows(",\n")

    def add(self, item: Item) -> None:
        """Adds a task with one prediction."""
        record = item.record
        data = {
            "image": self._address(record.uri, item.name),
            "uri": record.uri,
            "record": record.id,
            "label": record.label,
        }
        if self._facts.overlays and item.shown.overlay is not None:
            overlay = item.shown.overlay
            uri = overlay if storage.is_absolute(overlay) else storage.join(self._facts.run, overlay)
            data["overlay"] = self._address(uri, name_below(uri, self._facts.root))
        prediction = {
            "model_version": f"{self._facts.model}, {self._facts.method}",
            "score": min(item.score, 1.0),
            "result": list(self._results(item)),
        }
        self._tasks.add_json({"data": data, "predictions": [prediction], "meta": self._facts.attributes})

    def finish(self, uri: str) -> list[str]:
        """Writes the tasks and the interface; tells which files were written."""
        config = interface_uri(uri)
        write_parts(uri, ["[\n", self._tasks, "\n]\n"])
        storage.write_bytes(config, self.interface().encode())
        return [uri, config]

    def interface(self) -> str:
        """The labelling interface: a control for each shape, with the class names."""
        classes = [name for _, name in self._facts.labels.all()]
        lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>']
        if self._facts.overlays:
            lines.append('  <Image name="overlay" value="$overlay"/>')
        if "class" in self._facts.shapes:
            lines += ['  <Choices name="class" toName="image" choice="single">']
            lines += [f"    <Choice value={quoteattr(name)}/>" for name in classes] + ["  </Choices>"]
        for shape, (tag, name) in _TAGS.items():
            if shape in self._facts.shapes:
                lines.append(f'  <{tag} name="{name}" toName="image">')
                lines += [f"    <Label value={quoteattr(one)}/>" for one in classes] + [f"  </{tag}>"]
        return "\n".join([*lines, "</View>", ""])

    def _address(self, uri: str, name: str) -> str:
        prefix = self._facts.prefix
        if prefix is None and not storage.is_local(uri):
            return uri
        # Halves of characters, which file names may hold, have no address.
        return (LOCAL_FILES if prefix is None else prefix) + quote(name, safe="/", errors="replace")

    def _results(self, item: Item) -> Iterator[dict[str, Any]]:
        shapes, geometry = self._facts.shapes, item.record.geometry
        common = {
            "to_name": "image", "original_width": geometry.width, "original_height": geometry.height,
            "image_rotation": 0,
        }  # fmt: skip
        prefix = item.record.id[:12]
        if "class" in shapes:
            value = {"choices": [item.label]}
            yield {"id": f"{prefix}-c", "from_name": "class", "to_name": "image", "type": "choices", "value": value,
                   "score": min(item.score, 1.0)}  # fmt: skip
        for number, region in enumerate(item.regions):
            score = min(item.region_score(region), 1.0)
            for shape in ("box", "mask", "polygon"):
                if shape in shapes:
                    kind = _TAGS[shape][0].lower()
                    value = _VALUES[shape](item, region) | {kind: [item.label]}
                    yield {"id": f"{prefix}-{shape[0]}{number}", "from_name": _TAGS[shape][1], "type": kind,
                           "value": value, "score": score, **common}  # fmt: skip
        if "peak" in shapes:
            x, y = item.peak
            place: dict[str, Any] = {"x": 100 * x / geometry.width, "y": 100 * y / geometry.height, "width": 1,
                     "keypointlabels": [item.label]}  # fmt: skip
            yield {"id": f"{prefix}-k", "from_name": "peaks", "type": "keypointlabels", "value": place, **common}


def interface_uri(uri: str) -> str:
    """Where the interface of a file of tasks lies: beside it, one for all files of an export."""
    return re.sub(r"(-\d{5})?\.json$", "", uri, flags=re.IGNORECASE) + "-interface.xml"


def _box(item: Item, region: Region) -> dict[str, Any]:
    width, height = item.record.geometry.width, item.record.geometry.height
    left, top = 100 * region.left / width, 100 * region.top / height
    # Rounding must not lead beyond the border, which Label Studio does not notice.
    return {
        "x": left, "y": top, "rotation": 0,
        "width": min(100 * region.width / width, 100 - left), "height": min(100 * region.height / height, 100 - top),
    }  # fmt: skip


def _mask(item: Item, region: Region) -> dict[str, Any]:
    return {"format": "rle", "rle": brush_rle(region, item.record.geometry.width, item.record.geometry.height)}


def _polygon(item: Item, region: Region) -> dict[str, Any]:
    width, height = item.record.geometry.width, item.record.geometry.height
    return {"points": [[100 * x / width, 100 * y / height] for x, y in outline(region)], "closed": True}


_VALUES = {"box": _box, "mask": _mask, "polygon": _polygon}

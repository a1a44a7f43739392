"""COCO instances: one JSON file that pycocotools, FiftyOne, CVAT, Roboflow and detectron2 read."""

from __future__ import annotations

from typing import Any

from pipeline.exports.items import ExportFacts, Item
from pipeline.exports.regions import Region, outline
from pipeline.exports.rle import coco_rle
from pipeline.exports.writing import Rows, as_json, write_parts


class CocoExporter:
    """Writes images with an annotation for each region, with its score.

    Masks are compressed run lengths with `iscrowd` 0: with 1, converters leave them out. Numbers of images and
    annotations begin at 1 and go on over all files of an export.
    """

    def __init__(self, facts: ExportFacts):
        self._facts = facts
        self._images, self._annotations = Rows(",\n"), Rows(",\n")

    def add(self, item: Item) -> None:
        """Adds an image with its regions."""
        geometry = item.record.geometry
        image = {"id": item.number, "file_name": item.name, "width": geometry.width, "height": geometry.height}
        self._images.add_json(image | {"uri": item.record.uri, "record": item.record.id, "label": item.record.label})
        for region in item.regions:
            self._annotations.add_json(self._annotate(item, region))

    def finish(self, uri: str) -> list[str]:
        """Writes the file; tells which ones were written."""
        facts = self._facts
        categories = [{"id": index + 1, "name": name} for index, name in facts.labels.all()]
        info = {"description": f"pre-annotations by beamcam, not checked by anybody: {facts.run}"} | facts.attributes
        head = f'{{"info":{as_json(info)},"licenses":[],"categories":{as_json(categories)},\n"images":[\n'
        write_parts(uri, [head, self._images, '\n],\n"annotations":[\n', self._annotations, "\n]}\n"])
        return [uri]

    def _annotate(self, item: Item, region: Region) -> dict[str, Any]:
        geometry = item.record.geometry
        segmentation: Any = {
            "size": [geometry.height, geometry.width],
            "counts": coco_rle(region, geometry.width, geometry.height),
        }
        if "polygon" in self._facts.shapes:
            segmentation = [[coordinate for point in outline(region) for coordinate in point]]
        return {
            "id": next(self._facts.annotation_ids),
            "image_id": item.number,
            "category_id": item.shown.target + 1,
            "bbox": [float(region.left), float(region.top), float(region.width), float(region.height)],
            "area": region.area,
            "segmentation": segmentation,
            "iscrowd": 0,
            "score": item.region_score(region),
            "attributes": self._facts.attributes | {"peak": list(item.peak)},
        }

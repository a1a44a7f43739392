"""YOLO in the layout of Ultralytics: a text file for each image, train.txt and data.yaml."""

from __future__ import annotations

import json

from pipeline.exports.folder import Folder
from pipeline.exports.items import ExportFacts, Item, file_name
from pipeline.exports.regions import Region, outline
from pipeline.exports.writing import Rows


class YoloExporter:
    """Writes `labels/train/NAME.txt`, with a line for each region: class, then box or polygon, in [0, 1].

    train.txt lists `./images/train/NAME`, where the images are with --copy-images, or are to be put: CVAT and datumaro
    want it, and data.yaml names it. Ultralytics takes `./` for the list's own folder, whatever the working directory.
    Scores have no place in this format.
    """

    def __init__(self, facts: ExportFacts, folder: Folder):
        self._facts, self._folder = facts, folder
        self._names = Rows("\n")

    def add(self, item: Item) -> None:
        """Writes an image's labels, and the image if asked."""
        name = file_name(item)
        stem, dot, _ = name.rpartition(".")
        lines = [f"{item.shown.target} {self._place(item, region)}\n" for region in item.regions]
        self._folder.write(f"labels/train/{stem if dot else name}.txt", "".join(lines).encode())
        if item.content is not None:
            self._folder.write(f"images/train/{name}", item.content)
        self._names.add(f"./images/train/{name}")

    def finish(self) -> None:
        """Writes the list of images and the classes."""
        self._folder.write_parts("train.txt", [self._names, "\n"])
        names = "".join(f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in self._every_class())
        self._folder.write("data.yaml", f"path: .\ntrain: train.txt\nnames:\n{names}".encode())

    def _every_class(self) -> list[tuple[int, str]]:
        """Classes from 0 on without a gap, as readers count them."""
        known = dict(self._facts.labels.all())
        return [(index, known.get(index, f"class {index}")) for index in range(max(known, default=-1) + 1)]

    def _place(self, item: Item, region: Region) -> str:
        width, height = item.record.geometry.width, item.record.geometry.height
        if "polygon" in self._facts.shapes:
            return " ".join(f"{x / width:.6f} {y / height:.6f}" for x, y in outline(region))
        x, y = (region.left + region.right) / 2 / width, (region.top + region.bottom) / 2 / height
        return f"{x:.6f} {y:.6f} {region.width / width:.6f} {region.height / height:.6f}"

"""FiftyOne: a dataset on disk that `fo.Dataset.from_dir(..., dataset_type=fo.types.LegacyFiftyOneDataset)` reads.

It is written by hand, since the package needs a database even to write files.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from typing import Any

import numpy as np

from pipeline.exports.folder import Folder
from pipeline.exports.heatmaps import grey_png
from pipeline.exports.items import ExportFacts, Item, file_name
from pipeline.exports.writing import Rows, as_json
from pipeline.geometry import project_map, shrink_geometry
from pipeline.records import MapRecord

_SIDE = 96  # pixels of a map that does not lie over the image as a whole; FiftyOne stretches it


class FiftyOneExporter:
    """Writes samples with the map as a Heatmap, regions as Detections with masks, the peak, and both classes.

    Images stay where they are, at absolute paths, or are copied to `data/`. The maps lie below `fields/`, where paths
    may be relative.
    """

    def __init__(self, facts: ExportFacts, folder: Folder):
        self._facts, self._folder = facts, folder
        self._samples = Rows(",\n")

    def add(self, item: Item) -> None:
        """Adds a sample; writes its map, and the image if asked."""
        record, geometry = item.record, item.record.geometry
        path = record.uri
        if item.content is not None:
            path = f"data/{file_name(item)}"
            self._folder.write(path, item.content)
        map_path = f"fields/heatmap/{record.id}.png"
        self._folder.write(map_path, _picture(item.shown))
        x, y = item.peak
        sample = {
            "filepath": path, "tags": ["auto"], "metadata": None, "_media_type": "image", "_rand": _share(record.id),
            "prediction": _label(item, "Classification", "p", label=item.label, confidence=item.score),
            "regions": {"_cls": "Detections", "detections": [
                _label(item, "Detection", f"d{number}", label=item.label, confidence=item.region_score(region),
                       bounding_box=[region.left / geometry.width, region.top / geometry.height,
                                     region.width / geometry.width, region.height / geometry.height],
                       mask=_binary(region.mask), attributes={}, **self._facts.attributes)
                for number, region in enumerate(item.regions)]},
            "peak": {"_cls": "Keypoints", "keypoints": [
                _label(item, "Keypoint", "k", label=item.label, points=[[x / geometry.width, y / geometry.height]],
                       attributes={})]},
            "heatmap": _label(item, "Heatmap", "h", map_path=map_path, range=[0, 255]),
            "record": record.id, "uri": record.uri,
        }  # fmt: skip
        if record.label is not None:
            sample["ground_truth"] = _label(item, "Classification", "g", label=record.label)
        self._samples.add_json(sample)

    def finish(self) -> None:
        """Writes samples.json and metadata.json."""
        facts = self._facts
        classes = [name for _, name in facts.labels.all()]
        metadata = {
            "name": f"beamcam {_object_id(facts.run)[:6]} {facts.method}", "media_type": "image",
            "info": {"made_by": "beamcam", "run": facts.run, **facts.attributes}, "default_classes": classes,
        }  # fmt: skip
        self._folder.write("metadata.json", as_json(metadata).encode())
        self._folder.write_parts("samples.json", ['{"samples":[\n', self._samples, "\n]}\n"])


def _label(item: Item, kind: str, part: str, **values: Any) -> dict[str, Any]:
    return {"_id": {"$oid": _object_id(item.record.id + part)}, "_cls": kind, "tags": [], **values}


def _object_id(text: str) -> str:
    """Twelve bytes that are the same in every export, as a database's identifier."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _share(image_id: str) -> float:
    return int(image_id[:8], 16) / 16**8


def _binary(mask: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, mask, allow_pickle=False)
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    return {"$binary": {"base64": data, "subType": "00"}}


def _picture(shown: MapRecord) -> bytes:
    """The map as it lies over the image: its own cells where the model saw the image as a whole."""
    values = shown.array()
    if shown.geometry.view.mode != "stretch":
        values = project_map(values, shrink_geometry(shown.geometry, _SIDE)[0])
    positive = np.maximum(values, 0)
    return grey_png(positive / positive.max())

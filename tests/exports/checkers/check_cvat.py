"""datumaro imports an export, and finds our masks, boxes and tags in it; cvat-sdk encodes masks as we do."""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import datumaro as dm
import numpy as np
from datumaro.components.annotation import AnnotationType

exported, truth = Path(sys.argv[1]), np.load(sys.argv[2])
dataset = dm.Dataset.import_from(str(exported), "cvat")
labels = [label.name for label in dataset.categories()[AnnotationType.label]]
images = {image.get("name"): image for image in ET.parse(exported).getroot().iter("image")}
stems = {name.rpartition(".")[0]: name for name in images}
seen = 0
for item in dataset:
    name = stems[item.id]
    kinds = {kind: [a for a in item.annotations if a.type == kind] for kind in AnnotationType}
    (tag,) = kinds[AnnotationType.label]
    assert labels[tag.label] == images[name].find("tag").get("label")
    assert all(labels[a.label] == labels[tag.label] for a in item.annotations)
    for number, (box, mask) in enumerate(zip(kinds[AnnotationType.bbox], kinds[AnnotationType.mask], strict=True)):
        ours = truth[f"{name}|{number}"].astype(bool)
        found = np.zeros_like(ours)
        pixels = np.asarray(mask.image, bool)
        found[: pixels.shape[0], : pixels.shape[1]] = pixels
        assert (found == ours).all(), name
        rows, columns = np.flatnonzero(ours.any(1)), np.flatnonzero(ours.any(0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert list(box.points) == edges, (box.points, edges)
        seen += 1
    assert len(kinds[AnnotationType.points]) == 1
assert seen == len(truth.files), (seen, len(truth.files))
print(f"datumaro: {len(images)} images, {seen} masks and boxes")

try:
    from cvat_sdk.masks import encode_mask
except ImportError:
    sys.exit(0)
for name, image in images.items():
    for number, mask in enumerate(image.findall("mask")):
        ours = truth[f"{name}|{number}"].astype(bool)
        left, top, width, height = (int(mask.get(n)) for n in ("left", "top", "width", "height"))
        # encode_mask ends with the box's last pixels, right and bottom included
        theirs = encode_mask(ours, [left, top, left + width, top + height])
        runs = [int(count) for count in mask.get("rle").split(",")]
        assert [*runs, left, top, left + width - 1, top + height - 1] == [int(v) for v in theirs], name
print("cvat-sdk: the same run lengths as encode_mask")

"""pycocotools reads an export, and finds our masks and boxes in it: python check_coco.py EXPORT.json TRUTH.npz."""

import json
import sys
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

exported, truth = sys.argv[1], np.load(sys.argv[2])
polygons = sys.argv[3:] == ["polygons"]
coco = COCO(exported)
seen = 0
for image in coco.loadImgs(coco.getImgIds()):
    annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
    for number, annotation in enumerate(annotations):
        mask = truth[f"{image['file_name']}|{number}"].astype(bool)
        found = coco.annToMask(annotation).astype(bool)
        assert found.shape == mask.shape == (image["height"], image["width"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        assert annotation["bbox"] == box, (annotation["bbox"], box)
        if polygons:
            overlap = (found & mask).sum() / (found | mask).sum()
            print(f"{image['file_name']}: {overlap:.3f} of {mask.sum()} pixels")
            assert overlap >= 0.95, (image["file_name"], overlap)
        else:
            assert (found == mask).all(), image["file_name"]
            assert annotation["area"] == mask.sum()
            assert (coco.annToRLE(annotation)["size"] == np.array(mask.shape)).all()
        seen += 1
assert seen == len(truth.files) == len(coco.anns), (seen, len(truth.files))
results = coco.loadRes([dict(a, score=a["score"]) for a in json.loads(Path(exported).read_text())["annotations"]])
for kind in ("bbox", "segm"):
    evaluation = COCOeval(coco, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1.0, evaluation.stats
print(f"pycocotools: {seen} masks and boxes, AP 1.0")

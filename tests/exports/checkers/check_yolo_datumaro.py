"""datumaro imports an export in the layout of Ultralytics, as CVAT does: FOLDER TRUTH.npz."""

import sys

import datumaro as dm
import numpy as np
from datumaro.components.annotation import AnnotationType

folder, truth = sys.argv[1], np.load(sys.argv[2])
dataset = dm.Dataset.import_from(folder, "yolo")
seen = 0
stems = {name.partition("|")[0].rpartition(".")[0]: name.partition("|")[0] for name in truth.files}
for item in dataset:
    boxes = [a for a in item.annotations if a.type == AnnotationType.bbox]
    for number, box in enumerate(boxes):
        ours = truth[f"{stems[item.id]}|{number}"].astype(bool)
        rows, columns = np.flatnonzero(ours.any(1)), np.flatnonzero(ours.any(0))
        np.testing.assert_allclose(box.points, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1e-2)
        seen += 1
assert seen == len(truth.files), (seen, len(truth.files))
print(f"datumaro: {seen} boxes")

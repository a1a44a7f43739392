"""supervision, and datumaro where it is there, read an export of boxes with its images: FOLDER TRUTH.npz."""

import sys
from pathlib import Path

import numpy as np
import supervision as sv

folder, truth = Path(sys.argv[1]), np.load(sys.argv[2])
dataset = sv.DetectionDataset.from_yolo(
    str(folder / "images/train"), str(folder / "labels/train"), str(folder / "data.yaml")
)
seen = 0
for path, _, detections in dataset:
    name = Path(path).relative_to(folder / "images/train").as_posix()
    for number, (x0, y0, x1, y1) in enumerate(detections.xyxy):
        ours = truth[f"{name}|{number}"].astype(bool)
        rows, columns = np.flatnonzero(ours.any(1)), np.flatnonzero(ours.any(0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose([x0, y0, x1, y1], edges, atol=1e-3)
        seen += 1
assert seen == len(truth.files), (seen, len(truth.files))
print(f"supervision: {seen} boxes; classes {dataset.classes}")

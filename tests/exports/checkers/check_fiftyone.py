"""fiftyone's own samples take what we wrote, and its masks are ours; needs no database: FOLDER TRUTH.npz."""

import json
import sys
from pathlib import Path

import fiftyone as fo
import numpy as np
from bson import json_util
from PIL import Image

folder, truth = Path(sys.argv[1]), np.load(sys.argv[2])
samples = json_util.loads((folder / "samples.json").read_text())["samples"]
assert json.loads((folder / "metadata.json").read_text())["media_type"] == "image"
seen = 0
for values in samples:
    sample = fo.Sample.from_dict(dict(values))
    assert Path(sample.filepath).is_absolute()
    heatmap = np.asarray(Image.open(folder / values["heatmap"]["map_path"]))
    assert heatmap.dtype == np.uint8
    assert (heatmap.ndim, heatmap.max(), sample.heatmap.range) == (2, 255, [0, 255])
    for number, detection in enumerate(sample.regions.detections):
        ours = truth[f"{values['record']}|{number}"].astype(bool)
        height, width = ours.shape
        x, y, w, h = np.array(detection.bounding_box) * (width, height, width, height)
        left, top = round(x), round(y)
        np.testing.assert_allclose([x + w, y + h], np.round([x + w, y + h]), atol=1e-6)
        found = np.zeros_like(ours)
        found[top : round(y + h), left : round(x + w)] = detection.mask
        assert (found == ours).all(), values["filepath"]
        assert detection.to_segmentation(frame_size=(width, height)) is not None
        seen += 1
    assert 0 <= sample.prediction.confidence <= 1
    assert len(sample.peak.keypoints[0].points) == 1
assert seen == len(truth.files), (seen, len(truth.files))
print(f"fiftyone: {len(samples)} samples, {seen} masks and boxes")

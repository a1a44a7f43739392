"""label-studio-sdk validates an export against its interface, and decodes our brushes: TASKS INTERFACE TRUTH."""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

tasks, truth = json.loads(Path(sys.argv[1]).read_text()), np.load(sys.argv[3])
interface = LabelInterface(Path(sys.argv[2]).read_text(encoding="utf-8"))
interface.validate()
boxes = masks = 0
for task in tasks:
    (prediction,) = task["predictions"]
    errors = interface.validate_prediction(prediction, return_errors=True)
    assert errors == [], errors
    name = task["data"]["record"]
    for result in prediction["result"]:
        value = result["value"]
        number = int(result["id"].rpartition("-")[2][1:] or 0)
        if result["type"] in ("brushlabels", "rectanglelabels"):
            mask = truth[f"{name}|{number}"].astype(bool)
            height, width = mask.shape
            assert (result["original_width"], result["original_height"]) == (width, height)
        if result["type"] == "brushlabels":
            pixels = np.array(decode_rle(value["rle"])).reshape(height, width, 4)
            assert set(np.unique(pixels)) <= {0, 255}, "a mask is the opacity of what is shown"
            for channel in range(4):
                assert ((pixels[:, :, channel] == 255) == mask).all()
            masks += 1
        if result["type"] == "rectanglelabels":
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            sides = (width, height, width, height)
            found = [value[n] * side / 100 for n, side in zip(("x", "y", "width", "height"), sides, strict=True)]
            np.testing.assert_allclose(found, box, atol=1e-9)
            assert value["x"] + value["width"] <= 100
            assert value["y"] + value["height"] <= 100
            boxes += 1
assert masks == boxes == len(truth.files), (masks, boxes, len(truth.files))
wrong = json.loads(json.dumps(tasks[0]["predictions"][0]))
wrong["result"][0]["value"]["choices"] = ["no such class"]
assert interface.validate_prediction(wrong, return_errors=True) != [], "the validator does see what is wrong"
print(f"label-studio-sdk: {len(tasks)} predictions without an error, {masks} masks, {boxes} boxes")

"""`make localisation`: how well each method's maps lie on the objects of the demo, whose places are known.

The demo's images and its model are made anew; every method then explains each image's own class, through
`beamcam run --metrics pointing,energy`; boxes round the maps' regions are measured by MaxBoxAccV2. One class, the
octagon, is recognised by a watermark in a corner and not by its shape, so that no true map can lie on it; it has a
column of its own, and is left out of the others.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import explainers as ex
from pipeline import Run, RunConfig, demo_data, demo_model, open_run, run_job
from pipeline.exports.calibration import read_boxes, score_boxes

METHODS = [*ex.METHODS, "scorecam(channels=16)", "meta.smooth(gradcam)", "meta.tta(gradcam)"]
MARKED = "octagon"


def make_run(folder: Path, count: int, of_each_class: int, seed: int) -> Run:
    """Explains some images of each class of a fresh demo, by every method."""
    data = demo_data.make_dataset(folder / "data", count, seed, broken=0)
    demo_model.train_model(data, seed).save(folder / "model.keras")
    with data.manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = sorted({row["label"] for row in rows})
    some = [row for label in labels for row in [r for r in rows if r["label"] == label][:of_each_class]]
    manifest = data.manifest.with_name("some.csv")
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(some)
    config = RunConfig(
        (str(manifest),), str(folder / "model.keras"), str(folder / "run"), class_names=str(data.class_names),
        methods=tuple(METHODS), metrics=("pointing", "energy"), targets="label", preprocess="tf", overlays="none",
    )  # fmt: skip
    run_job(config, [], say=print)
    return open_run(config.output)


def print_table(run: Run) -> None:
    """Means over the images of the unmarked classes, and of the marked one."""
    names = run.class_names or []
    right = np.mean([names[record.predicted] == record.label for record in run])
    print(f"{len(run)} images, {right:.1%} predicted right")
    boxes = score_boxes(run, read_boxes(run, "boxes"), wanted=lambda label: label != MARKED)
    columns = ("method", "pointing", "energy in box", "MaxBoxAccV2", "best threshold", f"pointing, {MARKED}")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in METHODS:
        spec = ex.methods.get_method(name).name
        found = [(record.label, m.metrics) for record in run for m in record.maps if m.method == spec]
        plain = [metrics for label, metrics in found if label != MARKED]
        marked = [metrics["pointing"] for label, metrics in found if label == MARKED]
        pointing, energy = (np.mean([metrics[metric] for metrics in plain]) for metric in ("pointing", "energy"))
        box = f"{boxes[spec].max_box_acc_v2:.2f} | {boxes[spec].best_threshold:.2f}"
        print(f"| `{spec}` | {pointing:.2f} | {energy:.2f} | {box} | {np.mean(marked):.2f} |")


def main() -> None:
    """Makes, explains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=480, help="images of the demo (default: %(default)s)")
    parser.add_argument("--of-each-class", type=int, default=20, help="images explained (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of images and model (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print_table(make_run(Path(folder), arguments.count, arguments.of_each_class, arguments.seed))


if __name__ == "__main__":
    main()

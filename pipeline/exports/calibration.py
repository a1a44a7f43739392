"""How well boxes from maps meet boxes that people have drawn, and which threshold makes the best ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError
from pipeline.exports.choosing import class_index
from pipeline.exports.regions import label_parts
from pipeline.geometry import clip_boxes, project_map, shrink_geometry
from pipeline.manifests import read_manifest
from pipeline.reading import Run
from pipeline.records import Entry, MapRecord

OVERLAPS = (0.3, 0.5, 0.7)
"""Intersections over unions from which on a box is right: the three of MaxBoxAccV2."""

THRESHOLDS = tuple(step / 50 for step in range(1, 50))

_SIDE = 224
"""Longest side, in pixels, at which boxes are compared: as in the papers, whatever the photographs' sizes."""

Boxes = Mapping[str, Sequence[tuple[float, float, float, float]]]


@dataclass(frozen=True)
class BoxScores:
    """Of one method: the share of images with a right box, by threshold and overlap.

    `max_box_acc_v2` is Choe et al. 2020 (https://arxiv.org/abs/2001.07437), Sec. 4.1: the best accuracy over all
    thresholds, averaged over three overlaps, where any of the boxes round the map's regions may be the right one.
    """

    n: int  # images
    accuracy: np.ndarray  # (len(THRESHOLDS), len(OVERLAPS)) float64 in [0, 1]

    @property
    def max_box_acc_v2(self) -> float:
        """MaxBoxAccV2, in [0, 1]."""
        return float(self.accuracy.max(axis=0).mean())

    @property
    def best_threshold(self) -> float:
        """The one threshold with the best mean over the overlaps; of several, the one in their middle."""
        means = self.accuracy.mean(axis=1)
        best = np.flatnonzero(means >= means.max() - 1e-12)
        return THRESHOLDS[int(best[len(best) // 2])]

    def mean_at(self, threshold: float) -> float:
        """The mean over the overlaps at the known threshold nearest to one."""
        nearest = int(np.argmin(np.abs(np.array(THRESHOLDS) - threshold)))
        return float(self.accuracy[nearest].mean())


def read_boxes(run: Run, source: str) -> Boxes:
    """Boxes x, y, w, h in original pixels by the images' ids.

    Args:
        run: whose images they are of.
        source: "boxes" for those of the run's own manifest, or another manifest with the columns uri and boxes.

    Raises:
        ConfigError: there are none.
    """
    entries: Iterator[Entry] = run.manifest() if source == "boxes" else read_manifest(source, "label")
    boxes = {entry.id: entry.boxes for entry in entries if entry.boxes}
    if not boxes:
        where = "the run's manifest has none" if source == "boxes" else f"{source!r} has none"
        raise ConfigError(f"--calibrate needs boxes, and {where}: name a manifest with the columns uri and boxes")
    return boxes


def score_boxes(run: Run, boxes: Boxes, wanted: Callable[[str | None], bool] = lambda _: True) -> dict[str, BoxScores]:
    """The scores of each method of a run, over the images that have boxes.

    The map of an image is that of its label, or where that is not stored, of the class predicted.

    Args:
        run: with maps.
        boxes: by image id.
        wanted: tells by its label whether an image counts.
    """
    hits: dict[str, list[np.ndarray]] = {}
    for record in run:
        target_boxes = clip_boxes(boxes.get(record.id, ()), record.geometry)
        if not target_boxes or not wanted(record.label):
            continue
        label = None if record.label is None else class_index(record.label, run.class_names)
        for method in dict.fromkeys(m.method for m in record.maps):
            of_method = {m.target: m for m in record.maps if m.method == method}
            shown = of_method.get(-1 if label is None else label) or of_method.get(record.predicted)
            if shown is not None:
                hits.setdefault(method, []).append(_hits(shown, target_boxes))
    return {method: BoxScores(len(of_all), np.mean(of_all, axis=0)) for method, of_all in hits.items()}


def describe_scores(scores: Mapping[str, BoxScores]) -> list[str]:
    """A table for the terminal."""
    width = max([len(method) for method in scores] + [6])
    lines = [f"{'method':<{width}}  images  MaxBoxAccV2  best threshold  mean there  mean at 0.2"]
    return lines + [
        f"{method:<{width}}  {one.n:>6}  {one.max_box_acc_v2:>11.3f}  {one.best_threshold:>14.2f}  "
        f"{one.mean_at(one.best_threshold):>10.3f}  {one.mean_at(0.2):>11.3f}"
        for method, one in scores.items()
    ]


def _hits(shown: MapRecord, boxes: Sequence[tuple[float, float, float, float]]) -> np.ndarray:
    """Whether some region's box is right, by threshold and overlap: (thresholds, overlaps) float64 of 0 and 1."""
    geometry, scale = shrink_geometry(shown.geometry, _SIDE)
    values = np.maximum(project_map(shown.array(), geometry), 0)
    hits = np.zeros((len(THRESHOLDS), len(OVERLAPS)))
    peak = float(values.max())
    if peak <= 0:
        return hits
    right = scale * np.array(boxes, np.float64)
    right[:, 2:] += right[:, :2]
    for row, threshold in enumerate(THRESHOLDS):
        _, places = label_parts(values >= threshold * peak)
        found = np.array([(x.start, y.start, x.stop, y.stop) for y, x in places], np.float64)
        hits[row] = overlaps(found, right).max() >= np.array(OVERLAPS)
    return hits


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes left, top, right, bottom, (n, 4) and (m, 4): (n, m) in [0, 1]."""
    corners = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.maximum(corners[1] - corners[0], 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return common / (areas[0][:, None] + areas[1][None] - common)

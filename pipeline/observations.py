"""What an audit looks at in each image: prediction, label and map as numbers, in arrays, out of records of any age."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import parquet
from pipeline.attention import GRID_SIDE, MapStatistics, correlate, describe_map, to_grid, window
from pipeline.errors import RunError
from pipeline.layout import RunLayout
from pipeline.prediction import Prediction, describe_prediction
from pipeline.records import Geometry, MapRecord, Record
from pipeline.summary import read_summary

Boxes = Sequence[Sequence[float]]
"""Of one image: x, y, w, h in original pixels."""

SCALARS = (
    "confidence",  # probability of the predicted class
    "margin",  # confidence - probability of the runner-up
    "spread",  # of the map's mass about its centre, in image widths and heights
    "eff_area",  # exp(entropy of P) over the number of cells
    "gini",
    "coverage50",  # share of the image's area where the map reaches half of its maximum
    "border_energy",  # share of the mass in the outer tenth of the image
    "corner_energy",  # the largest share of the mass in one corner's 20 % x 20 %
    "largest_share50",  # share of the largest region at half of the maximum in all such regions
    "components50",  # number of those regions
    "negative_share",  # the negative part's share of sum |map|
    "top2_cc",  # Pearson's correlation of the maps of the two best classes
    "energy_in_box",  # share of the mass in the image's boxes
    "box_area",  # share of the image's area that the boxes cover
)
"""Names of `Observations.scalars`: AUDIT's statistics of one image."""

MAX_CLASS = 1 << 20
"""Labels of this size and beyond are no class."""

MAX_BOXES = 500
"""An image with more has no `energy_in_box`."""

_MEASURED = ("spread", "eff_area", "gini", "coverage50", "border_energy", "corner_energy", "largest_share50",
             "components50")  # fmt: skip


@dataclass(frozen=True)
class Observations:
    """Of N images, by one method; every array is in the images' order."""

    ids: np.ndarray  # (N,) S32, hexadecimal
    uris: list[str]
    label: np.ndarray  # (N,) int32 class index, -1 where there is none
    predicted: np.ndarray  # (N,) int32, -1 unknown
    runner_up: np.ndarray  # (N,) int32, -1 unknown
    confidence: np.ndarray  # (N,) float32, probability of the predicted class, NaN unknown
    margin: np.ndarray  # (N,) float32, p1 - p2, NaN unknown
    mistakenness: np.ndarray  # (N,) float32 in [0, 1], (m exp(-H) + 1) / 2 with m = 1 where wrong, else -1; NaN unknown
    peak: np.ndarray  # (N,) int32 cell of the strongest value on the grid, row by row; -1 for an empty map
    maps: np.ndarray  # (N, h, w) float32, P on a grid over the original image: sums to 1, or 0 for an empty map
    scalars: dict[str, np.ndarray]  # name -> (N,) float32, NaN unknown; those of `SCALARS`
    method: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the maps."""
        return self.maps.shape[1], self.maps.shape[2]


def observe(
    records: Iterable[Record],
    method: str,
    class_names: Sequence[str] | None = None,
    *,
    boxes: Mapping[str, Boxes] | None = None,
    probability: str | None = None,
) -> Observations:
    """What records say of their images. What files of an earlier version do not say is found from maps and logits.

    Of several maps of the method the predicted class's is taken; if there is none the label's, else the first. An image
    without any counts as one with an empty map.

    Args:
        records: the images.
        method: as the records call it.
        class_names: one a class; without, labels are indices.
        boxes: of images, by their id.
        probability: "sigmoid" if that makes probabilities of logits, where a record tells none; else softmax does.

    Raises:
        ValueError: maps are of different sizes, or one is damaged.
    """
    find_class, boxes = ClassFinder(class_names), boxes or {}
    seen = [_see(record, method, find_class(record.label), probability) for record in records]
    maps = _grids([image.values for image in seen], [image.geometry for image in seen])
    peaks = [_peak(image, grid) for image, grid in zip(seen, maps, strict=True)]
    scalars = [_scalars(image) | _measure_boxes(image, grid, boxes) for image, grid in zip(seen, maps, strict=True)]
    return Observations(
        ids=np.array([image.id for image in seen], "S32"),
        uris=[image.uri for image in seen],
        label=np.array([image.label for image in seen], np.int32),
        predicted=np.array([image.predicted for image in seen], np.int32),
        runner_up=np.array([image.runner_up for image in seen], np.int32),
        confidence=_floats(image.confidence for image in seen),
        margin=_floats(image.margin for image in seen),
        mistakenness=_floats(image.mistakenness for image in seen),
        peak=np.array(peaks, np.int32),
        maps=maps,
        scalars={name: _floats(values.get(name) for values in scalars) for name in SCALARS},
        method=method,
    )


def read_observations(
    run: Any, method: str | None = None, ids: Collection[str] | None = None, shards: Iterable[int] | None = None
) -> Iterator[Observations]:
    """What a finished run's records say of their images, a shard at a time.

    Args:
        run: a `Run` or a `RunLayout`.
        method: as the records call it; None for the run's first.
        ids: of the images that are wanted; None for all.
        shards: which to read; None for all.

    Raises:
        RunError: a file is missing or damaged.
    """
    layout = run if isinstance(run, RunLayout) else RunLayout(run.path)
    summary = read_summary(layout)
    method = method or first_method(summary)
    about = {"class_names": summary["class_names"], "probability": summary.get("probability") or None}
    for shard in range(summary["shards"]) if shards is None else shards:
        yield observe_shard(layout, shard, method, ids=ids, **about)


def observe_shard(
    layout: RunLayout,
    shard: int,
    method: str,
    *,
    class_names: Sequence[str] | None,
    probability: str | None,
    ids: Collection[str] | None = None,
) -> Observations:
    """What a shard's records say of their images; see `observe`.

    Raises:
        RunError: its file is missing or damaged.
    """
    uri = layout.uri(layout.records(shard))
    try:
        boxes = parquet.read_boxes(layout.uri(layout.MANIFEST), shard)
        records = parquet.read_records(uri, ids, with_logits=False)
        return observe(records, method, class_names, boxes=boxes, probability=probability)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{uri} cannot be read: {type(error).__name__}: {error}") from error


def first_method(summary: Mapping[str, Any]) -> str:
    """The method whose maps stand for a run, where no other is named: its first.

    Raises:
        RunError: run.json does not say what its methods are.
    """
    config = summary.get("config")
    methods = config.get("methods") if isinstance(config, dict) else None
    if not isinstance(methods, list | tuple) or not methods or not isinstance(methods[0], str):
        raise RunError(f"run.json does not say by what methods its maps were made, but {methods!r}")
    return methods[0]


class ClassFinder:
    """The class that a label means, as in the job: its name, or its index as a number; -1 if it means none."""

    def __init__(self, class_names: Sequence[str] | None):
        self._end = MAX_CLASS if class_names is None else min(len(class_names), MAX_CLASS)
        self._names: dict[str, int] = {}
        for index, name in enumerate(class_names or ()):
            self._names.setdefault(name, index)

    def __call__(self, label: str | None) -> int:
        """The index of a label."""
        if label is None:
            return -1
        if label in self._names:
            return self._names[label]
        number = re.fullmatch(r"(\d{1,18})(\.0+)?", label)
        return int(number[1]) if number and int(number[1]) < self._end else -1


@dataclass(frozen=True)
class _Seen:
    """One image, its prediction, and the map that stands for it."""

    id: str
    uri: str
    label: int
    predicted: int
    runner_up: int
    confidence: float | None
    runner_up_confidence: float | None
    entropy: float | None
    geometry: Geometry
    map: MapRecord | None
    rival: MapRecord | None  # the runner-up's, if `map` is the predicted class's
    values: np.ndarray | None  # (h, w) float32, of `map`

    @property
    def margin(self) -> float | None:
        """How much more probable the predicted class is than the next."""
        known = self.confidence is not None and self.runner_up_confidence is not None
        return _as_float32(self.confidence) - _as_float32(self.runner_up_confidence) if known else None

    @property
    def mistakenness(self) -> float | None:
        """(m exp(-H) + 1) / 2 with m = 1 where prediction and label differ, and -1 where they agree."""
        if self.label < 0 or self.predicted < 0 or self.entropy is None:
            return None
        sign = -1 if self.label == self.predicted else 1
        return (sign * math.exp(-_as_float32(self.entropy)) + 1) / 2


def _see(record: Record, method: str, label: int, probability: str | None) -> _Seen:
    sure = _prediction(record, probability)
    maps = {values.target: values for values in reversed(record.maps) if values.method == method}
    first = next((values for values in record.maps if values.method == method), None)
    chosen = maps.get(sure.predicted) or maps.get(label) or first
    is_best = chosen is not None and chosen.target == sure.predicted
    rival = maps.get(sure.runner_up) if is_best and sure.runner_up is not None else None
    return _Seen(
        record.id,
        record.uri,
        label,
        sure.predicted if 0 <= sure.predicted < MAX_CLASS else -1,
        sure.runner_up if sure.runner_up is not None and 0 <= sure.runner_up < MAX_CLASS else -1,
        sure.confidence,
        sure.runner_up_confidence,
        sure.entropy,
        record.geometry,
        chosen,
        rival,
        None if chosen is None else chosen.array(),
    )


@dataclass(frozen=True)
class _Sure:
    """As `Prediction`, with what is not known."""

    predicted: int
    confidence: float | None
    runner_up: int | None
    runner_up_confidence: float | None
    entropy: float | None


def _prediction(record: Record, probability: str | None) -> _Sure | Prediction:
    """What a record says of the prediction, or what follows from its logits and the probabilities beside its maps."""
    if not len(record.logits):
        return _Sure(-1, None, None, None, None)
    predicted = record.predicted
    if record.confidence is not None:
        known = record.confidence, record.runner_up, record.runner_up_confidence, record.entropy
        return _Sure(predicted, *known)
    probabilities = _probabilities(record.logits, probability)
    if record.logit_classes is None:
        return describe_prediction(record.logits, probabilities)
    order = np.argsort(-record.logits, kind="stable")[:2]
    classes = record.logit_classes[order]
    runner_up = int(classes[1]) if len(classes) > 1 else None
    beside = {values.target: values.probability for values in record.maps}
    if probability == "sigmoid":  # each of its own, whether the others are known or not
        beside |= {int(index): float(probabilities[place]) for place, index in zip(order, classes, strict=True)}
    second = None if runner_up is None else beside.get(runner_up)
    return _Sure(predicted, beside.get(predicted), runner_up, second, None)


def _probabilities(logits: np.ndarray, probability: str | None) -> np.ndarray:
    if probability == "sigmoid" or len(logits) == 1:  # as `explainers` does
        return (0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))).astype(np.float32)
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return (powers / powers.sum()).astype(np.float32)


def _grids(maps: Sequence[np.ndarray | None], geometries: Sequence[Geometry]) -> np.ndarray:
    """All maps on one grid: (N, h, w) float32; those that lie alike in their images at once."""
    shapes = {values.shape for values in maps if values is not None}
    sizes = {(min(height, GRID_SIDE), min(width, GRID_SIDE)) for height, width in shapes}
    if len(sizes) > 1:
        raise ValueError(f"maps of one method are of different sizes: {sorted(shapes)}")
    grids = np.zeros((len(maps), *(sizes.pop() if sizes else (0, 0))), np.float32)
    alike: dict[Any, list[int]] = collections.defaultdict(list)
    for number, (values, geometry) in enumerate(zip(maps, geometries, strict=True)):
        if values is not None:
            alike[values.shape, window(geometry)].append(number)
    for numbers in alike.values():
        values = np.stack([found for number in numbers if (found := maps[number]) is not None])
        place = window(geometries[numbers[0]])
        if not np.isfinite(values).all() or not np.isfinite(place).all():
            raise ValueError("a map holds a value that is not finite, or lies nowhere in its image")
        grids[numbers] = to_grid(values, geometries[numbers[0]])
    return grids


def _peak(image: _Seen, grid: np.ndarray) -> int:
    """The cell that holds the map's strongest point."""
    if image.map is None or not grid.any():
        return -1
    height, width = grid.shape
    column = int(_as_float32(image.map.peak_x) / image.geometry.width * width)
    row = int(_as_float32(image.map.peak_y) / image.geometry.height * height)
    return min(max(row, 0), height - 1) * width + min(max(column, 0), width - 1)


def _scalars(image: _Seen) -> dict[str, float | None]:
    known: dict[str, float | None] = {"confidence": image.confidence, "margin": image.margin}
    if image.map is None or image.values is None:
        return known
    is_measured = image.map.peak_cell is not None
    measured: MapRecord | MapStatistics = image.map if is_measured else describe_map(image.values, image.geometry)
    known |= {name: getattr(measured, name) for name in _MEASURED}
    known["negative_share"] = image.map.negative_share
    known["top2_cc"] = image.map.top2_cc
    if not is_measured and image.rival is not None:
        known["top2_cc"] = correlate(image.values, image.rival.array())
    return known


def _measure_boxes(image: _Seen, grid: np.ndarray, boxes: Mapping[str, Boxes]) -> dict[str, float | None]:
    """How much of the map and of the image lies in the image's boxes, which are those of its label."""
    there = boxes.get(image.id)
    # What other classes' maps show is none of their business.
    if not there or len(there) > MAX_BOXES or image.map is None or image.label not in (-1, image.map.target):
        return {}
    covered = cover_cells(there, (image.geometry.width, image.geometry.height), grid.shape)
    area = float(covered.mean())
    return {"box_area": area, "energy_in_box": float((covered * grid).sum()) if grid.any() else None}


def cover_cells(boxes: Boxes, size: tuple[int, int], grid: tuple[int, ...]) -> np.ndarray:
    """How much of each cell of a grid over an image lies in some box: (h, w) float64 in [0, 1].

    Args:
        boxes: x, y, w, h in pixels.
        size: of the image, (width, height).
        grid: (h, w).
    """
    sides = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float64) / np.array([*size, *size])
    sides = sides[np.isfinite(sides).all(axis=1)]
    # No edge lies inside one of these rectangles, so each is in a box as a whole or not at all.
    columns, rows = (
        np.unique(np.clip(np.concatenate([np.arange(n + 1) / n, sides[:, i], sides[:, i + 2]]), 0, 1))
        for i, n in ((0, grid[1]), (1, grid[0]))
    )
    x, y = (columns[:-1] + columns[1:]) / 2, (rows[:-1] + rows[1:]) / 2
    # Where boxes begin and end; adding that up along both axes counts the boxes of each rectangle.
    left, top, right, bottom = np.clip(sides, 0, 1).T
    left, right = (np.searchsorted(columns, edges) for edges in (left, np.maximum(left, right)))
    top, bottom = (np.searchsorted(rows, edges) for edges in (top, np.maximum(top, bottom)))
    change = np.zeros((len(rows), len(columns)), np.int32)
    for places, step in (((top, left), 1), ((bottom, right), 1), ((top, right), -1), ((bottom, left), -1)):
        np.add.at(change, places, step)
    inside = change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    areas = inside * np.diff(rows)[:, None] * np.diff(columns)
    # The middle of a sliver at the image's very end may round to that end.
    down, across = (np.minimum((p * n).astype(int), n - 1) for p, n in ((y, grid[0]), (x, grid[1])))
    owners = down[:, None] * grid[1] + across
    covered = np.bincount(owners.ravel(), areas.ravel(), grid[0] * grid[1]).reshape(grid)
    return np.minimum(covered * grid[0] * grid[1], 1)


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], np.float32)


def _as_float32(value: float | None) -> float:
    """As files have it, so that records that were never in one give the same."""
    return float(np.float32(value))

"""A map as the regions that an annotation tool can show: masks, boxes and outlines in original pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pipeline.geometry import Geometry, project_map

_EIGHT = np.ones((3, 3), bool)  # corners connect


@dataclass(frozen=True)
class Cut:
    """How a map is cut into regions."""

    threshold: float = 0.2  # of the bilinear map's maximum, as in Zhou et al. 2016, Sec. 3.2
    min_area: float = 0.01  # of the image, which a region must have
    min_energy: float = 0.1  # of the map's positive part, likewise
    most: int | None = None  # so many of the strongest regions; None for all


DEFAULT_CUT = Cut()


@dataclass(frozen=True)
class Region:
    """A connected part of a thresholded map, over whole pixels of the upright original."""

    left: int
    top: int
    mask: np.ndarray  # (height, width) bool of the tight box; its outer rows and columns each hold a True
    energy: float  # its share of the map's positive part, in (0, 1]

    @property
    def width(self) -> int:
        """Of the box, pixels."""
        return self.mask.shape[1]

    @property
    def height(self) -> int:
        """Of the box, pixels."""
        return self.mask.shape[0]

    @property
    def right(self) -> int:
        """The position behind the box's last column."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The position below the box's last row."""
        return self.top + self.height

    @property
    def area(self) -> int:
        """Of the mask, pixels."""
        return int(self.mask.sum())


def find_regions(values: np.ndarray, geometry: Geometry, cut: Cut = DEFAULT_CUT) -> list[Region]:
    """The 8-connected regions where the bilinear map, in original pixels, reaches the threshold; strongest first.

    Args:
        values: (h, w) float32, raw and signed; only what is positive counts.
        geometry: of the image.
        cut: the threshold, and which regions are too small to keep.

    Returns:
        Regions by falling energy; none if nothing in the map is positive, or all are too small.
    """
    shown = np.maximum(project_map(values, geometry), 0)
    peak, total = float(shown.max()), float(shown.sum(dtype=np.float64))
    if peak <= 0:
        return []
    labels, places = label_parts(shown >= cut.threshold * peak)
    energies = np.bincount(labels.ravel(), shown.ravel())[1:] / total
    regions = [
        Region(columns.start, rows.start, labels[rows, columns] == number, float(energy))
        for number, (energy, (rows, columns)) in enumerate(zip(energies, places, strict=True), 1)
    ]
    least = cut.min_area * shown.size
    kept = [region for region in regions if region.area >= least and region.energy >= cut.min_energy]
    kept.sort(key=lambda region: (-region.energy, region.top, region.left))
    return kept[: cut.most]


def label_parts(mask: np.ndarray) -> tuple[np.ndarray, list[tuple[slice, slice]]]:
    """The 8-connected parts of a mask: (height, width) int32, their numbers from 1; rows and columns of each."""
    labels, _ = ndimage.label(mask, _EIGHT)
    return labels, ndimage.find_objects(labels)


def outline(region: Region, tolerance: float | None = None) -> list[tuple[float, float]]:
    """The outer border of a region as a polygon x, y in original pixels; holes are filled.

    It runs along the edges of pixels, not through their centres, so that it encloses what the mask holds. Steps are
    then straightened where no corner lies further than `tolerance` pixels from the line (Douglas and Peucker 1973):
    unless given, a hundredth of the longer side, and a pixel at the most.
    """
    if tolerance is None:
        tolerance = min(1.0, max(region.mask.shape) / 100)
    corners = _walk(ndimage.binary_fill_holes(region.mask))
    # Two halves between far corners: the rule needs open lines.
    far = int(np.argmax(((corners - corners[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([corners, corners[:1]])
    points = np.concatenate([_straighten(closed[: far + 1], tolerance)[:-1], _straighten(closed[far:], tolerance)[:-1]])
    return [(float(x), float(y)) for x, y in points + np.array([region.left, region.top])]


# Right, down, left, up: x and y of a step along pixels' edges, with the mask on the right-hand side.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def _walk(mask: np.ndarray) -> np.ndarray:
    """The corners of an 8-connected mask's outer border, (n, 2) int, clockwise from its first pixel."""
    framed = np.pad(mask, 1)
    x, y = int(np.argmax(mask[0])), 0
    start, way = (x, y), 0
    corners = [start]
    while True:
        x, y = x + _STEPS[way][0], y + _STEPS[way][1]
        # The pixels ahead, on the left and on the right; at a corner that two pixels share, the border turns outwards,
        # so that both belong to one region.
        left, right = _ahead(framed, x, y, way)
        turn = 3 if left else 0 if right else 1
        if (x, y) == start and (way + turn) % 4 == 0:
            return np.array(corners)
        if turn:
            corners.append((x, y))
        way = (way + turn) % 4


def _ahead(framed: np.ndarray, x: int, y: int, way: int) -> tuple[bool, bool]:
    """The two pixels that a step from corner (x, y) runs between: the one on its left, and the one on its right."""
    # framed[y + 1, x + 1] is the pixel whose left upper corner is (x, y)
    around = {"se": framed[y + 1, x + 1], "sw": framed[y + 1, x], "ne": framed[y, x + 1], "nw": framed[y, x]}
    left, right = (("ne", "se"), ("se", "sw"), ("sw", "nw"), ("nw", "ne"))[way]
    return bool(around[left]), bool(around[right])


def _straighten(line: np.ndarray, tolerance: float) -> np.ndarray:
    """The points of an open line that Douglas and Peucker keep, (m, 2)."""
    keep = np.zeros(len(line), bool)
    keep[[0, -1]] = True
    waiting = [(0, len(line) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = _distances(line[first + 1 : last], line[first], line[last])
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            waiting += [(first, middle), (middle, last)]
    return line[keep]


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How far points lie from the line through two others, or from the one where they are the same."""
    dx, dy = (end - start).tolist()
    away = points - start
    length = float(np.hypot(dx, dy))
    if length == 0:
        return np.hypot(away[:, 0], away[:, 1])
    return np.abs(dx * away[:, 1] - dy * away[:, 0]) / length

"""Where a map's attention lies in the original image: a dozen numbers a map, and the map on a grid over the image."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.geometry import Geometry

GRID_SIDE = 16
"""Cells a side that statistics need at most: larger maps are pooled to so many first, by exact area."""

FRAME = 0.1
"""How far the frame of `border_energy` reaches into the image from each edge, as a share of its width or height."""

CORNER = 0.2
"""The same of the squares of `corner_energy`."""

CORNERS = ("top left", "top right", "bottom left", "bottom right")
"""What the numbers of the column `corner` mean."""

_WHOLE = (0.0, 0.0, 1.0, 1.0)

_DIGITS = 12  # of shares of the image: what they differ by beyond is rounding

_EVEN = 1e-6  # what values of up to 1 may differ by and be the same but for float32's rounding


@dataclass(frozen=True)
class MapStatistics:
    """The attention of one map: that of its positive part, whose sum is the energy.

    All is None if nothing in the map is positive; and what has no star, if all that is positive lies in padding.
    """

    com_x: float | None = None  # centre of mass, original pixels
    com_y: float | None = None
    peak_cell: int | None = None  # * the strongest cell of the map as it is stored, row-major, the first of equals
    spread: float | None = None  # root of the mean squared distance from there, widths and heights being 1
    eff_area: float | None = None  # exp(entropy) as a share of the image: what an even map of that entropy would cover
    gini: float | None = None  # in [0, 1): 0 for an even map
    coverage50: float | None = None  # the share of the image where the map reaches half its maximum
    border_energy: float | None = None  # * share of the energy in the outer tenth of the image, or beyond, in padding
    border_ratio: float | None = None  # * that over the frame's share of what the model saw of the image
    corner_energy: float | None = None  # * the largest share in a corner's square of a fifth, or beyond it
    corner: int | None = None  # * which: an index of CORNERS
    components50: int | None = None  # connected regions, over corners too, where the map reaches half its maximum
    largest_share50: float | None = None  # the largest one's share of their area


NOTHING = MapStatistics()
"""The attention of a map that is nowhere positive."""


def describe_map(values: np.ndarray, geometry: Geometry) -> MapStatistics:
    """The attention of one map.

    A cell is the rectangle of the image that it stands for, cut off at the image's border, and its energy lies evenly
    on the whole of it. So numbers of a stretched, a cropped and a padded view of an image mean the same. Centre of mass
    and all shapes are those of the energy in the image.

    Args:
        values: (h, w) float32, raw and finite; it is pooled to `GRID_SIDE` cells a side, if it has more.
        geometry: of the image.
    """
    peak = int(np.argmax(values))
    if not values.flat[peak] > 0:
        return NOTHING
    density = _positive(values)
    cells = _cells(window(geometry), density.shape)
    moments = cells.vertical.T @ density @ cells.horizontal
    total = moments[_ALL, _ALL]
    corners = moments[_START : _END + 1, _START : _END + 1].ravel() / total
    corner = int(np.argmax(corners))
    border = _share(1 - moments[_INNER, _INNER] / total)
    outside = MapStatistics(
        peak_cell=peak,
        border_energy=border,
        border_ratio=border / cells.frame,
        corner_energy=_share(corners[corner]),
        corner=corner,
    )
    seen = moments[_SEEN, _SEEN]
    if not seen > 0:
        return outside
    x, y = moments[_SEEN, _FIRST] / seen, moments[_FIRST, _SEEN] / seen
    variance = (moments[_SEEN, _SECOND] + moments[_SECOND, _SEEN]) / seen - x * x - y * y
    return dataclasses.replace(
        outside,
        com_x=_share(x) * geometry.width,
        com_y=_share(y) * geometry.height,
        spread=math.sqrt(max(variance, 0.0)),
        **_describe_shape(density, cells),
    )


def to_grid(values: np.ndarray, geometry: Geometry, side: int = GRID_SIDE) -> np.ndarray:
    """A map's energy on a grid over the original image, by exact area.

    What lies in padding is dropped. For a stretched view and a map of few cells the grid is the map's own.

    Args:
        values: (..., h, w) float32, raw and finite; of one image, or of several with the same `window`.
        geometry: of the image.
        side: how many cells the grid has a side, at most.

    Returns:
        (..., min(h, side), min(w, side)) float32 of sum 1 a map; zeros where there is nothing positive in the image.
    """
    height, width = values.shape[-2:]
    energy = np.maximum(values, 0, dtype=np.float64)
    part, shape = window(geometry), (min(height, side), min(width, side))
    if part != _WHOLE or shape != (height, width):
        vertical, horizontal = _overlaps(part, (height, width), shape)
        energy = vertical @ energy @ horizontal.T
    total = energy.sum(axis=(-2, -1), keepdims=True)
    return (energy / np.where(total > 0, total, 1)).astype(np.float32)


def window(geometry: Geometry) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the model's input as shares of the image's width and height.

    (0, 0, 1, 1) for a stretched view, less for a crop, and beyond that where there is padding.
    """
    view = geometry.view
    if view.mode == "stretch":
        return _WHOLE
    right, bottom = view.to_original(view.width, view.height)
    return (
        round(view.offset_x / geometry.width, _DIGITS),
        round(view.offset_y / geometry.height, _DIGITS),
        round(right / geometry.width, _DIGITS),
        round(bottom / geometry.height, _DIGITS),
    )


def correlate(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation of the positive parts of two maps of one shape; None if one of them is the same all over.

    Maps of more than `GRID_SIDE` cells a side are pooled first. In [-1, 1]; CC in Bylinskii et al. 2019 (What do
    different evaluation metrics tell us about saliency models?).
    """
    if not (first.max() > 0 and second.max() > 0):
        return None
    a, b = (_positive(values).ravel() for values in (first, second))
    if min(np.ptp(a), np.ptp(b)) < _EVEN:
        return None
    a, b = a - a.mean(), b - b.mean()
    return min(max(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)), -1.0), 1.0)


@dataclass(frozen=True)
class _Cells:
    """What the cells of a map of some shape are of an image, as shares of it."""

    # What moments are taken with, (w, 7) and (h, 7): see _ALL to _END.
    horizontal: np.ndarray
    vertical: np.ndarray
    shares: np.ndarray  # (h, w): how much of each cell lies in the image
    areas: np.ndarray  # (h, w): of that part
    frame: float  # the share of the frame in what the model saw of the image
    even: bool  # whether all cells have the same area


_ALL, _SEEN, _FIRST, _SECOND, _INNER, _START, _END = range(7)


@functools.lru_cache(maxsize=256)
def _cells(part: tuple[float, float, float, float], shape: tuple[int, int]) -> _Cells:
    """The cells of a map of that shape over that part of the image."""
    left, top, right, bottom = part
    (horizontal, widths, frame_x), (vertical, heights, frame_y) = (
        _describe_side(left, right, shape[1]),
        _describe_side(top, bottom, shape[0]),
    )
    areas = np.outer(heights, widths)
    return _Cells(
        horizontal,
        vertical,
        np.outer(vertical[:, _SEEN], horizontal[:, _SEEN]),
        areas,
        1 - frame_x * frame_y,
        bool(np.ptp(areas) < 1e-9),
    )


def _describe_side(start: float, end: float, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Of one dimension: what moments are taken with, the cells' lengths, and how much of what is seen is no frame."""
    edges = _edges(start, end, count)
    low, high = np.clip(edges[:-1], 0, 1), np.clip(edges[1:], 0, 1)
    lengths, centres = high - low, (low + high) / 2
    seen = _fractions(edges, 0.0, 1.0)
    moments = (
        np.ones(count),
        seen,
        seen * centres,
        seen * (centres**2 + lengths**2 / 12),  # energy lies evenly on a cell
        _fractions(edges, FRAME, 1 - FRAME),
        _fractions(edges, -math.inf, CORNER),
        _fractions(edges, 1 - CORNER, math.inf),
    )
    inner = min(high[-1], 1 - FRAME) - max(low[0], FRAME)
    return np.stack(moments, axis=1), lengths, float(inner / (high[-1] - low[0]))


def _edges(start: float, end: float, count: int) -> np.ndarray:
    # Rounded: a cell that ends with the image must not have a hair of it beyond.
    return np.round(np.linspace(start, end, count + 1), _DIGITS - 2)


def _fractions(edges: np.ndarray, low: float, high: float) -> np.ndarray:
    """How much of each cell lies between two positions: (n,), of n + 1 edges."""
    inside = np.clip(edges, low, high)
    return np.diff(inside) / np.diff(edges)


def _positive(values: np.ndarray) -> np.ndarray:
    """The positive part, its maximum 1, pooled to at most `GRID_SIDE` cells a side: float64."""
    positive = np.maximum(values, 0, dtype=np.float64)
    height, width = values.shape
    if max(height, width) > GRID_SIDE:
        vertical, horizontal = _overlaps(_WHOLE, (height, width), (min(height, GRID_SIDE), min(width, GRID_SIDE)))
        positive = vertical @ positive @ horizontal.T
    return positive / positive.max()


@functools.lru_cache(maxsize=256)
def _overlaps(
    part: tuple[float, float, float, float], shape: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each row and column of a map lies in each of a grid over the image: (g, h) and (g, w)."""
    left, top, right, bottom = part
    return _overlap(top, bottom, shape[0], grid[0]), _overlap(left, right, shape[1], grid[1])


def _overlap(start: float, end: float, count: int, target: int) -> np.ndarray:
    edges = _edges(start, end, count)
    return np.stack([_fractions(edges, i / target, (i + 1) / target) for i in range(target)])


def _describe_shape(density: np.ndarray, cells: _Cells) -> dict[str, Any]:
    """How a map's energy in the image is spread over it."""
    visible = cells.areas > 0
    energies, areas, heights = (density * cells.shares)[visible], cells.areas[visible], density[visible]
    shares = energies / energies.sum()
    there = shares > 0
    entropy = -float(shares[there] @ np.log(shares[there] / areas[there]))
    strong = visible & (density >= heights.max() / 2)
    count, largest = _regions(strong, cells)
    return {
        "eff_area": _share(math.exp(entropy)),
        "gini": _gini(shares, areas, heights),
        "coverage50": _share(cells.areas[strong].sum()),
        "components50": count,
        "largest_share50": largest,
    }


def _gini(shares: np.ndarray, areas: np.ndarray, heights: np.ndarray) -> float:
    """1 - 2 times the area below the Lorenz curve, of cells that may differ in area (Hurley and Rickard 2009)."""
    order = np.argsort(heights)
    shares, areas = shares[order], areas[order] / areas.sum()
    above = 1 - np.cumsum(areas) + areas / 2
    return _share(1 - 2 * float(shares @ above))


def _regions(mask: np.ndarray, cells: _Cells) -> tuple[int, float]:
    """How many 8-connected regions a mask has, and the largest one's share of their area."""
    # A region is one long number, as in `geometry`: a step in any direction is a shift.
    row = mask.shape[1] + 1
    framed = np.zeros((mask.shape[0], row), bool)
    framed[:, :-1] = mask
    left = int.from_bytes(np.packbits(framed, bitorder="little").tobytes(), "little")
    regions = []
    while left:
        region, grown = 0, left & -left
        while grown != region:
            region = grown
            wide = region | region << 1 | region >> 1
            grown = (wide | wide << row | wide >> row) & left
        left &= ~region
        regions.append(region)
    areas = [_area(region, cells) for region in regions] if len(regions) > 1 else [1.0]
    return len(areas), max(areas) / sum(areas)


def _area(region: int, cells: _Cells) -> float:
    """The area of a region, or if all cells are alike how many it has."""
    if cells.even:
        return region.bit_count()
    height, width = cells.areas.shape
    bits = np.frombuffer(region.to_bytes(-(-height * (width + 1) // 8), "little"), np.uint8)
    framed = np.unpackbits(bits, count=height * (width + 1), bitorder="little").reshape(height, width + 1)
    return float((framed[:, :-1] * cells.areas).sum())


def _share(value: float) -> float:
    """A share without what rounding has added to it."""
    return min(max(float(value), 0.0), 1.0)

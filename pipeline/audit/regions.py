"""Places that the attention of a class may be bound to: cells, windows, sides, corners and the frame of a grid."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in [0, 1] of the original image."""

CORNERS, FRAME = "four corners", "frame"

FINEST = 7
"""Cells a side of the grid that the thresholds were found on; finer grids are looked at in blocks of that size."""


@dataclass(frozen=True)
class Regions:
    """R regions of a grid."""

    masks: np.ndarray  # (R, h, w) bool
    places: tuple[str, ...]  # each in words
    boxes: tuple[Box, ...]  # round each; the whole image for those that are no rectangle

    @property
    def areas(self) -> np.ndarray:
        """(R,) share of the grid."""
        return self.masks.mean(axis=(1, 2))

    def count(self, cells: np.ndarray) -> np.ndarray:
        """(C, h, w) numbers a cell to (C, R) numbers a region."""
        return np.tensordot(cells, self.masks, axes=((1, 2), (1, 2)))


@functools.lru_cache
def make_regions(grid: tuple[int, int], cells_only: bool = False) -> Regions:
    """All cells, all windows of 2 x 2 cells, the four sides, the four corners together, and the frame.

    On a grid that is finer than 7 x 7 blocks of about that size stand for cells: the more places, the more often one
    of them stands out by chance.

    Args:
        grid: (h, w).
        cells_only: the grid's own cells, and nothing else.
    """
    h, w = grid
    unit = max(1, round(max(h, w) / FINEST))
    sizes = (1,) if cells_only else (unit, 2 * unit)
    step = 1 if cells_only else unit
    windows = [(i, j, size) for size in sizes for i in _starts(h, size, step) for j in _starts(w, size, step)]
    found: list[tuple[np.ndarray, str | None]] = [
        (_rectangle(grid, i, i + size, j, j + size), None) for i, j, size in windows
    ]
    if not cells_only and min(grid) > 2 * unit:
        u = unit
        sides = [(0, u, 0, w), (h - u, h, 0, w), (0, h, 0, u), (0, h, w - u, w)]
        found += [(_rectangle(grid, *side), None) for side in sides]
        corners = [(i, i + u, j, j + u) for i in (0, h - u) for j in (0, w - u)]
        found.append((np.any([_rectangle(grid, *corner) for corner in corners], axis=0), CORNERS))
        found.append((np.any([_rectangle(grid, *side) for side in sides], axis=0), FRAME))
    boxes = tuple((0.0, 0.0, 1.0, 1.0) if place else _box_of(mask) for mask, place in found)
    places = tuple(place or place_of(box) for (_, place), box in zip(found, boxes, strict=True))
    return Regions(np.stack([mask for mask, _ in found]), places, boxes)


def cell_box(cell: int, grid: tuple[int, int]) -> Box:
    """The box of a cell, counted row by row, of a grid (h, w)."""
    (h, w), (row, column) = grid, divmod(cell, grid[1])
    return column / w, row / h, (column + 1) / w, (row + 1) / h


def cells_of(box: Box, place: str | None, grid: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: the cells of a region, as a finding tells it by its box and place."""
    if place in (CORNERS, FRAME):
        regions = make_regions(grid)
        return regions.masks[regions.places.index(place)]
    (h, w), (x0, y0, x1, y1) = grid, box
    rows, columns = (np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w
    return np.outer((rows > y0) & (rows < y1), (columns > x0) & (columns < x1))


def place_of(box: Box) -> str:
    """A box in words: where it touches two sides a corner, where one an edge, else the part of the image it lies in."""
    left, top, right, bottom = box[0] < 0.01, box[1] < 0.01, box[2] > 0.99, box[3] > 0.99
    if left and right and not (top and bottom):
        return "top edge" if top else "bottom edge" if bottom else "a band across the middle"
    if top and bottom and not (left and right):
        return "left edge" if left else "right edge" if right else "a band down the middle"
    column = _third((box[0] + box[2]) / 2, ("left", "", "right"))
    row = _third((box[1] + box[3]) / 2, ("top", "", "bottom"))
    if (left or right) and (top or bottom):
        return f"{'top' if top else 'bottom'}-{'left' if left else 'right'} corner"
    words = " ".join(word for word in (row, column) if word)
    if left or right or top or bottom:
        side = "left" if left else "right" if right else "top" if top else "bottom"
        along = row if side in ("left", "right") else column
        return f"{side} edge, {along or 'middle'}"
    return f"{words} part" if words else "centre"


def _starts(side: int, size: int, step: int) -> list[int]:
    """Where windows of a size begin on a side: every so many cells, and so that one ends at the end."""
    return sorted({*range(0, side - size + 1, step), side - size}) if side >= size else []


def _third(value: float, names: tuple[str, str, str]) -> str:
    return names[0] if value < 1 / 3 else names[2] if value > 2 / 3 else names[1]


def _rectangle(grid: tuple[int, int], top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(grid, bool)
    mask[top:bottom, left:right] = True
    return mask


def _box_of(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    h, w = mask.shape
    return float(columns[0] / w), float(rows[0] / h), float((columns[-1] + 1) / w), float((rows[-1] + 1) / h)

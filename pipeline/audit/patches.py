"""Parts of photographs: cut out, masked, pasted elsewhere, and compared with each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.audit.regions import CORNERS, FINEST, FRAME, Box

SIDE = 64
"""Pixels a side of a part that is compared with others."""

SIGMA = 4.0
"""Pixels of a part: what is coarser than that, such as a sky that darkens upwards, is taken out before comparing."""

DRAWS = 20
"""Groups of other images that a recurrence is compared with."""


def grow(region: Box, place: str | None, grid: tuple[int, int]) -> list[Box]:
    """The boxes to cut for a region: a cell larger on each side, and up to the image's border where it comes near.

    The cell is that of a 7x7 grid, or of the map's if that is coarser. Of the four corners and the frame there are four
    boxes.
    """
    cell_y, cell_x = (1 / min(side, FINEST) for side in grid)
    if place == CORNERS:
        corners = [(x, y) for y in (0.0, 1 - cell_y) for x in (0.0, 1 - cell_x)]
        return [box for x, y in corners for box in grow((x, y, x + cell_x, y + cell_y), None, grid)]
    if place == FRAME:
        return [
            (0.0, 0.0, 1.0, cell_y),
            (0.0, 1 - cell_y, 1.0, 1.0),
            (0.0, 0.0, cell_x, 1.0),
            (1 - cell_x, 0.0, 1.0, 1.0),
        ]
    x0, y0, x1, y1 = region
    return [(_down(x0, cell_x), _down(y0, cell_y), 1 - _down(1 - x1, cell_x), 1 - _down(1 - y1, cell_y))]


def mirror(boxes: Sequence[Box]) -> list[Box] | None:
    """The same boxes on the other side: left and right exchanged, or top and bottom where that changes nothing.

    Returns:
        None if neither changes anything: what lies around the centre has no other side.
    """
    for flip in (_flip_x, _flip_y):
        flipped = [flip(box) for box in boxes]
        if not np.allclose(sorted(flipped), sorted(boxes)):
            return flipped
    return None


def mask(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """An RGB image with boxes filled with its mean colour."""
    mean = tuple(round(float(value)) for value in np.asarray(image).reshape(-1, 3).mean(axis=0))
    masked = image.copy()
    for box in boxes:
        masked.paste(mean, to_pixels(box, image.size))
    return masked


def transplant(source: Image.Image, target: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The target with boxes of the source in it, resized to what they are in the target."""
    changed = target.copy()
    for box in boxes:
        left, top, right, bottom = to_pixels(box, target.size)
        part = source.crop(to_pixels(box, source.size)).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        changed.paste(part, (left, top))
    return changed


def to_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box as whole pixels of an image of a size (width, height): at least one."""
    edges = []
    for low, high, side in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        first = min(round(low * side), side - 1)
        edges.append((first, max(first + 1, round(high * side))))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def describe_part(image: Image.Image, box: Box) -> np.ndarray:
    """What is fine in a part of an image: (4096,) float64 of length 1; zeros where nothing is."""
    part = image.crop(to_pixels(box, image.size)).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(part, np.float64)
    offsets = np.arange(SIDE)
    blur = np.exp(-((offsets[:, None] - offsets) ** 2) / (2 * SIGMA**2))
    blur /= blur.sum(axis=1, keepdims=True)
    window = np.hanning(SIDE)
    fine = (grey - blur @ grey @ blur.T) * np.outer(window, window)
    length = np.linalg.norm(fine)
    return (fine / length if length > 1e-6 else np.zeros_like(fine)).ravel()


def recurrence(parts: np.ndarray) -> float:
    """The mean correlation of each two of n parts, (n, d) of length 1 each: (n |mean|^2 - 1) / (n - 1)."""
    n = len(parts)
    return float((n * np.sum(parts.mean(axis=0) ** 2) - 1) / (n - 1)) if n > 1 else float("nan")


def compare_recurrence(parts: np.ndarray, others: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How alike parts are, beside equally many of others at the same place.

    Returns:
        `recurrence`, and the largest of `DRAWS` groups of others as `recurrence_of_others`.
    """
    rng = np.random.default_rng(seed)
    size = min(len(parts), len(others))
    draws = [recurrence(others[rng.choice(len(others), size, replace=False)]) for _ in range(DRAWS)] if size > 1 else []
    return {"recurrence": recurrence(parts), "recurrence_of_others": max(draws, default=float("nan"))}


def _down(edge: float, cell: float) -> float:
    """A cell nearer to the border, and at the border if it is within a cell then."""
    moved = edge - cell
    return 0.0 if moved < cell else moved


def _flip_x(box: Box) -> Box:
    return 1 - box[2], box[1], 1 - box[0], box[3]


def _flip_y(box: Box) -> Box:
    return box[0], 1 - box[3], box[2], 1 - box[1]

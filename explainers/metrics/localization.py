"""Does the map lie on the object? NumPy, a map at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from explainers.errors import InputError
from explainers.metrics.checked import as_map, stretch


def pointing_game(values: np.ndarray, boxes: np.ndarray, tolerance: float = 0.0) -> bool:
    """Whether a map points at the object: its maximum lies in one of the boxes, or within `tolerance` of one.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, Sec. 4.1,
    https://arxiv.org/abs/1608.00507; the share of hits over a data set is the paper's accuracy.

    Args:
        values: (h, w), one map, raw or post-processed.
        boxes: (B, 4): x, y, width and height of the class's boxes in the map's pixels. Pixel (i, j) covers x from j to
            j + 1 and y from i to i + 1, and its centre counts.
        tolerance: Euclidean distance in the map's pixels; the paper takes 15 in the photograph's.

    Returns:
        A constant map points nowhere and is a miss. Of several maxima the first in row-major order counts.

    Raises:
        InputError: the map or the boxes do not fit.
    """
    values = as_map(values)
    left, top, right, bottom = _as_corners(boxes, values.shape)
    if values.min() == values.max():
        return False
    row, column = np.unravel_index(np.argmax(values), values.shape)
    x, y = column + 0.5, row + 0.5
    beside, above = np.maximum(left - x, x - right), np.maximum(top - y, y - bottom)
    return bool(np.hypot(np.maximum(beside, 0), np.maximum(above, 0)).min() <= tolerance)


def energy_in_box(values: np.ndarray, boxes: np.ndarray) -> float:
    """The share of a map's positive part that lies inside the boxes, in [0, 1].

    The energy-based pointing game (Wang et al., "Score-CAM", CVPRW 2020, Sec. 4.3, https://arxiv.org/abs/1910.01279).
    Boxes that overlap count once, and pixels that a box cuts by the part inside it: compare with the boxes' own share
    of the image, which is what a map without any preference has.

    Args:
        values: (h, w), one map, raw or post-processed.
        boxes: (B, 4), as for `pointing_game`.

    Returns:
        0.0 for a map with no positive part.

    Raises:
        InputError: the map or the boxes do not fit.
    """
    values = np.maximum(as_map(values), 0)
    left, top, right, bottom = _as_corners(boxes, values.shape)
    # The grid of pixels, cut further at every edge of a box: a cell of it lies wholly inside a box or outside.
    ys = np.unique(np.concatenate([np.arange(values.shape[0] + 1), top, bottom]))
    xs = np.unique(np.concatenate([np.arange(values.shape[1] + 1), left, right]))
    y, x = (ys[1:] + ys[:-1]) / 2, (xs[1:] + xs[:-1]) / 2
    in_rows = (top[:, np.newaxis] < y) & (y < bottom[:, np.newaxis])
    in_columns = (left[:, np.newaxis] < x) & (x < right[:, np.newaxis])
    inside = np.any(in_rows[:, :, np.newaxis] & in_columns[:, np.newaxis], axis=0)
    energy = values[np.ix_(y.astype(int), x.astype(int))] * np.outer(np.diff(ys), np.diff(xs))
    return float(min(1.0, energy[inside].sum() / energy.sum())) if values.any() else 0.0


def max_box_acc_v2(
    maps: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    thresholds: Sequence[float] | None = None,
    ious: Sequence[float] = (0.3, 0.5, 0.7),
) -> float:
    """MaxBoxAccV2: how many images' objects are boxed by thresholding their maps, at the best threshold.

    A map is stretched to [0, 1]. The boxes round the 8-connected components of the pixels that reach a threshold are
    compared with the object's boxes, and the image counts if any pair's intersection over union reaches a bound. The
    share of images, at the threshold that is best for the bound, is averaged over the bounds (Choe et al., "Evaluation
    for Weakly Supervised Object Localization: Protocol, Metrics, and Datasets", 2020,
    https://arxiv.org/abs/2007.04178; without V2, and for the largest component and IoU 0.5 alone, CVPR 2020,
    https://arxiv.org/abs/2001.07437).

    Args:
        maps: (h, w) each, raw or post-processed, of any sizes; box edges are as fine as a map's pixels.
        boxes: (B, 4) for each map, as for `pointing_game`.
        thresholds: in [0, 1]; by default 0, 0.01, ... 0.99. The authors take steps of 0.001.
        ious: the bounds.

    Returns:
        In [0, 1].

    Raises:
        InputError: there are no images, or maps or boxes do not fit.
    """
    if len(maps) != len(boxes) or len(maps) == 0:
        raise InputError(f"there are boxes for every map, and here are {len(maps)} maps and boxes for {len(boxes)}")
    levels = np.arange(100) / 100 if thresholds is None else np.asarray(thresholds, np.float64)
    overlaps = np.stack([_best_overlaps(*pair, levels) for pair in zip(maps, boxes, strict=True)])
    hits = overlaps[..., np.newaxis] >= np.asarray(ious)
    return float(hits.mean(axis=0).max(axis=0).mean())


def component_boxes(mask: np.ndarray) -> np.ndarray:
    """The boxes round the 8-connected components of a (h, w) bool mask: (M, 4) int x, y, w, h, by first pixel."""
    rows, columns = np.nonzero(mask)
    _, member = np.unique(_label(mask)[mask], return_inverse=True)
    order = np.argsort(member, kind="stable")
    starts = np.flatnonzero(np.diff(member[order], prepend=-1))
    low = [np.minimum.reduceat(place[order], starts) for place in (columns, rows)]
    high = [np.maximum.reduceat(place[order], starts) for place in (columns, rows)]
    return np.stack([*low, high[0] - low[0] + 1, high[1] - low[1] + 1], axis=1)


def _label(mask: np.ndarray) -> np.ndarray:
    """Numbers that are the same for two pixels of a mask where they belong to one 8-connected component."""
    outside = mask.size  # the number of all pixels that are not in the mask
    labels = np.where(mask.reshape(-1), np.arange(mask.size), outside)
    labels = np.append(labels, outside)
    before = None
    while before is None or (labels != before).any():
        before = labels
        padded = np.pad(labels[:-1].reshape(mask.shape), 1, constant_values=outside)
        wide = np.minimum(np.minimum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
        near = np.minimum(np.minimum(wide[:-2], wide[1:-1]), wide[2:])
        near = np.append(np.where(mask, near, outside), outside)
        # A number is the index of a pixel, which learns of the better one too: so whole regions merge at once, and
        # the rounds do not grow with the length of a winding component.
        labels = np.minimum(before, near)
        np.minimum.at(labels, before, near)
        labels = labels[labels]
    return labels[:-1].reshape(mask.shape)


def _best_overlaps(values: np.ndarray, boxes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The largest intersection over union of any component's box with any of `boxes`, at each threshold."""
    values = stretch(as_map(values))
    corners = _as_corners(boxes, values.shape)
    sizes = values.size - np.searchsorted(np.sort(values, axis=None), thresholds)
    best = np.zeros(len(thresholds))
    for size in np.unique(sizes[sizes > 0]):  # thresholds with no value in between have the same components
        alike = sizes == size
        best[alike] = _ious(component_boxes(values >= thresholds[alike][0]), corners).max()
    return best


def _ious(found: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Intersections over unions of (M, 4) boxes x, y, w, h and B boxes given by (4, B) corners: (M, B)."""
    left, top, right, bottom = corners
    x, y, w, h = found.T[..., np.newaxis]
    width = np.minimum(x + w, right) - np.maximum(x, left)
    height = np.minimum(y + h, bottom) - np.maximum(y, top)
    common = np.maximum(width, 0) * np.maximum(height, 0)
    return common / (w * h + (right - left) * (bottom - top) - common)


def _as_corners(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Left, top, right and bottom edges: (4, B)."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise InputError(f"boxes have the shape (B, 4), x, y, w, h, with at least one box, and these {boxes.shape}")
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    height, width = shape
    low, high = corners.min(axis=1), np.max(corners - [width, height, width, height], axis=1)
    # Boxes that were mapped from the photograph's pixels may step out by a hair.
    fits = (boxes[:, 2:] > 0).all(axis=1) & (low >= -1e-3) & (high <= 1e-3)
    if not fits.all():
        raise InputError(
            f"a box lies inside the map, {width} wide and {height} high, and has a size: {boxes[~fits][0].tolist()} "
            "does not; boxes are x, y, w, h in the map's own pixels"
        )
    return np.clip(corners.T, 0, np.array([width, height, width, height])[:, np.newaxis])

"""How good a map is: faithful to the model, on the object, like another map, and made of what was learned.

Faithfulness (`deletion`, `insertion`, `confidence_change`) is TensorFlow, one call a batch, and can be traced by
`tf.function`, where shapes must be known. Localisation (`pointing_game`, `energy_in_box`, `max_box_acc_v2`) and
similarity (`spearman`, `ssim`, `top_k_overlap`) are NumPy, one call a map. `randomization_check` runs a whole test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, Literal, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from explainers import filters, heads
from explainers.errors import InputError, ModelError
from explainers.explaining import explain, resize_maps
from explainers.graph import Step
from explainers.inspection import Cut, Exposed, as_inputs, ensure_exposed
from explainers.methods.chunks import MAX_ROWS, map_variants
from explainers.methods.registry import get_method, method_of
from explainers.methods.signals import as_indices

Baseline: TypeAlias = float | np.ndarray | tf.Tensor | Literal["blur"]

STEPS = 50  # on photographs within 0.003 of the paper's 224, which cost four times as much

# Faithfulness


class Curves(NamedTuple):
    """The probability of units while pixels disappear or appear."""

    fractions: tf.Tensor  # (S + 1,) float32: the part of the pixels that has done so, from 0 to 1
    probabilities: tf.Tensor  # (N, K, S + 1) float32

    def area(self) -> tf.Tensor:
        """The area under each curve, (N, K) float32 in [0, 1], by the trapezoid rule."""
        widths = self.fractions[1:] - self.fractions[:-1]
        middles = (self.probabilities[..., 1:] + self.probabilities[..., :-1]) / 2
        return tf.clip_by_value(tf.reduce_sum(widths * middles, axis=-1), 0, 1)  # rounding must not take it above 1


class Confidence(NamedTuple):
    """What becomes of a unit's probability y when the map is laid over the image, and it is o."""

    drop: tf.Tensor  # (N, K) float32 in [0, 1]: max(0, y - o) / y
    increase: tf.Tensor  # (N, K) float32: 1 where o > y, else 0


def deletion(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None,
    maps: tf.Tensor,
    steps: int = STEPS,
    baseline: Baseline = 0.0,
    max_rows: int = MAX_ROWS,
    least_first: bool = False,
) -> tf.Tensor:
    """Deletion: the mean probability of a unit while the pixels that matter most are taken away first; low is good.

    The area under the curve of the class probability over the fraction of deleted pixels, both ends included
    (Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018, Sec. 4.2,
    https://arxiv.org/abs/1806.07421). Probabilities are the softmax of the logits, or their sigmoid where the model
    ends in one or has a single unit.

    Only the order of a map's pixels counts: a map of the input's size may be rescaled monotonically. Of equal pixels
    the first in row-major order goes first.

    Args:
        model: exposed, or such that it can be exposed with nothing named; any classifier of images.
        inputs: (N, H, W, C), as the model reads them.
        indices: (N, K) int units, one row an image; None for every unit.
        maps: (N, h, w, K) of any size, raw or post-processed, one map a unit; resized bilinearly to the input.
        steps: S, the number of equal steps in which all pixels go, at most one a pixel. The paper takes 224 pixels a
            step.
        baseline: what comes in a pixel's place, in the model's input units: a number (0, the default, is grey for
            models that read [-1, 1], and ImageNet's mean colour for standardised ones), an array that broadcasts to
            the inputs, or "blur", see `blur`.
        max_rows: how many images go through the model at once; memory does not grow with `steps`.
        least_first: True turns the whole order round, that of equal pixels included: the pixels that matter least go
            first (LeRF; Samek et al. 2017, doi:10.1109/TNNLS.2016.2599820), and high is good.

    Returns:
        (N, K) float32 in [0, 1]. A map that is not finite is refused, or, while a program is traced, gives NaN.

    Raises:
        InputError: images, units, maps or options do not fit.
    """
    return deletion_curves(model, inputs, indices, maps, steps, baseline, max_rows, least_first).area()


def insertion(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None,
    maps: tf.Tensor,
    steps: int = STEPS,
    baseline: Baseline = "blur",
    max_rows: int = MAX_ROWS,
    least_first: bool = False,
) -> tf.Tensor:
    """Insertion: the mean probability of a unit while the pixels that matter most appear first; high is good.

    As `deletion` (Petsiuk et al. 2018, Sec. 4.2), from the baseline to the image. The baseline is the blurred image,
    as in the paper, since pixels on a plain canvas would make edges that no photograph has.

    Inserting in one order is deleting in the opposite order, read backwards: `insertion(...)` equals
    `deletion(..., least_first=True)` exactly, for one baseline.
    """
    return insertion_curves(model, inputs, indices, maps, steps, baseline, max_rows, least_first).area()


def deletion_curves(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None,
    maps: tf.Tensor,
    steps: int = STEPS,
    baseline: Baseline = 0.0,
    max_rows: int = MAX_ROWS,
    least_first: bool = False,
) -> Curves:
    """The curves below which `deletion` is the area; the arguments are the same."""
    exposed, images, units, maps, finite = _prepare(model, inputs, indices, maps, max_rows)
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is an integer of at least 1, not {steps!r}")
    canvas = _as_baseline(baseline, images)
    ranks = _ranks(resize_maps(maps, images.shape[1:3]))
    pixels = ranks.shape[1] * ranks.shape[2]
    ranks = pixels - 1 - ranks if least_first else ranks
    points = min(steps, pixels) + 1
    deleted = np.arange(points) * pixels // (points - 1)  # how many pixels, at every point of the curve
    counts, column, k = tf.constant(deleted, tf.int32), tf.reshape(units, [-1]), units.shape[1]

    def probabilities_of(rows: tf.Tensor) -> tf.Tensor:
        pair, point = rows // points, rows % points  # a pair is an image and one of its units
        gone = tf.gather(ranks, pair) < tf.gather(counts, point)[:, tf.newaxis, tf.newaxis]
        masked = tf.where(gone[..., tf.newaxis], tf.gather(canvas, pair // k), tf.gather(images, pair // k))
        return _probabilities(exposed, masked, tf.gather(column, pair))

    values = tf.reshape(map_variants(probabilities_of, ranks.shape[0] * points, 1, max_rows), [*units.shape, points])
    return Curves(tf.constant(deleted / pixels, tf.float32), tf.where(finite[..., tf.newaxis], values, np.nan))


def insertion_curves(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None,
    maps: tf.Tensor,
    steps: int = STEPS,
    baseline: Baseline = "blur",
    max_rows: int = MAX_ROWS,
    least_first: bool = False,
) -> Curves:
    """The curves below which `insertion` is the area; the arguments are those of `deletion`."""
    curves = deletion_curves(model, inputs, indices, maps, steps, baseline, max_rows, not least_first)
    return Curves(1 - curves.fractions[::-1], curves.probabilities[..., ::-1])


def confidence_change(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None,
    maps: tf.Tensor,
    baseline: Baseline = 0.0,
    max_rows: int = MAX_ROWS,
) -> Confidence:
    r"""Drop and increase in confidence: a unit's probability y on the image, and o on what the map leaves of it.

    The explanation map is $E = L \odot I$, with L the map's positive part, resized, over its maximum. Drop is
    $\max(0, y - o) / y$, low is good; increase is $1[o > y]$, high is good (Chattopadhay et al., "Grad-CAM++", WACV
    2018, Sec. 5.1, https://arxiv.org/abs/1710.11063). Over a data set, the paper's "Average Drop %" is 100 times the
    mean of `drop`, its "% Increase in Confidence" 100 times that of `increase`.

    Args:
        model: this and the following as for `deletion`.
        inputs: (N, H, W, C).
        indices: (N, K) int units.
        maps: (N, h, w, K). A map with no positive part leaves nothing but the baseline.
        baseline: what the image fades to where the map is 0: E = L I + (1 - L) baseline.
        max_rows: how many images go through the model at once.

    Raises:
        InputError: images, units, maps or options do not fit.
    """
    exposed, images, units, maps, finite = _prepare(model, inputs, indices, maps, max_rows)
    canvas = _as_baseline(baseline, images)
    strengths = _pairs_first(filters.positive_normalize(resize_maps(filters.positive(maps), images.shape[1:3])))
    (n, k), column = units.shape, tf.reshape(units, [-1])

    def probabilities_of(rows: tf.Tensor) -> tf.Tensor:
        # The images first, as if a map of ones lay over them, then the explanation maps.
        pair = rows % (n * k)
        strength = tf.where((rows < n * k)[:, tf.newaxis, tf.newaxis], 1.0, tf.gather(strengths, pair))[..., tf.newaxis]
        shown = strength * tf.gather(images, pair // k) + (1 - strength) * tf.gather(canvas, pair // k)
        return _probabilities(exposed, shown, tf.gather(column, pair))

    values = tf.reshape(map_variants(probabilities_of, 2 * n * k, 1, max_rows), [2, n, k])
    before, after = tf.unstack(values)
    drop = tf.math.divide_no_nan(tf.nn.relu(before - after), before)
    increase = tf.cast(after > before, tf.float32)
    return Confidence(tf.where(finite, drop, np.nan), tf.where(finite, increase, np.nan))


def blur(images: tf.Tensor, sigma: float = 5.0) -> tf.Tensor:
    """Images behind a Gaussian of deviation `sigma` pixels: (N, H, W, C) float32.

    Weights that would fall outside the image are left out, so that a plain image stays as it is.
    """
    images = tf.cast(tf.convert_to_tensor(images), tf.float32)
    down, right = (tf.constant(_gaussian_matrix(size, sigma), tf.float32) for size in images.shape[1:3])
    return tf.einsum("yh,xw,nhwc->nyxc", down, right, images)


def _gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    place = np.arange(size)
    weights = np.exp(-(((place[:, np.newaxis] - place) / sigma) ** 2) / 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _prepare(
    model: keras.Model, inputs: Any, indices: Any, maps: Any, max_rows: int
) -> tuple[Exposed, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """The exposed model, images and maps in float32, units (N, K) in int32, and which maps are finite, (N, K)."""
    exposed = ensure_exposed(model, spatial=False)
    slots = exposed.split.input_slots
    if len(slots) != 1 or len(slots[0].shape) != 4:
        shapes = ", ".join(str(slot.shape) for slot in slots)
        raise InputError(f"pixels are masked in models that read one input (N, H, W, C), and this one reads {shapes}")
    if not isinstance(max_rows, int) or max_rows < 1:
        raise InputError(f"max_rows is an integer of at least 1, not {max_rows!r}")
    images, maps = (tf.convert_to_tensor(values) for values in (inputs, maps))
    _check_images(images, slots[0].shape)
    n = images.shape[0]
    units = as_indices(exposed, indices, images)
    _check_units(units, n, exposed.n_classes)
    _check_maps(maps, units)
    maps = tf.cast(maps, tf.float32)
    # Nothing can be raised inside a program: there, a map that is not finite gives NaN; but NaN itself has no order.
    finite = tf.math.is_finite(maps)
    maps = tf.where(finite, maps, 0)
    return exposed, tf.cast(images, tf.float32), units, maps, tf.reduce_all(finite, axis=(1, 2))


def _check_images(images: tf.Tensor, declared: tuple[int | None, ...]) -> None:
    fits = len(images.shape) == 4 and all(
        want in (None, got) for want, got in zip(declared[1:], images.shape[1:], strict=True)
    )
    if not fits:
        raise InputError(f"the model reads images of shape {('N', *declared[1:])}, and inputs have {images.shape}")
    if None in images.shape or images.shape[0] == 0:
        raise InputError(
            f"inputs hold at least one image and have a known shape, not {images.shape}: "
            "trace the program with an input_signature that leaves nothing open"
        )


def _check_units(units: tf.Tensor, n: int, n_classes: int) -> None:
    if units.shape[0] != n or not units.shape[1]:
        raise InputError(f"indices hold one row of units an image, ({n}, K), and have the shape {units.shape}")
    if not tf.is_symbolic_tensor(units):
        wrong = units.numpy()[(units.numpy() < 0) | (units.numpy() >= n_classes)]
        if wrong.size:
            raise InputError(f"the model has the units 0 to {n_classes - 1}, and indices ask for {wrong[0]}")


def _check_maps(maps: tf.Tensor, units: tf.Tensor) -> None:
    n, k = units.shape
    if len(maps.shape) != 4 or None in maps.shape or (maps.shape[0], maps.shape[3]) != (n, k) or 0 in maps.shape:
        raise InputError(
            f"maps hold one map for each of {n} images and {k} units, ({n}, h, w, {k}), and have the shape {maps.shape}"
        )
    if not tf.is_symbolic_tensor(maps):
        _check_finite(maps.numpy())


def _check_finite(values: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise InputError(
            f"a map is finite, and this one has {values[place]} at {place}, the first of {len(wrong)}: "
            "leave the image out, or put 0 where nothing is known"
        )


def _as_baseline(baseline: Baseline, images: tf.Tensor) -> tf.Tensor:
    if isinstance(baseline, str):
        if baseline != "blur":
            raise InputError(f"a baseline is a number, an array or 'blur', not {baseline!r}")
        return blur(images)
    canvas = tf.cast(tf.convert_to_tensor(baseline), tf.float32)
    shape = canvas.shape
    fits = len(shape) <= 4 and all(size in (1, images.shape[4 - len(shape) + i]) for i, size in enumerate(shape))
    if not fits:
        raise InputError(f"a baseline broadcasts to the inputs, {images.shape}, and this one has the shape {shape}")
    return tf.broadcast_to(canvas, images.shape)


def _pairs_first(maps: tf.Tensor) -> tf.Tensor:
    """(N, H, W, K) as (N * K, H, W)."""
    n, height, width, k = maps.shape
    return tf.reshape(tf.transpose(maps, [0, 3, 1, 2]), [n * k, height, width])


def _ranks(maps: tf.Tensor) -> tf.Tensor:
    """How many pixels go before each one in the order of decreasing values: (N * K, H, W) int32."""
    maps = _pairs_first(maps)
    values = tf.reshape(maps, [maps.shape[0], maps.shape[1] * maps.shape[2]])
    values = tf.where(values == 0, 0.0, values)  # XLA sorts -0.0 below 0.0
    order = tf.argsort(values, direction="DESCENDING", stable=True)
    return tf.reshape(tf.argsort(order), maps.shape)


def _probabilities(exposed: Exposed, images: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
    """The probability of one unit of each image, (n,) float32."""
    logits = tf.cast(exposed.head(exposed.split(as_inputs(exposed, images))), tf.float32)
    return tf.gather(exposed.probabilities(logits), units, batch_dims=1)


# Localisation


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
    values = _as_map(values)
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
    values = np.maximum(_as_map(values), 0)
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
    values = _stretch(_as_map(values))
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


def _as_map(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise InputError(
            f"one map has the shape (h, w), and this one {values.shape}: for maps of explain, maps[i, ..., k]"
        )
    _check_finite(values)
    return values


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


# Similarity


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two maps, in [-1, 1]: Pearson's correlation of ranks, equal values sharing one.

    Args:
        a: a map of any shape.
        b: another one of that shape.

    Returns:
        0.0 where one of the maps is constant, and so has no order.

    Raises:
        InputError: shapes differ, or a value is not finite.
    """
    a, b = (_average_ranks(values) for values in _as_pair(a, b))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip((a @ b) / scale, -1, 1)) if scale > 0 else 0.0


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The structural similarity of two maps, each stretched to [0, 1] first; 1 for equal ones.

    The mean over all places of a Gaussian window of 11 pixels and deviation 1.5, with K1 = 0.01, K2 = 0.03 and L = 1
    (Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004, Eq. 13
    and 17, doi:10.1109/TIP.2003.819861). Along an axis of less than 11 pixels the window is the longest odd one that
    fits. A constant map is zeros.

    Args:
        a: a map, (h, w), or with one or three axes.
        b: another one of that shape.

    Raises:
        InputError: shapes differ, or a value is not finite.
    """
    a, b = (_stretch(values) for values in _as_pair(a, b))
    mean_a, mean_b = _smooth(a), _smooth(b)
    variances = _smooth(a * a) - mean_a**2 + _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    brightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float(np.mean(brightness * (2 * covariance + c2) / (variances + c2)))


def top_k_overlap(a: np.ndarray, b: np.ndarray, fraction: float = 0.1) -> float:
    """How many of the k largest values of one map are among the k largest of the other, over k: in [0, 1].

    The top-k intersection of Ghorbani et al., "Interpretation of Neural Networks is Fragile", AAAI 2019,
    https://arxiv.org/abs/1710.10547. Of equal values the first in row-major order is larger.

    Args:
        a: a map of any shape.
        b: another one of that shape.
        fraction: k over the number of values, in (0, 1]; k is rounded, and at least 1.

    Raises:
        InputError: shapes differ, a value is not finite, or the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction lies in (0, 1], not {fraction!r}")
    a, b = _as_pair(a, b)
    k = max(1, round(fraction * a.size))
    first, second = (np.argsort(-values, axis=None, kind="stable")[:k] for values in (a, b))
    return len(np.intersect1d(first, second)) / k


def _as_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.size == 0:
        raise InputError(f"maps that are compared have one shape, and these have {a.shape} and {b.shape}")
    for values in (a, b):
        _check_finite(values)
    return a, b


def _stretch(values: np.ndarray) -> np.ndarray:
    """To [0, 1]; a constant map becomes zeros, as in `filters.normalize`."""
    span = np.ptp(values)
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def _average_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Weighted means over the window, wherever it fits whole."""
    for axis, size in enumerate(values.shape):
        reach = min(11, size - 1 + size % 2) // 2
        window = np.exp(-((np.arange(-reach, reach + 1) / 1.5) ** 2) / 2)
        places = np.lib.stride_tricks.sliding_window_view(values, len(window), axis=axis)
        values = places @ (window / window.sum())
    return values


# Dependence on what was learned


@dataclass(frozen=True)
class Randomization:
    """How alike maps are before and after weights were drawn anew, averaged over images and units."""

    layer: str  # the dotted name of the layer that was randomised last; "all" where all were at once
    spearman: float  # of signed maps, in [-1, 1]
    spearman_absolute: float  # of their magnitudes
    ssim: float  # of signed maps


def randomization_check(
    method: str | Callable[..., tuple[tf.Tensor, tf.Tensor]],
    model: keras.Model,
    x: Any,
    y: Any = None,
    layers: Literal["cascade", "independent", "all"] = "cascade",
    seed: int = 0,
    batch_size: int = 32,
    **params: Any,
) -> list[Randomization]:
    """The model randomisation test: are a method's maps still the same when the model has forgotten what it learned?

    Then they show the image and not the model. Weights are drawn anew, and the raw maps compared with those of the
    trained model (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, Sec. 3,
    https://arxiv.org/abs/1810.03292).

    Layers get fresh values from their own initialisers, as before training, normalisations included: gamma 1, beta 0,
    mean 0 and variance 1. Learned statistics, or permuted ones, would not belong to the new kernels, and a small
    variance would blow the signal up. Layers that standardise the input (`keras.layers.Normalization`) are kept. The
    layers are copies: the model itself is not touched.

    Args:
        method: a name in `METHODS` or a function, as for `explain`.
        model: exposed, or such that it can be exposed with nothing named.
        x: (N, *shape), images as the model reads them.
        y: (N, K) int units, one row an image. None takes the trained model's best unit of each image.
        layers: "cascade" randomises one layer after the other, from the logits down to the input, and keeps what it
            did; "independent" one layer at a time, the others as they were trained; "all" all at once.
        seed: another one gives other weights.
        batch_size: as for `explain`.
        **params: passed on to the method.

    Returns:
        A record for each layer that has weights, from the logits down to the input; a single one for "all".

    Raises:
        InputError: `layers` is unknown, or images or units do not fit.
        ModelError: a layer cannot be made anew.
    """
    if layers not in ("cascade", "independent", "all"):
        raise InputError(f"layers is 'cascade', 'independent' or 'all', not {layers!r}")
    known = get_method(method) if isinstance(method, str) else method_of(method)
    copied, twins = _copy(ensure_exposed(model, spatial=known is None or known.spatial), seed)
    y = np.argmax(copied.predict(x, batch_size, verbose=0)[0], axis=1)[:, np.newaxis] if y is None else y

    def explain_now() -> np.ndarray:
        return explain(method, copied, x, y, batch_size, postprocessing=None, resizing=None, verbose=0, **params)[1]

    trained = explain_now()
    if layers == "all":
        for twin in twins:
            twin.layer.set_weights(twin.fresh)
        return [_compare("all", trained, explain_now())]
    records = []
    for twin in twins:
        twin.layer.set_weights(twin.fresh)
        records.append(_compare(twin.name, trained, explain_now()))
        if layers == "independent":
            twin.layer.set_weights(twin.learned)
    return records


@dataclass(frozen=True)
class _Twin:
    """A copy of one of a model's layers, with its weights before and after training."""

    name: str
    layer: keras.layers.Layer
    fresh: list[np.ndarray]
    learned: list[np.ndarray]


def _copy(exposed: Exposed, seed: int) -> tuple[Exposed, list[_Twin]]:
    """The same model on copies of its layers, and these copies, from the logits down to the input."""
    twins: dict[int, _Twin] = {}
    state = random.getstate()
    random.seed(seed)  # where Keras's initialisers take their seeds from
    try:
        steps = tuple(_copy_step(step, twins) for step in exposed.graph.steps)
    finally:
        random.setstate(state)
    graph = replace(exposed.graph, steps=steps)
    (activations, *skips), (logits,) = exposed.head.input_slots, exposed.head.output_slots
    head_steps = graph.between(activations, logits)
    cut = Cut(activations, logits, head_steps, tuple(skips), exposed.activation_layer, exposed.logits_layer)
    used = {id(layer) for step in graph.ancestors([logits]) for layer in step.layers}
    kept = [twin for twin in twins.values() if id(twin.layer) in used and not _standardises(twin.layer)]
    return Exposed(exposed.source, graph, cut, exposed.probability), kept[::-1]


def _copy_step(step: Step, twins: dict[int, _Twin]) -> Step:
    without = isinstance(step.operation, heads.WithoutActivation)
    layer: Any = step.operation.layer if without else step.operation  # type: ignore[attr-defined]
    if not isinstance(layer, keras.layers.Layer) or not layer.weights:
        return step
    # A layer that is called several times has one copy, whose place is that of its last call.
    twin = twins.pop(id(layer)) if id(layer) in twins else _make_twin(step.name, layer)
    twins[id(layer)] = twin
    return replace(step, operation=heads.WithoutActivation(twin.layer) if without else twin.layer)


def _make_twin(name: str, layer: keras.layers.Layer) -> _Twin:
    # Functions that Keras does not know by name, such as tf.nn.softmax as an activation, are taken from the layer.
    functions = {value.__name__: value for value in vars(layer).values() if isinstance(value, FunctionType)}
    try:
        with keras.saving.custom_object_scope(functions):
            copy = type(layer).from_config(layer.get_config())
        copy.build_from_config(layer.get_build_config())
        fresh = copy.get_weights()
        copy.set_weights(layer.get_weights())
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"the layer {name!r} cannot be made anew from its own configuration: {type(layer).__name__} needs a "
            f"get_config() that holds all arguments of its constructor, and no lambda among them ({error})"
        ) from error
    return _Twin(name, copy, fresh, layer.get_weights())


def _standardises(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Normalization)


def _compare(layer: str, trained: np.ndarray, randomized: np.ndarray) -> Randomization:
    pairs = [(trained[i, ..., k], randomized[i, ..., k]) for i in range(len(trained)) for k in range(trained.shape[-1])]
    return Randomization(
        layer,
        float(np.mean([spearman(a, b) for a, b in pairs])),
        float(np.mean([spearman(np.abs(a), np.abs(b)) for a, b in pairs])),
        float(np.mean([ssim(a, b) for a, b in pairs])),
    )

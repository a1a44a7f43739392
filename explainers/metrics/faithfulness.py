"""Is the model's probability where the map says it is? TensorFlow, a batch at a time, traceable by `tf.function`."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from explainers import filters
from explainers.errors import InputError
from explainers.filters import resize_maps
from explainers.inspection import Exposed, as_inputs, ensure_exposed
from explainers.methods.chunks import MAX_ROWS, map_variants
from explainers.methods.signals import as_indices
from explainers.metrics.checked import check_finite

Baseline: TypeAlias = float | np.ndarray | tf.Tensor | Literal["blur"]

STEPS = 50  # on photographs within 0.003 of the paper's 224, which cost four times as much


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
    _check_units(units, n)
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


def _check_units(units: tf.Tensor, n: int) -> None:
    if units.shape[0] != n or not units.shape[1]:
        raise InputError(f"indices hold one row of units an image, ({n}, K), and have the shape {units.shape}")


def _check_maps(maps: tf.Tensor, units: tf.Tensor) -> None:
    n, k = units.shape
    if len(maps.shape) != 4 or None in maps.shape or (maps.shape[0], maps.shape[3]) != (n, k) or 0 in maps.shape:
        raise InputError(
            f"maps hold one map for each of {n} images and {k} units, ({n}, h, w, {k}), and have the shape {maps.shape}"
        )
    if not tf.is_symbolic_tensor(maps):
        check_finite(maps.numpy())


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

"""Methods that change something and watch the scores: channels of the activation, or parts of the image.

They need forward passes only, and many of them: one for each channel, window or mask. The functions have the form of
those in `cams`; passes have one static shape of at most `max_rows` rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from explainers.errors import InputError
from explainers.filters import resize_maps
from explainers.inspection import Exposed, as_inputs, ensure_exposed
from explainers.methods.cams import weighted_sum
from explainers.methods.chunks import (
    MAX_ROWS,
    as_rows,
    from_rows,
    in_groups,
    map_variants,
    repeat,
    sizes_of,
    sum_variants,
)
from explainers.methods.gradient import as_single_input, check_count, check_size, forward_of
from explainers.methods.noise import as_seeds, rise_masks
from explainers.methods.signals import Signals, as_indices, explain_signals


def scorecam(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None = None,
    *,
    channels: int | None = None,
    max_rows: int = MAX_ROWS,
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Score-CAM: the channels, weighted by the score of the image seen through each of them.

    $M_c = \sum_k \alpha_k^c A_k, \quad \alpha^c = \mathrm{softmax}_k \, y^c(x \odot H_k), \quad
    H_k = \mathrm{minmax}(\mathrm{upsample}(A_k))$ (Wang et al., "Score-CAM: Score-Weighted Visual Explanations for
    Convolutional Neural Networks", CVPRW 2020, Eq. 6 and Alg. 1, https://arxiv.org/abs/1910.01279). The baseline's
    score in Eq. 6 is the same for all channels and cancels in the softmax over them. Constant channels weigh
    nothing. Cost: one forward pass for each channel.

    Args:
        model: exposed, or such that it can be exposed with nothing named; with one input.
        inputs: (N, H, W, C), as the model reads them.
        indices: (N, K) units; None for all.
        channels: take only so many channels of each image, those with the largest mean magnitude; None for all.
        max_rows: rows of one pass.

    Returns:
        The units' logits (N, K), and maps (N, h, w, K), before the paper's ReLU, float32.
    """
    return _scorecam(model, inputs, indices, channels, max_rows, lambda _, logits: logits, _softmax_over_channels)


def scorecam_official(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None = None,
    *,
    channels: int | None = None,
    max_rows: int = MAX_ROWS,
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Score-CAM as its authors' program computes it, for comparison with results of theirs.

    The weights are the unit's probabilities on $x \odot H_k$, with no softmax over the channels, which Alg. 1 of Wang
    et al. 2020 (arXiv:1910.01279) has. Arguments, results and cost are those of `scorecam`.
    """
    return _scorecam(model, inputs, indices, channels, max_rows, Exposed.probabilities, _only_valid)


def ablationcam(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None, *, max_rows: int = MAX_ROWS
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Ablation-CAM: the channels, weighted by what the score loses without each of them.

    $M_c = \sum_k w_k^c A_k, \quad w_k^c = \frac{y^c - y_k^c}{y^c}$, where y_k is the score with channel k set to zero
    (Desai & Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", WACV 2020, Eq. 3 and 4, doi:10.1109/WACV45572.2020.9093360). The divisor here is |y|, or 1 where
    that is zero: a negative score would otherwise turn the sign of the whole map. Cost: one forward pass, and one pass
    through the head for each channel; none of these for a head of one global average and one linear classifier, where
    y - y_k is w_k mean(A_k).

    Args:
        model: exposed, or such that it can be exposed with nothing named.
        inputs: what the model reads.
        indices: (N, K) units; None for all.
        max_rows: rows of one pass through the head.

    Returns:
        The units' logits (N, K), and maps (N, h, w, K), before the paper's ReLU, float32.
    """
    exposed = ensure_exposed(model)
    if exposed.linear_head:
        return explain_signals(_combine_ablationcam(exposed), exposed, inputs, indices, gradients=False, weights=True)
    signals = keras.tree.flatten(exposed.split(as_inputs(exposed, inputs)))

    def explain(indices: tf.Tensor, activations: tf.Tensor, *skips: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def score(j: tf.Tensor) -> tf.Tensor:
            kept = 1 - tf.one_hot(j, activations.shape[-1], dtype=activations.dtype)
            kept = tf.reshape(kept, [-1, *[1] * (len(activations.shape) - 1), activations.shape[-1]])
            rows = [as_rows(activations * kept), *(repeat(skip, j.shape[0]) for skip in skips)]
            return from_rows(_gather(exposed.head(rows), repeat(indices, j.shape[0])), j.shape[0])

        scores = _gather(exposed.head([activations, *skips]), indices)
        ablated = map_variants(score, activations.shape[-1], activations.shape[0], max_rows)
        drops = tf.transpose(scores - ablated, [1, 2, 0])  # (n, k, C)
        return scores, weighted_sum(tf.cast(activations, tf.float32), _over_magnitude(drops, scores))

    return in_groups(explain, max_rows, as_indices(exposed, indices, signals[0]), *signals)


def occlusion(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: float = 0.0,
    max_rows: int = MAX_ROWS,
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Occlusion: what the score loses where a window hides the image.

    $M_{ij} = \mathrm{mean}_{w \ni (i, j)} \left( y(x) - y(x_w) \right)$, over the windows w that cover the pixel
    (Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, Sec. 4.2,
    https://arxiv.org/abs/1311.2901). The last window of a row and of a column ends at the border, so that every pixel
    is covered. Cost: one forward pass for each window: 225 by default, for sides that 16 divides.

    Args:
        model: a classifier with one input of images.
        inputs: (N, H, W, C), as the model reads them.
        indices: (N, K) units; None for all.
        size: height and width of the window, pixels; an eighth of each side by default.
        stride: pixels from window to window; half of its size by default.
        fill: what stands in the window, in the model's own units.
        max_rows: rows of one pass.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K), signed, float32.

    Raises:
        InputError: the window does not fit the image.
    """
    exposed, images, indices = as_single_input(model, inputs, indices, differentiable=False)
    sides = _image_sides(exposed, images)
    height, width = _windows(sides, size, stride)
    forward = forward_of(exposed)

    def explain(images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def score(j: tf.Tensor) -> tf.Tensor:
            down, right = tf.gather(height, j // len(width)), tf.gather(width, j % len(width))
            hidden = (down[:, :, tf.newaxis] * right[:, tf.newaxis])[:, tf.newaxis, ..., tf.newaxis]  # (r, 1, H, W, 1)
            rows = as_rows(tf.where(hidden > 0, tf.cast(fill, tf.float32), images))
            return from_rows(_gather(forward(rows), repeat(indices, j.shape[0])), j.shape[0])

        scores = _gather(forward(images), indices)
        drops = scores - map_variants(score, len(height) * len(width), images.shape[0], max_rows)
        drops = tf.reshape(drops, [len(height), len(width), *sizes_of(drops)[1:]])
        total = tf.einsum("abnk,ay,bx->nyxk", drops, height, width)
        coverage = np.outer(height.sum(axis=0), width.sum(axis=0))
        return scores, total / coverage[..., np.newaxis]

    return in_groups(explain, max_rows, images, indices)


def rise(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None = None,
    *,
    masks: int = 1000,
    grid: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    seeds: tf.Tensor | None = None,
    max_rows: int = MAX_ROWS,
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""RISE: the mean of random masks, weighted by the unit's probability on the masked image.

    $M = \frac{1}{N \, E[m]} \sum_{j=1}^N p(x \odot m_j) \, m_j$ (Petsiuk et al., "RISE: Randomized Input Sampling for
    Explanation of Black-box Models", BMVC 2018, Eq. 6, https://arxiv.org/abs/1806.07421). The paper's scores are
    probabilities, and so they are here: softmax, or sigmoid where the model ends in one. Cost: one forward pass for
    each mask.

    Args:
        model: a classifier with one input of images.
        inputs: (N, H, W, C), as the model reads them.
        indices: (N, K) units; None for all.
        masks: N.
        grid: cells of a mask on each side.
        keep: probability that a cell is open, E[m].
        seed: another one gives other masks.
        seeds: (N, 2) int, one pair an image, in place of those that follow from its content and from `seed`.
        max_rows: rows of one pass.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K), never negative, float32.
    """
    check_count("masks", masks)
    check_count("grid", grid)
    if not 0 < keep <= 1:
        raise InputError(f"keep is a probability above 0 and at most 1, not {keep!r}")
    exposed, images, indices = as_single_input(model, inputs, indices, differentiable=False)
    sides = _image_sides(exposed, images)
    forward = forward_of(exposed)

    def explain(images: tf.Tensor, indices: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def weigh(j: tf.Tensor) -> tf.Tensor:
            drawn = tf.stack([rise_masks(seeds, number, grid, keep, sides) for number in tf.unstack(j)])
            logits = forward(as_rows(images * drawn[..., tf.newaxis]))
            scores = _gather(exposed.probabilities(logits), repeat(indices, j.shape[0]))
            return drawn[..., tf.newaxis] * from_rows(scores, j.shape[0])[:, :, tf.newaxis, tf.newaxis]

        total = sum_variants(weigh, masks, images.shape[0], max_rows)
        return _gather(forward(images), indices), total / (masks * keep)

    return in_groups(explain, max_rows, images, indices, as_seeds(seeds, images, seed))


def _scorecam(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None,
    channels: int | None,
    max_rows: int,
    read: Callable[[Exposed, tf.Tensor], tf.Tensor],  # logits (rows, L) -> scores (rows, L)
    weigh: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],  # scores (n, k, C), which channels count (n, 1, C) -> weights
) -> tuple[tf.Tensor, tf.Tensor]:
    exposed, images, indices = as_single_input(ensure_exposed(model), inputs, indices, differentiable=False)
    check_size(images)
    forward = forward_of(exposed)
    if channels is not None:
        check_count("channels", channels)

    def explain(images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits, activations = exposed(images)
        activations = _strongest(tf.cast(activations, tf.float32), channels)

        def score(j: tf.Tensor) -> tf.Tensor:
            masks = _as_masks(tf.gather(activations, j, axis=-1), tuple(images.shape[1:-1]))
            scores = read(exposed, forward(as_rows(images * masks[..., tf.newaxis])))
            return from_rows(_gather(scores, repeat(indices, j.shape[0])), j.shape[0])

        scores = map_variants(score, activations.shape[-1], images.shape[0], max_rows)
        positions = list(range(1, len(activations.shape) - 1))
        varies = tf.reduce_max(activations, positions) > tf.reduce_min(activations, positions)
        weights = weigh(tf.transpose(scores, [1, 2, 0]), varies[:, tf.newaxis])
        return _gather(logits, indices), weighted_sum(activations, weights)

    return in_groups(explain, max_rows, images, indices)


def _softmax_over_channels(scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    return _only_valid(tf.nn.softmax(tf.where(valid, scores, scores.dtype.min)), valid)


def _only_valid(scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    return tf.where(valid, scores, 0.0)


def _strongest(activations: tf.Tensor, channels: int | None) -> tf.Tensor:
    """The channels of each image with the largest mean magnitude, (n, *positions, channels)."""
    if channels is None or channels >= activations.shape[-1]:
        return activations
    strength = tf.reduce_mean(tf.abs(activations), axis=list(range(1, len(activations.shape) - 1)))
    _, best = tf.math.top_k(strength, channels)
    return tf.gather(activations, best, axis=-1, batch_dims=1)


def _as_masks(activations: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """(n, *positions, r) enlarged to the image and stretched to [0, 1]: (r, n, *size)."""
    enlarged = resize_maps(activations, size)
    enlarged = tf.transpose(enlarged, [len(size) + 1, *range(len(size) + 1)])
    axes = list(range(2, len(size) + 2))
    low = tf.reduce_min(enlarged, axes, keepdims=True)
    return tf.math.divide_no_nan(enlarged - low, tf.reduce_max(enlarged, axes, keepdims=True) - low)


def _combine_ablationcam(exposed: Exposed) -> Callable[[Signals], tf.Tensor]:
    def combine(signals: Signals) -> tf.Tensor:
        # y = sum_k w_k mean(A_k) + b, so that without channel k the score is w_k mean(A_k) lower.
        mean = tf.reduce_mean(signals.activations, axis=signals.image_positions)
        drops = signals.weights * mean[:, tf.newaxis]
        scores = _gather(exposed.head(signals.activations), signals.units)
        return weighted_sum(signals.activations, _over_magnitude(drops, scores))

    return combine


def _over_magnitude(drops: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Drops (n, k, C) over |y| (n, k)."""
    return drops / tf.where(scores == 0, 1.0, tf.abs(scores))[..., tf.newaxis]


def _gather(logits: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
    return tf.gather(tf.cast(logits, tf.float32), units, batch_dims=1)


def check_images(exposed: Exposed) -> None:
    """Refuses models that read anything but one input of images.

    Raises:
        InputError: with the reason.
    """
    shapes = [slot.shape for slot in exposed.split.input_slots]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise InputError(
            f"occlusion and rise hide parts of images, and need one input (N, H, W, C), not "
            f"{', '.join(map(str, shapes))}: gradients and gradcam explain other inputs too"
        )


def _image_sides(exposed: Exposed, images: tf.Tensor) -> tuple[int, int]:
    check_images(exposed)
    check_size(images)
    return tuple(images.shape[1:-1])


def _windows(
    sides: tuple[int, int], size: int | tuple[int, int] | None, stride: int | tuple[int, int] | None
) -> list[np.ndarray]:
    """For each axis the windows along it: (windows, side) float32, 1 inside and 0 outside."""
    sizes = _pair(size) or tuple(max(1, round(side / 8)) for side in sides)
    strides = _pair(stride) or tuple(max(1, length // 2) for length in sizes)
    axes = []
    for side, length, step in zip(sides, sizes, strides, strict=True):
        if not 1 <= step <= length <= side:
            raise InputError(
                f"a window is between 1 pixel and the image, {sides[0]} x {sides[1]}, and moves by at least 1 pixel "
                f"and at most its own size, so that all is covered: size={size!r} and stride={stride!r} do not fit"
            )
        starts = [*range(0, side - length, step), side - length]
        axes.append(np.array([[start <= i < start + length for i in range(side)] for start in starts], np.float32))
    return axes


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise InputError(f"a size is a number or a height and a width, not {value!r}")
    return pair

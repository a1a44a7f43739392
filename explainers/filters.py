"""Pure functions on maps, for use after a method: rectify, normalise, resize, each image and each unit on its own."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from explainers.errors import InputError

Axes = int | Sequence[int] | None


def normalize(maps: tf.Tensor, axis: Axes = None) -> tf.Tensor:
    """Stretches every map to [0, 1]; a constant map becomes zeros.

    Args:
        maps: (N, *positions, K), any real dtype; integers are taken as float32.
        axis: the axes of positions; by default all but the first and the last.
    """
    maps = _as_float(maps)
    low = tf.reduce_min(maps, axis=_positions(maps, axis), keepdims=True)
    high = tf.reduce_max(maps, axis=_positions(maps, axis), keepdims=True)
    return tf.math.divide_no_nan(maps - low, high - low)


def positive(maps: tf.Tensor, axis: Axes = None) -> tf.Tensor:  # noqa: ARG001
    """The positive part, max(maps, 0)."""
    return tf.nn.relu(_as_float(maps))


def negative(maps: tf.Tensor, axis: Axes = None) -> tf.Tensor:  # noqa: ARG001
    """The negative part, min(maps, 0)."""
    return tf.minimum(_as_float(maps), 0)


def absolute(maps: tf.Tensor, axis: Axes = None) -> tf.Tensor:  # noqa: ARG001
    """The magnitude, |maps|."""
    return tf.abs(_as_float(maps))


def positive_normalize(maps: tf.Tensor, axis: Axes = None) -> tf.Tensor:
    """The positive part over its maximum, in [0, 1]: what papers show of a CAM. No positive part gives zeros."""
    return _over_maximum(positive(maps), axis)


def negative_normalize(maps: tf.Tensor, axis: Axes = None) -> tf.Tensor:
    """The size of the negative part over its maximum, in [0, 1]: what speaks against a unit."""
    return _over_maximum(-negative(maps), axis)


def absolute_normalize(maps: tf.Tensor, axis: Axes = None) -> tf.Tensor:
    """The magnitude over its maximum, in [0, 1]."""
    return _over_maximum(absolute(maps), axis)


def clip_normalize(maps: tf.Tensor, axis: Axes = None, share: float = 0.01) -> tf.Tensor:
    """The magnitude, clipped at its largest 1 % (`share`) and over that value, in [0, 1].

    What gradients are shown as: a few pixels hold their maximum, and over it all others would be black.
    """
    maps = absolute(maps)
    axes = _positions(maps, axis)
    others = [i for i in range(len(maps.shape)) if i not in axes]
    flat = tf.transpose(maps, [*others, *axes])
    flat = tf.reshape(flat, [*[tf.shape(maps)[i] for i in others], -1])
    rank = tf.cast(tf.math.ceil(share * tf.cast(tf.shape(flat)[-1], tf.float32)), tf.int32)
    level = tf.gather(tf.sort(flat, axis=-1, direction="DESCENDING"), tf.maximum(rank - 1, 0), axis=-1)
    # Where fewer pixels than that share are not zero, the level is zero and the maximum stands in.
    level = tf.where(level > 0, level, tf.reduce_max(flat, axis=-1))
    for i in sorted(axes):
        level = tf.expand_dims(level, i)
    return tf.math.divide_no_nan(tf.minimum(maps, level), level)


def resize_maps(maps: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """Bilinear (half-pixel centres) resizing of maps with one, two or three axes of positions.

    Args:
        maps: (N, *positions, K) float.
        size: the new positions.
    """
    positions = len(maps.shape) - 2
    if len(size) != positions:
        raise InputError(f"maps with {positions} axes of positions cannot be resized to {tuple(size)}")
    if positions == 1:
        return tf.image.resize(maps[:, :, tf.newaxis], (size[0], 1))[:, :, 0]
    if positions == 2:
        return tf.image.resize(maps, size)
    n, depth, height, width, k = (maps.shape[i] or tf.shape(maps)[i] for i in range(5))
    planes = tf.image.resize(tf.reshape(maps, [n * depth, height, width, k]), size[1:])
    stacks = tf.reshape(planes, [n, depth, size[1] * size[2], k])
    return tf.reshape(tf.image.resize(stacks, (size[0], size[1] * size[2])), [n, *size, k])


def _over_maximum(maps: tf.Tensor, axis: Axes) -> tf.Tensor:
    # Over the maximum and not stretched from the minimum: zero must go on meaning "no evidence".
    return tf.math.divide_no_nan(maps, tf.reduce_max(maps, axis=_positions(maps, axis), keepdims=True))


def _as_float(maps: tf.Tensor) -> tf.Tensor:
    maps = tf.convert_to_tensor(maps)
    return maps if maps.dtype.is_floating else tf.cast(maps, tf.float32)


def _positions(maps: tf.Tensor, axis: Axes) -> list[int]:
    if axis is None:
        return list(range(1, len(maps.shape) - 1))
    return [axis] if isinstance(axis, int) else list(axis)

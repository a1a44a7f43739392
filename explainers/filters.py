"""Pure functions on maps, for use after a method: rectify and normalise, each image and each unit on its own."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

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

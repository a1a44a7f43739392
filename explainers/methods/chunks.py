"""Many variants of a few images, in passes of one static shape: memory does not grow with the number of variants."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from explainers.errors import InputError

MAX_ROWS = 32  # rows of one pass, where nothing else is asked for

Variants = Callable[[tf.Tensor], Any]  # numbers of r variants, (r,) int32 -> values (r, n, ...) of n images


def map_variants(function: Variants, count: int, n: int | None, max_rows: int) -> Any:
    """Values of every variant.

    Args:
        function: computes the values of some variants of all images, a tensor (r, n, ...) or several.
        count: the number of variants.
        n: the number of images, where it is known.
        max_rows: the largest r * n; at least one variant of all images goes into a pass.

    Returns:
        What `function` returns, with `count` in place of r.
    """
    r, starts = _passes(count, n, max_rows)
    chunk = function(tf.range(r))  # the first pass, which also tells what is returned
    if len(starts) == 1:
        return chunk
    signature = tf.nest.map_structure(lambda values: tf.TensorSpec(values.shape, values.dtype), chunk)
    rest = tf.map_fn(
        lambda start: function(tf.minimum(start + tf.range(r), count - 1)),
        tf.constant(starts[1:]),
        parallel_iterations=1,  # one pass at a time, or memory would hold several
        fn_output_signature=signature,
    )
    return tf.nest.map_structure(lambda first, others: _join(first, others)[:count], chunk, rest)


def sum_variants(function: Variants, count: int, n: int | None, max_rows: int) -> tf.Tensor:
    """The sum of a tensor over all variants, (n, ...); the arguments are those of `map_variants`.

    Variants are added one after the other, so that the sum does not depend on the size of the passes.
    """
    r, starts = _passes(count, n, max_rows)

    def add(total: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
        numbers = start + tf.range(r)
        values = function(tf.minimum(numbers, count - 1))
        for i in range(r):  # the last pass may be filled up with repetitions, which do not count
            total += values[i] if starts[-1] + i < count else tf.where(numbers[i] < count, values[i], 0.0)
        return total

    first = functools.reduce(tf.add, tf.unstack(function(tf.range(r))))
    if len(starts) == 1:
        return first
    return tf.foldl(add, tf.constant(starts[1:]), first, parallel_iterations=1)


def in_groups(function: Callable[..., Any], max_rows: int, *tensors: tf.Tensor) -> Any:
    """`function(*tensors)`, for at most `max_rows` images at a time.

    Args:
        function: maps tensors (n, ...) to tensors (n, ...), each image on its own.
        max_rows: the size of a group.
        tensors: (N, ...) each.

    Raises:
        InputError: `max_rows` is no positive integer.
    """
    if not isinstance(max_rows, int) or max_rows < 1:
        raise InputError(f"max_rows is an integer of at least 1, not {max_rows!r}")
    n = tensors[0].shape[0]
    if n is None or n <= max_rows:
        return function(*tensors)
    count = -(-n // max_rows)
    index = tf.minimum(tf.range(count * max_rows), n - 1)  # the last group repeats the last image
    groups = tuple(tf.reshape(tf.gather(t, index), [count, max_rows, *t.shape[1:]]) for t in tensors)
    sample = tf.function(function, autograph=False).get_concrete_function(
        *(tf.TensorSpec(group.shape[1:], group.dtype) for group in groups)
    )
    signature = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), sample.structured_outputs)
    results = tf.map_fn(lambda group: function(*group), groups, parallel_iterations=1, fn_output_signature=signature)
    return tf.nest.map_structure(lambda t: tf.reshape(t, [count * max_rows, *t.shape[2:]])[:n], results)


def as_rows(values: tf.Tensor) -> tf.Tensor:
    """(r, n, ...) as (r * n, ...): the images of all variants below each other."""
    sizes = sizes_of(values)
    return tf.reshape(values, [sizes[0] * sizes[1], *sizes[2:]])


def from_rows(values: tf.Tensor, r: int) -> tf.Tensor:
    """The inverse of `as_rows`."""
    sizes = sizes_of(values)
    return tf.reshape(values, [r, sizes[0] // r, *sizes[1:]])


def repeat(values: tf.Tensor, r: int) -> tf.Tensor:
    """The same (n, ...) for each of r variants: (r * n, ...)."""
    return tf.tile(values, [r, *[1] * (len(values.shape) - 1)])


def _passes(count: int, n: int | None, max_rows: int) -> tuple[int, list[int]]:
    r = 1 if n is None else min(count, max(1, max_rows // max(1, n)))
    return r, list(range(0, count, r))


def _join(first: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    return tf.concat([first, as_rows(others)], axis=0)


def sizes_of(values: tf.Tensor) -> list[Any]:
    """The shape of a tensor, as numbers where they are known and as scalar tensors elsewhere."""
    dynamic = tf.shape(values)
    return [dynamic[i] if size is None else size for i, size in enumerate(values.shape)]

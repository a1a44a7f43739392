"""Rules for layers that add up or choose, dense ones, convolutions and pooling: which input contributed most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from explainers.graph import Slot, Step
from explainers.methods.backtracking import (
    UNIT_FOR_UNIT,
    ForwardPass,
    Move,
    Points,
    Spread,
    Window,
    as_float,
    central_first,
    first_maximum,
    kind_of,
    layer_of,
    margins_of,
    pick,
    points_at,
    sign_of,
)

AT_ONCE = 2**22  # contributions that exist at a time, 16 MiB of them, whatever the number of points


# Dense layers


def dense(step: Step, run: ForwardPass) -> Move:
    """To the strongest input: on positions, or where evidence was added up before."""
    source, kernel = step.inputs[0], as_float(layer_of(step).kernel)
    return _to_strongest(kernel, _one_by_one(run.shape(source)[:-1] or (1,)), source, run)


def spread_dense(step: Step, run: ForwardPass, summed: bool) -> Spread | None:
    """To every input that speaks for the unit."""
    source = step.inputs[0]
    if math.prod(run.shape(source)[:-1]) > 1 or (summed and _are_positions(source, run)):
        return None
    return _to_all_positive(as_float(layer_of(step).kernel), source, run)


def _are_positions(slot: Slot, run: ForwardPass) -> bool:
    """Whether a row of units was positions and channels before it was flattened."""
    step = run.graph.producer(slot)
    while math.prod(run.shape(slot)[:-1]) == 1 and step is not None and kind_of(step) in UNIT_FOR_UNIT:
        slot = step.inputs[0]
        step = run.graph.producer(slot)
    return math.prod(run.shape(slot)[:-1]) > 1


def _to_all_positive(kernel: tf.Tensor, source: Slot, run: ForwardPass) -> Spread:
    """Algorithm 1: every input d with A_d W_du > 0 for a point u; < 0 where u's negative value is to be explained."""
    inputs, outputs = kernel.shape
    signal = run.rows(source, inputs)

    def spread(image: tf.Tensor, points: Points) -> Points:
        activations = signal[image]
        up = tf.math.unsorted_segment_sum(tf.where(points.sign > 0, points.count, 0), points.unit, outputs)
        down = tf.math.unsorted_segment_sum(tf.where(points.sign < 0, points.count, 0), points.unit, outputs)
        # Only signs matter, so the two halves of the kernel look at all pairs of input and point at once.
        positive, negative = tf.nn.relu(kernel), tf.nn.relu(-kernel)
        for_active = tf.linalg.matvec(positive, up) + tf.linalg.matvec(negative, down) > 0
        for_negative = tf.linalg.matvec(negative, up) + tf.linalg.matvec(positive, down) > 0
        found = ((activations > 0) & for_active) | ((activations < 0) & for_negative)
        return points_at(source, tf.range(inputs, dtype=tf.int64), sign_of(activations), found)

    return spread


# Convolutions


def _window(step: Step, run: ForwardPass) -> Window:
    layer, source = layer_of(step), run.shape(step.inputs[0])[:-1]
    target = run.shape(step.outputs[0])[:-1]
    size = tuple(layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size)
    strides, dilation = tuple(layer.strides), tuple(getattr(layer, "dilation_rate", (1,) * len(size)))
    ahead = []
    for n, out, k, stride, gap in zip(source, target, size, strides, dilation, strict=True):
        reach = (k - 1) * gap + 1
        before = {"same": max((out - 1) * stride + reach - n, 0) // 2, "causal": reach - 1}
        ahead.append(before.get(layer.padding, 0))
    return Window(size, strides, dilation, tuple(ahead), source, target, _borders(step.inputs[0], run))


def _borders(slot: Slot, run: ForwardPass) -> list[tuple[int, int]]:
    """Where a signal begins and ends along each axis of positions, without zero padding around it."""
    sizes, step = run.shape(slot)[:-1], run.graph.producer(slot)
    if step is None or not kind_of(step).startswith("ZeroPadding"):
        return [(0, size) for size in sizes]
    return [(before, size - after) for (before, after), size in zip(margins_of(step), sizes, strict=True)]


def _one_by_one(positions: tuple[int, ...]) -> Window:
    """The window of a layer that reads every position alone."""
    ones, zeros = (1,) * len(positions), (0,) * len(positions)
    return Window(ones, ones, ones, zeros, positions, positions, [(0, size) for size in positions])


def convolution(step: Step, run: ForwardPass) -> Move:
    """To the strongest unit of the receptive field."""
    layer = layer_of(step)
    return _to_strongest(as_float(layer.kernel), _window(step, run), step.inputs[0], run, layer.groups)


def spread_convolution(step: Step, run: ForwardPass, summed: bool) -> Spread | None:
    """A convolution that reads its whole input at one position is a dense layer."""
    layer, source, target = layer_of(step), step.inputs[0], run.shape(step.outputs[0])
    whole = math.prod(target[:-1]) == 1 and run.shape(source)[:-1] == tuple(layer.kernel_size) and layer.groups == 1
    if not whole or (summed and math.prod(layer.kernel_size) > 1):
        return None
    return _to_all_positive(tf.reshape(as_float(layer.kernel), [-1, target[-1]]), source, run)


def _to_strongest(kernel: tf.Tensor, window: Window, source: Slot, run: ForwardPass, groups: int = 1) -> Move:
    """Algorithm 2: the channel with the largest sum of contributions, and in it the position with the largest one."""
    inputs, outputs = kernel.shape[-2:]  # of one group, of all
    kernel = tf.gather(tf.reshape(kernel, [window.length, inputs, outputs]), window.order)
    columns = tf.transpose(kernel, [2, 0, 1])
    signal, rows_an_image = run.rows(source, inputs), math.prod(window.source) * groups

    def move(image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        position, output = unit // outputs, unit % outputs
        places, inside = window.around(position)
        rows = places * groups + (output // (outputs // groups))[:, tf.newaxis]
        activations = tf.gather(signal, image * rows_an_image + rows)
        weights = tf.gather(columns, output) * sign[:, tf.newaxis, tf.newaxis]
        products = tf.where(inside[..., tf.newaxis], activations * weights, 0)
        channel = first_maximum(tf.reduce_sum(products, axis=1))
        along = tf.gather(products, channel, axis=2, batch_dims=1)
        best = first_maximum(tf.where(inside, along, -math.inf))
        value = pick(tf.gather(activations, channel, axis=2, batch_dims=1), best)
        return pick(rows, best) * inputs + channel, sign_of(value)

    return _in_parts(move, source, window.length * inputs)


def depthwise_convolution(step: Step, run: ForwardPass) -> Move:
    """To the strongest position of the one channel that it reads."""
    return _to_strongest_position(as_float(layer_of(step).kernel), _window(step, run), step.inputs[0], run)


def _to_strongest_position(kernel: tf.Tensor, window: Window, source: Slot, run: ForwardPass) -> Move:
    channels, multiplier = kernel.shape[-2:]
    outputs = channels * multiplier
    columns = tf.transpose(tf.gather(tf.reshape(kernel, [window.length, outputs]), window.order))
    read = run.reader(source)

    def move(image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        position, output = unit // outputs, unit % outputs
        places, inside = window.around(position)
        units = places * channels + (output // multiplier)[:, tf.newaxis]
        activations = read(image, units)
        products = activations * tf.gather(columns, output) * sign[:, tf.newaxis]
        best = first_maximum(tf.where(inside, products, -math.inf))
        return pick(units, best), sign_of(pick(activations, best))

    return _in_parts(move, source, window.length)


def separable_convolution(step: Step, run: ForwardPass) -> Move:
    """First through the pointwise, then through the depthwise kernel."""
    layer, source = layer_of(step), step.inputs[0]
    depthwise, pointwise = as_float(layer.depthwise_kernel), as_float(layer.pointwise_kernel)
    between = replace(source, index=run.graph.next_index())
    signal = keras.ops.depthwise_conv(
        run.signals[source.index], depthwise, layer.strides, layer.padding, "channels_last", layer.dilation_rate
    )
    with_signal = replace(run, signals={**run.signals, between.index: signal})
    through_channels = _to_strongest(pointwise, _one_by_one(with_signal.shape(between)[:-1]), between, with_signal)
    through_positions = _to_strongest_position(depthwise, _window(step, run), source, run)

    def move(image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        _, unit, sign = through_channels(image, unit, sign)
        return through_positions(image, unit, sign)

    return move


def _in_parts(move: Callable[..., Any], source: Slot, size: int) -> Move:
    """`move`, for so many points at a time that no more than `AT_ONCE` contributions, `size` a point, exist."""

    def move_all(image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        n, part = unit.shape[0], max(1, AT_ONCE // size)
        if n <= part:
            return source.index, *move(image, unit, sign)
        parts = -(-n // part)
        unit, sign = (tf.reshape(tf.pad(x, [[0, parts * part - n]]), [parts, part]) for x in (unit, sign))
        unit, sign = tf.map_fn(
            tf.autograph.experimental.do_not_convert(lambda points: move(image, *points)),
            (unit, sign),
            parallel_iterations=1,
            fn_output_signature=(tf.TensorSpec([part], tf.int64), tf.TensorSpec([part], tf.float32)),
        )
        return source.index, tf.reshape(unit, [-1])[:n], tf.reshape(sign, [-1])[:n]

    return move_all


# Pooling


def pooling(step: Step, run: ForwardPass) -> Move:
    """To the largest activation of the window; of an average with a negative unit, to the smallest."""
    source = step.inputs[0]
    window, read, channels = _window(step, run), run.reader(source), run.shape(source)[-1]

    def move(image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        places, inside = window.around(unit // channels)
        units = places * channels + (unit % channels)[:, tf.newaxis]
        values = read(image, units) * (sign[:, tf.newaxis] if _averages(step) else 1)
        return pick(units, first_maximum(tf.where(inside, values, -math.inf))), sign

    return _in_parts(move, source, window.length)


def global_pooling(step: Step, run: ForwardPass) -> Move:
    """As `pooling`, with all positions as the window."""
    source = step.inputs[0]
    positions, channels = run.shape(source)[:-1], run.shape(source)[-1]
    order = tf.constant(central_first(positions))
    signal = tf.gather(tf.reshape(run.signals[source.index], [-1, math.prod(positions), channels]), order, axis=1)
    # The same for all points of a channel, so looked up once.
    highest, lowest = (
        tf.gather(order, tf.reshape(first_maximum(tf.transpose(values, [0, 2, 1])), [-1]))
        for values in (signal, -signal)
    )

    def move(image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        place = tf.gather(highest, image * channels + unit)
        if _averages(step):
            place = tf.where(sign < 0, tf.gather(lowest, image * channels + unit), place)
        return source.index, place * channels + unit, sign

    return move


def spread_average(step: Step, run: ForwardPass, summed: bool) -> Spread | None:
    """To every position with a positive score, where the average of scores is the logit."""
    source = step.inputs[0]
    positions, channels = run.shape(source)[:-1], run.shape(source)[-1]
    if summed or tuple(getattr(layer_of(step), "pool_size", positions)) != positions:
        return None
    read = run.reader(source)

    def spread(image: tf.Tensor, points: Points) -> Points:
        units = tf.range(math.prod(positions), dtype=tf.int64) * channels + points.unit[:, tf.newaxis]
        found = (read(image, units) * points.sign[:, tf.newaxis] > 0) & (points.count > 0)[:, tf.newaxis]
        sign = tf.repeat(points.sign, math.prod(positions))
        return points_at(source, tf.reshape(units, [-1]), sign, tf.reshape(found, [-1]))

    return spread


def _averages(step: Step) -> bool:
    return "Average" in kind_of(step) or kind_of(step) == "Mean"


def pools_positions(step: Step) -> bool:
    """Whether a reduction takes all positions together, and nothing else."""
    rank, axis = len(step.inputs[0].shape), getattr(step.operation, "axis", None)
    axes = axis if isinstance(axis, (tuple, list)) else [] if axis is None else [axis]
    return sorted(a % rank for a in axes) == list(range(1, rank - 1))

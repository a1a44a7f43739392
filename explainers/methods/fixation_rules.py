"""Where evidence comes from: for units of a layer's output, the units of its input that made them.

`RULES` is the table of it, one rule a kind of layer. What each rule says is stated in `fixations`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from explainers import heads
from explainers.graph import Slot, Step
from explainers.methods import contributors as by
from explainers.methods.backtracking import (
    UNCHANGED,
    ForwardPass,
    Move,
    Spread,
    broadcast,
    constant_reader,
    first_maximum,
    kind_of,
    kinds,
    layer_of,
    margins_of,
    pick,
    ravel,
    sign_of,
    unravel,
)


@dataclass(frozen=True)
class Rule:
    """Where the points of a kind of layer come from."""

    move: Callable[[Step, ForwardPass], Move]
    # Stands in for `move` if it is not None; told whether a layer nearer to the logits has added up evidence already.
    spread: Callable[[Step, ForwardPass, bool], Spread | None] | None = None
    sources: Callable[[Step], tuple[Slot, ...]] = lambda step: step.inputs[:1]  # the inputs that points can come to
    fits: Callable[[Step], bool] = lambda _: True  # whether the rule holds for the step's options


# Several signals


def _addition(step: Step, run: ForwardPass) -> Move:
    shape = run.shape(step.outputs[0])
    slots = tf.constant([slot.index for slot in step.inputs], tf.int64)
    branches = [(broadcast(run.shape(slot), shape), run.reader(slot)) for slot in step.inputs]

    def move(image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        units = [locate(unit) for locate, _ in branches]
        values = tf.stack([read(image, at) for (_, read), at in zip(branches, units, strict=True)], axis=1)
        best = first_maximum(values * sign[:, tf.newaxis])
        return tf.gather(slots, best), pick(tf.stack(units, axis=1), best), sign

    return move


def _multiplication(step: Step, run: ForwardPass) -> Move:
    carrier, shape = _carrier(step), run.shape(step.outputs[0])
    assert carrier is not None
    operands = _operands(step)
    here = next(i for i, operand in enumerate(operands) if operand is carrier)
    readers = []
    for gate in operands[:here] + operands[here + 1 :]:
        is_slot = isinstance(gate, Slot)
        locate = broadcast(run.shape(gate) if is_slot else np.shape(gate), shape)
        readers.append((locate, run.reader(gate) if is_slot else constant_reader(gate)))

    def move(image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        for locate, read in readers:
            sign *= sign_of(read(image, locate(unit)))
        return carrier.index, unit, sign

    return move


def _carrier(step: Step) -> Slot | None:
    """The operand of the output's own shape: of a signal and its gate, the signal."""
    return next((slot for slot in step.inputs if slot.shape == step.outputs[0].shape), None)


def _carriers(step: Step) -> tuple[Slot, ...]:
    carrier = _carrier(step)
    return () if carrier is None else (carrier,)


def _operands(step: Step) -> list[Any]:
    leaves = keras.tree.flatten((step.args, step.kwargs))
    return [leaf for leaf in leaves if leaf is not None and not isinstance(leaf, (bool, str))]


def _concatenation(step: Step, run: ForwardPass) -> Move:
    shape, shapes = run.shape(step.outputs[0]), [run.shape(slot) for slot in step.inputs]
    axis = layer_of(step).axis % (len(shape) + 1) - 1  # the batch is not counted
    starts = np.cumsum([0, *(part[axis] for part in shapes)])[:-1]
    slots = tf.constant([slot.index for slot in step.inputs], tf.int64)

    def move(_image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        places = unravel(unit, shape)
        which = tf.reduce_sum(tf.cast(places[axis][:, tf.newaxis] >= starts[1:], tf.int64), axis=1)
        units = []
        for start, part in zip(starts, shapes, strict=True):
            own = tf.clip_by_value(places[axis] - start, 0, part[axis] - 1)
            units.append(ravel([*places[:axis], own, *places[axis + 1 :]], part))
        return tf.gather(slots, which), pick(tf.stack(units, axis=1), which), sign

    return move


# One signal, unit for unit


def _same_unit(step: Step, _run: ForwardPass) -> Move:
    return lambda _image, unit, sign: (step.inputs[0].index, unit, sign)


def _scaled(step: Step, run: ForwardPass) -> Move:
    factors = layer_of(step).scale if kind_of(step) == "Rescaling" else layer_of(step).gamma
    if factors is None:
        return _same_unit(step, run)
    locate, read = broadcast(np.shape(factors), run.shape(step.outputs[0])), constant_reader(factors)
    return lambda image, unit, sign: (step.inputs[0].index, unit, sign * sign_of(read(image, locate(unit))))


def _scales_channels(step: Step) -> bool:
    axis, last = getattr(layer_of(step), "axis", -1), len(step.inputs[0].shape) - 1
    return [a % (last + 1) for a in (axis if isinstance(axis, (list, tuple)) else [axis])] == [last]


def _shifted(step: Step, run: ForwardPass) -> Move:
    source = step.inputs[0]
    shape, target = run.shape(source), run.shape(step.outputs[0])
    inwards = -1 if kind_of(step).startswith("ZeroPadding") else 1
    shifts = [inwards * before for before, _ in margins_of(step)] + [0]

    def move(_image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        places = zip(unravel(unit, target), shifts, shape, strict=True)
        # Padding that was followed comes from nowhere: it is taken for the nearest that does not.
        return source.index, ravel([tf.clip_by_value(p + s, 0, n - 1) for p, s, n in places], shape), sign

    return move


def _resampled(step: Step, run: ForwardPass) -> Move:
    """To the nearest position, which weighs most in every interpolation."""
    source = step.inputs[0]
    shape, target = run.shape(source), run.shape(step.outputs[0])

    def move(_image: tf.Tensor, unit: tf.Tensor, sign: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        places = [(2 * p + 1) * n // (2 * m) for p, n, m in zip(unravel(unit, target), shape, target, strict=True)]
        return source.index, ravel(places, shape), sign

    return move


def _stretches(step: Step) -> bool:
    layer = layer_of(step)
    return not (getattr(layer, "crop_to_aspect_ratio", False) or getattr(layer, "pad_to_aspect_ratio", False))


# The table of rules


_MIXING = {"softmax", "log_softmax", "sparsemax", "glu"}  # activations in which units see each other

RULES: dict[str, Rule] = {
    "Dense": Rule(by.dense, by.spread_dense),
    **dict.fromkeys(kinds("Conv"), Rule(by.convolution, by.spread_convolution)),
    **dict.fromkeys(kinds("DepthwiseConv", ranks=(1, 2)), Rule(by.depthwise_convolution)),
    **dict.fromkeys(kinds("SeparableConv", ranks=(1, 2)), Rule(by.separable_convolution)),
    **dict.fromkeys(kinds("MaxPooling"), Rule(by.pooling)),
    **dict.fromkeys(kinds("AveragePooling"), Rule(by.pooling, by.spread_average)),
    **dict.fromkeys(kinds("GlobalMaxPooling"), Rule(by.global_pooling)),
    **dict.fromkeys(kinds("GlobalAveragePooling"), Rule(by.global_pooling, by.spread_average)),
    "Max": Rule(by.global_pooling, fits=by.pools_positions),
    "Mean": Rule(by.global_pooling, by.spread_average, fits=by.pools_positions),
    **dict.fromkeys(["Add", "Average"], Rule(_addition, sources=lambda step: step.inputs)),
    "Multiply": Rule(_multiplication, sources=_carriers, fits=lambda step: _carrier(step) is not None),
    "Concatenate": Rule(_concatenation, sources=lambda step: step.inputs),
    **dict.fromkeys(
        ["BatchNormalization", "LayerNormalization", "GroupNormalization"], Rule(_scaled, fits=_scales_channels)
    ),
    **dict.fromkeys(["Rescaling", "LayerScale"], Rule(_scaled)),
    **dict.fromkeys(kinds("ZeroPadding", "Cropping"), Rule(_shifted)),
    **dict.fromkeys(["Resizing", *kinds("UpSampling")], Rule(_resampled, fits=_stretches)),
    **dict.fromkeys(UNCHANGED, Rule(_same_unit)),
}


def has_rule(step: Step) -> bool:
    """Whether points can be taken through a step."""
    rule = RULES.get(kind_of(step))
    return rule is not None and rule.fits(step) and heads.activation_of(step) not in _MIXING

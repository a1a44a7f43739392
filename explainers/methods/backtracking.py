"""Fixations on their way down: where they are, what they read there, and the arithmetic of units and positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from explainers import heads
from explainers.errors import InputError
from explainers.graph import Cast, Graph, Slot, Step


@dataclass(frozen=True)
class Points:
    """Fixations of one logit in one image, on their way down: P of them, wherever they have come to."""

    slot: tf.Tensor  # (P,) int64: index of the slot that each has come to
    unit: tf.Tensor  # (P,) int64: the unit of that signal, in C order
    sign: tf.Tensor  # (P,) float32: -1 where a negative value is to be explained, else 1
    count: tf.Tensor  # (P,) float32: how many fixations the point stands for; 0 for none


@dataclass(frozen=True)
class ForwardPass:
    """A graph, and all its signals for a batch."""

    graph: Graph
    signals: dict[int, tf.Tensor]  # slot index -> (N, *shape) float32

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """The shape of one image's signal.

        Raises:
            InputError: it is not known.
        """
        shape = tuple(self.signals[slot.index].shape[1:])
        if None in shape:
            raise InputError(
                f"fixations needs images of a known size, and a signal of these has the shape {shape}: "
                "call it on images, or trace it with a height and a width in its signature"
            )
        return shape

    def rows(self, slot: Slot, length: int) -> tf.Tensor:
        """A signal cut into rows (all of them, length), image after image."""
        return tf.reshape(self.signals[slot.index], [-1, length])

    def reader(self, slot: Slot) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """(image, units) -> the activations of these units."""
        signal, size = self.rows(slot, 1)[:, 0], math.prod(self.shape(slot))
        return lambda image, units: tf.gather(signal, image * size + units)


@dataclass(frozen=True)
class Window:
    """What a convolution or a pooling reads for each position of its output; one entry an axis."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    ahead: tuple[int, ...]  # padding before the first position
    source: tuple[int, ...]  # positions of the input
    target: tuple[int, ...]  # positions of the output
    borders: list[tuple[int, int]]  # of the input, zero padding left out

    @property
    def length(self) -> int:
        """The number of positions that are read together."""
        return math.prod(self.size)

    @property
    def order(self) -> np.ndarray:
        """The places of the window in the order in which they are looked at, as indices in C order."""
        return central_first(self.size)

    def around(self, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The input's positions (P, length) behind the output's (P,), and which of them are no padding."""
        places, inside = tf.zeros([], tf.int64), tf.constant(True)
        corners = unravel(position, self.target)
        offsets = np.indices(self.size).reshape(len(self.size), -1)[:, self.order]
        for axis, (low, high) in enumerate(self.borders):
            corner = corners[axis][:, tf.newaxis] * self.strides[axis] - self.ahead[axis]
            along = corner + tf.constant(offsets[axis] * self.dilation[axis], tf.int64)
            inside &= (along >= low) & (along < high)
            places = places * self.source[axis] + tf.clip_by_value(along, low, high - 1)
        return places, inside


Move = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[Any, tf.Tensor, tf.Tensor]]
"""(image, units, signs) at a step's output -> (slot or slots, units, signs) at its inputs, one for each."""

Spread = Callable[[tf.Tensor, Points], Points]
"""(image, points at a step's output) -> any number of points at its input."""


# Layers


def kind_of(step: Step) -> str:
    """The name of the Keras class whose `call` a step runs; empty for one that is not Keras' own."""
    if isinstance(step.operation, (heads.Identity, heads.Flatten, Cast)):
        return "Identity"
    classes = type(layer_of(step)).__mro__
    # A user's class may stand before Keras', as long as it computes nothing else.
    called = next((kind for kind in classes if "call" in vars(kind)), object)
    known = next((kind for kind in classes if kind.__module__.startswith("keras.")), object)
    return known.__name__ if called.__module__.startswith("keras.") else ""


def layer_of(step: Step) -> Any:
    """The user's layer behind a step, or the operation itself."""
    return step.operation.layer if isinstance(step.operation, heads.WithoutActivation) else step.operation


def margins_of(step: Step) -> list[tuple[int, int]]:
    """What a padding or cropping layer adds or takes away before and behind, on each axis of positions."""
    margins = layer_of(step).padding if hasattr(layer_of(step), "padding") else layer_of(step).cropping
    return [margins] if isinstance(margins[0], int) else list(margins)


def kinds(*names: str, ranks: Sequence[int] = (1, 2, 3)) -> list[str]:
    """The names of Keras' layers for signals with one, two and three axes of positions."""
    return [f"{name}{rank}D" for name in names for rank in ranks]


_ELEMENTWISE = [
    "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu",
    "Silu", "HardSilu", "Sigmoid", "HardSigmoid", "Tanh", "HardTanh", "Softplus", "Softsign", "Mish", "LogSigmoid",
]  # fmt: skip
_IDLE = [
    "Identity", "Dropout", *kinds("SpatialDropout"), "GaussianNoise", "GaussianDropout", "AlphaDropout",
    "ActivityRegularization", "StochasticDepth", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation",
    "RandomContrast", "RandomBrightness",
]  # fmt: skip
_RESHAPES = ["Reshape", "Flatten", "Squeeze", "ExpandDims"]  # C order is the same before and behind them
_SCALING = ["BatchNormalization", "LayerNormalization", "GroupNormalization", "Rescaling", "LayerScale"]
UNCHANGED = frozenset(["Normalization", "UnitNormalization", *_ELEMENTWISE, *_IDLE, *_RESHAPES])
UNIT_FOR_UNIT = UNCHANGED | set(_SCALING)  # kinds of layers whose units each read the same unit of their input


# Units and tensors


def constant_reader(values: Any) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """As `ForwardPass.reader`, of values that are the same for all images."""
    flat = tf.reshape(as_float(values), [-1])
    return lambda _image, units: tf.gather(flat, units)


def broadcast(part: Sequence[int], shape: tuple[int, ...]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Units of a signal of `shape` -> those of an operand of shape `part` that is broadcast to it."""
    if tuple(part) == shape:
        return lambda units: units
    kept = [(axis, size) for axis, size in zip(range(-len(part), 0), part, strict=True) if size > 1]

    def locate(units: tf.Tensor) -> tf.Tensor:
        places = unravel(units, shape)
        return tf.zeros_like(units) + ravel([places[axis] for axis, _ in kept], [size for _, size in kept])

    return locate


def points_at(slot: Slot, units: tf.Tensor, sign: tf.Tensor, found: tf.Tensor) -> Points:
    """One fixation at each of the units that were `found`; all arguments (P,)."""
    return Points(tf.fill(units.shape, tf.constant(slot.index, tf.int64)), units, sign, as_float(found))


def first_maximum(values: tf.Tensor) -> tf.Tensor:
    """Where the last axis is largest (int64); of equal values the first, which argmax does not promise."""
    length = values.shape[-1]
    largest = values == tf.reduce_max(values, axis=-1, keepdims=True)
    return tf.reduce_min(tf.where(largest, tf.range(length, dtype=tf.int64), length - 1), axis=-1)


def central_first(sizes: Sequence[int]) -> np.ndarray:
    """The places of a grid in C order, sorted by their distance from its centre.

    Windows without evidence are full of equal zeros. Were the first of them followed, every such window would pull
    fixations up and to the left: by a tenth of the image in a MobileNet.
    """
    places = np.indices(sizes).reshape(len(sizes), -1)
    from_centre = 2 * places - (np.array(sizes)[:, np.newaxis] - 1)
    return np.argsort((from_centre**2).sum(axis=0), kind="stable")


def pick(values: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """One value of each row: (P, n) at places (P,)."""
    return tf.gather(values, place, axis=1, batch_dims=1)


def sign_of(values: tf.Tensor) -> tf.Tensor:
    """-1 for negative values, else 1."""
    return tf.where(values < 0, -1.0, 1.0)


def unravel(units: tf.Tensor, shape: Sequence[int]) -> list[tf.Tensor]:
    """The place of each unit along every axis of a signal of `shape`."""
    places = []
    for size in reversed(shape):
        places.append(units % size)
        units //= size
    return places[::-1]


def ravel(places: Sequence[tf.Tensor], shape: Sequence[int]) -> tf.Tensor:
    """The inverse of `unravel`."""
    units = tf.zeros([], tf.int64)
    for place, size in zip(places, shape, strict=True):
        units = units * size + place
    return units


def as_float(values: Any) -> tf.Tensor:
    """Anything as a float32 tensor."""
    return tf.cast(tf.convert_to_tensor(values), tf.float32)

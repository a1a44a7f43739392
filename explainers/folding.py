"""Inference BatchNorm folded into the layer ahead of it, padding into the one behind it: the same function for less."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from explainers import heads
from explainers.graph import Graph, Slot, Step, View
from explainers.inspection import Exposed

EMBEDDED_BYTES = 2**28  # a program's graph holds at most 2 GB, and a process several programs

_KERNELS = {
    keras.layers.Conv1D: "_kernel",
    keras.layers.Conv2D: "_kernel",
    keras.layers.Conv3D: "_kernel",
    keras.layers.Dense: "_kernel",
    keras.layers.DepthwiseConv1D: "kernel",
    keras.layers.DepthwiseConv2D: "kernel",
    keras.layers.SeparableConv1D: "pointwise_kernel",
    keras.layers.SeparableConv2D: "pointwise_kernel",
}
"""Layers that take a normalisation in, and where each keeps the kernel whose last axes are its output channels."""

_PADDINGS = {keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D}


class Folded(View):
    """A layer and the normalisation behind it as one: the layer's own computation with another kernel and bias."""

    def __init__(self, layer: keras.layers.Layer, kernel: Any, bias: Any, /, **attributes: Any):
        policy = attributes.setdefault("_dtype_policy", keras.DTypePolicy("float32"))
        self._values = kernel, bias
        kernel, self._bias = (_cast(values, policy.compute_dtype) for values in self._values)
        super().__init__(layer, **attributes, use_bias=False, bias=None, **{_KERNELS[type(layer)]: kernel})
        self.attributes = attributes

    def __call__(self, signal: tf.Tensor) -> tf.Tensor:
        """What the normalisation behind the layer gives."""
        # Not `+`: a bias_add is fused into the convolution, with the ReLU behind it.
        return tf.nn.bias_add(self.view(signal), self._bias)

    def with_attributes(self, **attributes: Any) -> Folded:
        """The same with other attributes of the layer."""
        return Folded(self.layer, *self._values, **self.attributes | attributes)


class Scaled:
    """Inference BatchNorm of a signal (N, h, w, C) as a depthwise convolution of single pixels.

    oneDNN computes that in one pass over memory, with the ReLU behind it, and Keras's own formula in three.
    """

    def __init__(self, layer: keras.layers.BatchNormalization):
        self.layer = layer
        scale, shift = (values.astype(np.float32) for values in scale_and_shift(layer))
        self._kernel, self._bias = scale.reshape(1, 1, -1, 1), shift

    def __call__(self, signal: tf.Tensor) -> tf.Tensor:
        """The normalised signal."""
        product = tf.nn.depthwise_conv2d(tf.cast(signal, tf.float32), self._kernel, [1, 1, 1, 1], "VALID")
        return tf.nn.bias_add(product, self._bias)


def folded(exposed: Exposed, xla: bool = False) -> Exposed:
    """The same exposed model with its BatchNorms and zero paddings folded, on weights as they are now.

    Args:
        exposed: the model.
        xla: whether XLA will compile it, which is slow at depthwise convolutions on processors.

    Returns:
        `exposed` itself if there is nothing to fold.
    """
    signals = (*exposed.head.input_slots, *exposed.head.output_slots)
    graph = fold_padding(fold_normalization(exposed.computing, signals), signals)
    if not xla and not tf.config.list_physical_devices("GPU"):
        graph = scale_rest(graph)
    return exposed if graph is exposed.computing else exposed.computed_by(graph)


def fold_normalization(graph: Graph, keep: Iterable[Slot] = ()) -> Graph:
    """The same computation with every inference BatchNorm folded that follows a linear layer and nothing else reads.

    Convolutions, depthwise and separable ones included, and dense layers take in the normalisation of their channels,
    in float64: kernel * gamma / sqrt(variance + epsilon), and (bias - mean) * gamma / sqrt(variance + epsilon) + beta.
    An identity of the same name stays behind. The kernels are copies: training the model does not change them.

    Args:
        graph: a model's.
        keep: signals that are read from outside, such as an exposed one, and keep their values.
    """
    pairs = [(ahead, step) for ahead, step in _pairs(graph, keep) if _takes_in(ahead) and normalizes_channels(step)]
    n_bytes = sum(4 * int(np.prod(kernel_of(ahead.operation).shape)) for ahead, _ in pairs)
    # In a program NumPy values are constants, whose layout is made ready for oneDNN's convolutions once and not at each
    # call. On a GPU that gains nothing, and XLA would compute with large constants for minutes.
    embedded = n_bytes <= EMBEDDED_BYTES and not tf.config.list_physical_devices("GPU")
    operations: dict[int, Callable[..., Any]] = {}
    for ahead, step in pairs:
        operations[id(ahead)] = _fold(ahead.operation, step.operation, embedded)
        operations[id(step)] = heads.Identity(step.operation)
    return _with_operations(graph, operations)


def fold_padding(graph: Graph, keep: Iterable[Slot] = ()) -> Graph:
    """The same computation with zero padding left to the convolution behind it, where `padding="same"` means the same.

    Args:
        graph: a model's.
        keep: signals that are read from outside, and keep their values.
    """
    operations: dict[int, Callable[..., Any]] = {}
    for padding, step in _pairs(graph, keep):
        if type(padding.operation) in _PADDINGS and _is_same_padding(padding, step):
            operations[id(padding)] = heads.Identity(padding.operation)
            operations[id(step)] = _viewed(step.operation).with_attributes(padding="same")
    return _with_operations(graph, operations)


def scale_rest(graph: Graph) -> Graph:
    """The same computation with the BatchNorms of images that no layer took in as depthwise convolutions."""
    rest = (step for step in graph.steps if normalizes_channels(step) and len(step.inputs[0].shape) == 4)
    return _with_operations(graph, {id(step): Scaled(step.operation) for step in rest})


def has_scaled(exposed: Exposed) -> bool:
    """Whether a folded model computes BatchNorms as depthwise convolutions."""
    return any(isinstance(step.operation, Scaled) for step in exposed.computing.steps)


def normalizes_channels(step: Step) -> bool:
    """Whether a step is Keras's own BatchNorm in float32, over the last axis of a signal without a mask."""
    layer: Any = step.operation
    if type(layer) is not keras.layers.BatchNormalization or len(step.inputs) != 1:
        return False
    return layer.axis in (-1, len(step.inputs[0].shape) - 1) and layer.compute_dtype == "float32"


@np.errstate(all="ignore")  # weights that make no sense are found by what they do to the logits
def scale_and_shift(layer: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Inference BatchNorm as x * scale + shift: two float64 arrays (C,)."""
    scale = 1 / np.sqrt(_as_float64(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * _as_float64(layer.gamma)
    shift = -_as_float64(layer.moving_mean) * scale
    return scale, shift + _as_float64(layer.beta) if layer.center else shift


def kernel_of(layer: Any) -> Any:
    """The kernel of a layer that takes a normalisation in."""
    return getattr(layer, _KERNELS[type(layer)])


def _pairs(graph: Graph, keep: Iterable[Slot]) -> Iterator[tuple[Step, Step]]:
    """Steps and the one behind each, where that reads nothing else, and nothing else reads what it reads."""
    readers = collections.Counter(slot.index for step in graph.steps for slot in step.inputs)
    readers.update(slot.index for slot in (*graph.outputs, *keep))
    for step in graph.steps:
        ahead = graph.producer(step.inputs[0]) if len(step.inputs) == 1 else None
        if ahead is not None and readers[step.inputs[0].index] == 1:
            yield ahead, step


def _with_operations(graph: Graph, operations: dict[int, Callable[..., Any]]) -> Graph:
    if not operations:
        return graph
    # What stands in for a layer reads the signal, and nothing that the layer was told beside it.
    steps = (
        replace(step, operation=operations[id(step)], args=step.inputs, kwargs={}) if id(step) in operations else step
        for step in graph.steps
    )
    return replace(graph, steps=tuple(steps))


def _takes_in(step: Step) -> bool:
    """Whether a step is a linear layer that can take a normalisation in."""
    layer: Any = step.operation
    if type(layer) not in _KERNELS or layer.compute_dtype != "float32" or len(step.inputs) != 1:
        return False
    # What was added to a layer later, low-rank updates or integers, is not in its kernel.
    as_made = not getattr(layer, "lora_enabled", False) and getattr(layer, "quantization_mode", None) is None
    return as_made and layer.activation is keras.activations.linear  # and no other function of that name


def _viewed(operation: Any) -> View:
    return operation if isinstance(operation, View) else View(operation)


def _is_same_padding(padding: Step, step: Step) -> bool:
    """Whether a convolution without padding, after these zeros, is one with `padding="same"`."""
    # Not by the name `layer` alone: Keras's wrappers have such an attribute too.
    layer: Any = step.operation.layer if isinstance(step.operation, View) else step.operation
    if type(layer) not in _KERNELS or getattr(layer, "padding", None) != "valid" or set(layer.dilation_rate) != {1}:
        return False
    if padding.operation.compute_dtype != layer.compute_dtype:  # type: ignore[attr-defined]
        return False
    pads = padding.operation.padding  # type: ignore[attr-defined]
    pads = [pads] if isinstance(pads[0], int) else pads
    sizes = padding.inputs[0].shape[1:-1]
    return all(
        size is not None and tuple(pad) == _same_padding(size, kernel, stride)
        for size, kernel, stride, pad in zip(sizes, layer.kernel_size, layer.strides, pads, strict=True)
    )


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """The zeros that TensorFlow puts before and after an axis for `padding="same"`."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@np.errstate(all="ignore")
def _fold(layer: Any, normalization: keras.layers.BatchNormalization, embedded: bool) -> Folded:
    scale, shift = scale_and_shift(normalization)
    kernel = _as_float64(kernel_of(layer))
    # A depthwise kernel ends in two axes of channels: those of the input, and the multiples of each.
    per_channel = scale.reshape(kernel.shape[-2:]) if "Depthwise" in type(layer).__name__ else scale
    bias = shift + _as_float64(layer.bias) * scale if layer.use_bias else shift
    values = (kernel * per_channel).astype(np.float32), bias.astype(np.float32)
    return Folded(layer, *(values if embedded else map(tf.constant, values)))


def _cast(values: Any, dtype: str) -> Any:
    if isinstance(values, np.ndarray):
        return values.astype(tf.as_dtype(dtype).as_numpy_dtype)
    return tf.cast(values, dtype)


def _as_float64(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value), np.float64)

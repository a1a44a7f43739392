"""What lies between the spatial signal and the logits: the final activation to undo, and the classifier behind CAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from explainers.graph import Graph, Slot, Step, View

PROBABILITIES = {"softmax": "softmax", "log_softmax": "softmax", "sigmoid": "sigmoid", "log_sigmoid": "sigmoid"}

_TENSORFLOW_NAMES = {"softmax_v2": "softmax", "log_softmax_v2": "log_softmax"}  # how tf.nn calls its own functions
_ACTIVATIONS = {"Activation", "Softmax", "Sigmoid", "LogSoftmax", "LogSigmoid"}  # layers and operations of their own
_RESHAPES = {"Reshape", "Flatten", "Squeeze", "ExpandDims"}
_SAME_AT_INFERENCE = {
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
    "Identity",
    "Cast",
}
_AVERAGE_POOLS = {"GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D"}
_LOCAL_AVERAGE_POOLS = {"AveragePooling1D", "AveragePooling2D", "AveragePooling3D"}
_CONVOLUTIONS = {"Conv1D", "Conv2D", "Conv3D"}


class Identity:
    """Stands where a separate softmax or sigmoid layer stood."""

    def __init__(self, layer: Any):
        self.layer = layer

    def __call__(self, signal: tf.Tensor, **_: Any) -> tf.Tensor:
        """The signal itself, whatever the layer was told beside it (a Softmax in a Sequential gets a mask)."""
        return signal


class Flatten:
    """Stands behind a classifier that keeps axes of length one, (N, 1, 1, L), and takes them away."""

    def __call__(self, signal: tf.Tensor) -> tf.Tensor:
        """`signal` as (N, L)."""
        return tf.reshape(signal, [-1, signal.shape[-1]])


class WithoutActivation(View):
    """A layer with its fused activation left out."""

    def __init__(self, layer: keras.layers.Layer):
        super().__init__(layer, activation=keras.activations.linear)


def flatten_logits(graph: Graph, logits: Slot) -> tuple[Graph, Slot]:
    """Takes axes of length one off the logits, (N, 1, 1, L) to (N, L); others are left as they are."""
    step = graph.producer(logits)
    if step is None or len(logits.shape) < 3 or logits.shape[-1] is None or set(logits.shape[1:-1]) != {1}:
        return graph, logits
    flat = replace(logits, index=graph.next_index(), shape=(logits.shape[0], logits.shape[-1]))
    path = (*step.path[:-1], f"{step.path[-1]}:row")
    return replace(graph, steps=(*graph.steps, Step(Flatten(), path, (logits,), {}, (flat,)))), flat


def undo_activation(graph: Graph, logits: Slot) -> tuple[Graph, str | None]:
    """Takes the last softmax or sigmoid off the way to `logits`, looking back only through layers that just reshape.

    Returns:
        The graph that computes scores before it, and "softmax", "sigmoid" or None if there was none.
    """
    step = graph.producer(logits)
    while step is not None:
        kind = PROBABILITIES.get(activation_of(step) or "")
        if kind is not None:
            return graph.replace_step(step, _before_activation(step)), kind
        if not (_only_reshapes(step) or same_at_inference(step)) or len(step.inputs) != 1:
            return graph, None
        step = graph.producer(step.inputs[0])
    return graph, None


def activation_of(step: Step) -> str | None:
    """The snake_case name of the activation that a step ends in, such as "softmax" or "linear"; None if it has none."""
    operation = step.operation
    kind = type(operation).__name__
    if kind in {"ReLU", "Relu", *_ACTIVATIONS} - {"Activation"}:
        return {"LogSoftmax": "log_softmax", "LogSigmoid": "log_sigmoid"}.get(kind, kind.lower())
    activation = getattr(operation, "activation", None)
    if activation is None or not _defines_call(operation).__module__.startswith("keras."):
        return None  # none, or a layer with a `call` of its own, which may do anything with it
    name = getattr(activation, "__name__", None) or type(activation).__name__
    return {"Softmax": "softmax", "Sigmoid": "sigmoid", "ReLU": "relu", **_TENSORFLOW_NAMES}.get(name, name)


def _defines_call(operation: Any) -> type:
    return next(kind for kind in type(operation).__mro__ if "call" in vars(kind))


def same_at_inference(step: Step) -> bool:
    """Whether a step passes its signal on unchanged when nothing is trained: dropout, identity, a cast, `linear`."""
    kind = type(step.operation).__name__
    return kind in _SAME_AT_INFERENCE or (kind == "Activation" and activation_of(step) == "linear")


def has_kernel(step: Step) -> bool:
    """Whether a step multiplies by a learned kernel: a dense layer or a convolution."""
    layer = _layer_of(step)
    return any(getattr(layer, name, None) is not None for name in ("kernel", "pointwise_kernel"))


def n_kernels(step: Step) -> int:
    """How many matrices and filters a step has learned, those inside a layer with a `call` of its own included."""
    layer = _layer_of(step)
    if type(layer).__name__ == "PReLU":  # its slopes have positions, but it mixes nothing
        return 0
    return sum(len(variable.shape) >= 2 for variable in getattr(layer, "weights", ()))


def is_rectifier(step: Step) -> bool:
    """Whether a step ends in a ReLU, clipped from above or not; a leaky one lets negative signals pass and is none."""
    if type(step.operation).__name__ in {"ReLU", "Relu", "Relu6"}:
        return not getattr(step.operation, "negative_slope", 0) and not getattr(step.operation, "threshold", 0)
    return activation_of(step) in {"relu", "relu6"}


def is_linear(steps: Sequence[Step]) -> bool:
    """Whether a head that has a class kernel is linear from end to end: no ReLU between classifier and average."""
    return not any(activation_of(step) == "relu" for step in steps)


def is_spatial(slot: Slot, rank: int) -> bool:
    """Whether a tensor has the input's rank and at least one spatial axis longer than one (or of open length)."""
    return len(slot.shape) == rank >= 3 and any(size != 1 for size in slot.shape[1:-1])


def image_inputs(graph: Graph) -> tuple[Slot, ...]:
    """The inputs of the highest rank: images, where others are rows of features."""
    rank = max(len(slot.shape) for slot in graph.inputs)
    return tuple(slot for slot in graph.inputs if len(slot.shape) == rank)


def learned(graph: Graph) -> set[int]:
    """The indices of signals that some kernel lies ahead of; the others are the image still, rescaled perhaps."""
    found: set[int] = set()
    for step in graph.steps:
        if n_kernels(step) or any(slot.index in found for slot in step.inputs):
            found |= {slot.index for slot in step.outputs}
    return found


def position_rank(graph: Graph) -> int:
    """The rank of signals that hold positions: that of the images."""
    return len(image_inputs(graph)[0].shape)


def class_kernel(steps: Sequence[Step], signal: Slot) -> tuple[Callable[[], tf.Tensor] | None, str]:
    """The weights w of a head that is a global average and one dense layer or 1x1 convolution, in either order.

    Returns:
        A function that reads the kernel as (channels, classes), and an empty string; or None and the reason why this
        head has no such weights, in words that complete "CAM needs ... and this head ...".
    """
    pools, kernels = 0, []
    for step in steps:
        if len(step.inputs) != 1:
            tokens = type(step.operation).__name__ == "MergeTokens"
            return None, "reads tokens beside the grid" if tokens else f"joins several signals at {step.name!r}"
        if _averages(step):
            pools += 1
        elif _is_linear_classifier(step, signal):
            if activation_of(step) not in (None, "linear", "relu"):
                return None, f"ends in the activation {activation_of(step)!r} of {step.name!r}"
            kernels.append(_layer_of(step))
        elif not _may_stand_in_a_cam_head(step, pools, len(kernels)):
            return None, f"has {type(_layer_of(step)).__name__} {step.name!r}"
    if pools != 1:
        return None, "has no global average pooling"
    if len(kernels) != 1:
        return None, f"has {len(kernels)} layers with a kernel: {', '.join(layer.name for layer in kernels) or 'none'}"
    return lambda: _as_matrix(kernels[0].kernel), ""


def _as_matrix(kernel: Any) -> tf.Tensor:
    # Not a squeeze: that would take away the class axis of a head with one unit.
    values = tf.convert_to_tensor(kernel)
    return tf.cast(tf.reshape(values, values.shape[-2:]), tf.float32)


def _layer_of(step: Step) -> Any:
    return getattr(step.operation, "layer", step.operation)


def _before_activation(step: Step) -> Callable[..., Any]:
    alone = type(step.operation).__name__ in _ACTIVATIONS
    return Identity(step.operation) if alone else WithoutActivation(step.operation)


def _only_reshapes(step: Step) -> bool:
    return type(step.operation).__name__ in _RESHAPES


def _averages(step: Step) -> bool:
    kind, (signal,) = type(step.operation).__name__, step.inputs[:1]
    if kind == "Mean":  # keras.ops.mean in a functional graph
        axis = getattr(step.operation, "axis", None)
        axes = axis if isinstance(axis, (tuple, list)) else [] if axis is None else [axis]
        return sorted(a % len(signal.shape) for a in axes) == list(range(1, len(signal.shape) - 1))
    pool, left = getattr(step.operation, "pool_size", None), set(step.outputs[0].shape[1:-1])
    whole = kind in _LOCAL_AVERAGE_POOLS and signal.shape[1:-1] == pool and left == {1}
    return kind in _AVERAGE_POOLS or whole


def _is_linear_classifier(step: Step, signal: Slot) -> bool:
    layer = _layer_of(step)
    kind = type(layer).__name__
    if kind == "Dense":
        # After a Flatten of positions the kernel's rows are not channels, and CAM does not exist.
        return layer.kernel.shape[0] == signal.shape[-1]
    pointwise = kind in _CONVOLUTIONS and set(layer.kernel_size) == {1} and set(layer.strides) == {1}
    return pointwise and layer.groups == 1


def _may_stand_in_a_cam_head(step: Step, pools: int, kernels: int) -> bool:
    if same_at_inference(step) or isinstance(step.operation, Identity):
        return True
    # Tokens in a row are still one a position: an average over them is one over the grid.
    if type(step.operation).__name__ == "MergeTokens":
        return pools == 0
    # Flattening positions before they were averaged mixes them with channels.
    if _only_reshapes(step):
        return pools > 0
    # SqueezeNet clips its class score maps before it averages them: the maps are still CAM's.
    return activation_of(step) == "relu" and kernels == 1 and pools == 0 and not has_kernel(step)

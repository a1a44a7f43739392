"""FullGrad: the logit, taken apart into what the input and what every bias contributes."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from explainers import filters, heads
from explainers.errors import InputError
from explainers.graph import Slot, Step, run_steps
from explainers.inspection import Exposed, as_inputs
from explainers.methods.gradient import as_single_input, check_size
from explainers.methods.signals import UNROLLED_UNITS
from explainers.rewriting import activation_name, unfuse

_HOMOGENEOUS = {
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GlobalMaxPooling3D", "Add", "Subtract", "Average", "Concatenate", "Flatten", "Reshape",
    "Permute", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D",
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "Mean", "Squeeze", "ExpandDims", "Transpose", "Relu", "Cast",
    "Resizing",
}  # fmt: skip
"""Steps with f(a x) = a f(x): they add nothing of their own."""


def full_gradients(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""FullGrad: the input's gradient map and those of all biases, each rescaled, together.

    $M = \psi(x \odot \nabla_x y) + \sum_l \sum_{c \in l} \psi(b_{lc} \odot \nabla_{b_{lc}} y)$, with
    $\psi(\cdot) = \mathrm{upsample}(\mathrm{rescale}(|\cdot|))$ (Srinivas & Fleuret, "Full-Gradient Representation for
    Neural Network Visualization", NeurIPS 2019, Eq. 4 and 7, https://arxiv.org/abs/1905.00780); rescale takes each
    channel's map to [0, 1]. Biases without positions, of dense layers, are in no map. Before psi all terms together
    are the logit: see `full_gradient_terms`. Cost: one forward and K backward passes, and memory for all of the
    model's activations.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K), never negative, float32.
    """
    check_size(tf.convert_to_tensor(keras.tree.flatten(inputs)[0]))
    logits, terms = full_gradient_terms(model, inputs, indices)
    size = tuple(terms[0].shape[1:-2])
    if not size:
        raise InputError(
            f"full_gradients are maps of images, and this model reads rows of {terms[0].shape[1]} features: use "
            "gradients or integrated_gradients, or full_gradient_terms, which makes no map"
        )
    spatial = [term for term in terms if len(term.shape) == len(terms[0].shape)]
    return logits, tf.add_n([_psi(term, size) for term in spatial])


def full_gradient_terms(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    r"""Eq. 4 of Srinivas & Fleuret: the logit as a sum of terms.

    The bias of a step f at the signal z is what it adds to its linear part, $f(z) - J_f(z) z$: the bias of a
    convolution or dense layer, $\beta - \mu \gamma / \sqrt{\sigma^2 + \epsilon}$ of a normalisation, f(z) - f'(z) z of
    an activation that is not piecewise linear, -ab of a product.

    Returns:
        The units' logits (N, K), and the terms, the input's first: (N, *positions, C, K) each, in the shape of the
        input or of a step's output. Their total over everything but N and K is the logit.
    """
    exposed, images, indices = as_single_input(model, inputs, indices)
    if indices.shape[1] is not None and indices.shape[1] <= UNROLLED_UNITS:
        return _terms(exposed, images, indices)
    columns = tf.transpose(indices)[..., tf.newaxis]
    logits, terms = _terms(exposed, images, columns[0])
    signature = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), (logits, terms))
    logits, terms = tf.map_fn(
        lambda column: _terms(exposed, images, column), columns, parallel_iterations=1, fn_output_signature=signature
    )
    return _last_axis(logits), [_last_axis(term) for term in terms]


class _Bias(NamedTuple):
    """What a step adds of its own, and the signal behind it."""

    slot: Slot
    value: tf.Tensor


def _terms(exposed: Exposed, images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    graph, logits = unfuse(exposed.graph), exposed.head.output_slots[0]
    steps = graph.ancestors([logits])
    biases: list[_Bias] = []
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(images)
        values = dict(zip((slot.index for slot in graph.inputs), as_inputs(exposed, images), strict=True))
        for step in steps:
            run_steps([step], values)
            with tape.stop_recording():
                value = _bias(step, values)
            if value is not None:
                biases.append(_Bias(step.outputs[0], value))
        scores = tf.gather(tf.cast(values[logits.index], tf.float32), indices, batch_dims=1)
        columns = tf.unstack(scores, axis=1)
    sources = [images, *(values[bias.slot.index] for bias in biases)]
    factors = [images, *(tf.cast(bias.value, tf.float32) for bias in biases)]
    zero = tf.UnconnectedGradients.ZERO
    derivatives = [tape.gradient(column, sources, unconnected_gradients=zero) for column in columns]
    terms = [
        tf.stack([factor * tf.cast(gradient, tf.float32) for gradient in one_source], axis=-1)
        for factor, *one_source in zip(factors, *derivatives, strict=True)
    ]
    return scores, terms


def _bias(step: Step, values: dict[int, tf.Tensor]) -> tf.Tensor | None:
    """f(z) - J_f(z) z; in closed form where it is known, since a difference would lose digits. None if it is zero."""
    layer: Any = getattr(step.operation, "layer", step.operation)
    kind = type(layer).__name__
    if _adds_nothing(step, layer):
        return None
    if heads.has_kernel(step):
        return tf.cast(layer.bias, tf.float32)
    if kind == "BatchNormalization":
        return _bias_of_normalization(layer)
    if kind == "Rescaling":
        return tf.reshape(tf.cast(layer.offset, tf.float32), [-1])
    return _bias_by_derivative(step, values)


def _adds_nothing(step: Step, layer: Any) -> bool:
    if heads.has_kernel(step):
        return getattr(layer, "bias", None) is None
    if type(layer).__name__ == "ReLU":
        return layer.max_value is None and not layer.threshold
    homogeneous = type(layer).__name__ in _HOMOGENEOUS or heads.same_at_inference(step)
    return homogeneous or activation_name(step) in ("relu", "linear")


def _bias_of_normalization(layer: Any) -> tf.Tensor:
    scale = tf.math.rsqrt(tf.cast(layer.moving_variance, tf.float32) + layer.epsilon)
    gamma = tf.cast(layer.gamma, tf.float32) if layer.scale else 1.0
    beta = tf.cast(layer.beta, tf.float32) if layer.center else 0.0
    # A signal's rank is in its input_spec; a bias along the last axis needs no other axes to broadcast.
    behind = layer.input_spec.ndim - 1 - layer.axis % layer.input_spec.ndim
    return tf.reshape(beta - tf.cast(layer.moving_mean, tf.float32) * gamma * scale, [-1, *[1] * behind])


def _bias_by_derivative(step: Step, values: dict[int, tf.Tensor]) -> tf.Tensor | None:
    """f(z) - J_f(z) z, with the product of Jacobian and signal by forward-mode differentiation."""
    slots = {slot.index: slot for slot in step.inputs}
    signals = {index: values[index] for index in slots if values[index].dtype.is_floating}
    if not signals:
        return None
    with tf.autodiff.ForwardAccumulator(list(signals.values()), list(signals.values())) as accumulator:
        inner = {index: values[index] for index in slots}
        run_steps([step], inner)
    output = inner[step.outputs[0].index]
    linear = accumulator.jvp(output, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.cast(output, tf.float32) - tf.cast(linear, tf.float32)


def _psi(term: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """abs, rescale each channel to [0, 1], sum the channels, upsample: (N, *size, K)."""
    positions = list(range(1, len(term.shape) - 2))
    rescaled = tf.reduce_sum(filters.normalize(tf.abs(term), axis=positions), axis=-2)
    # Upsampling is linear: channels are added up before it, so that it is done once.
    return filters.resize_maps(rescaled, size)


def _last_axis(values: tf.Tensor) -> tf.Tensor:
    """(K, N, ..., 1) as (N, ..., K)."""
    return tf.transpose(values[..., 0], [*range(1, len(values.shape) - 1), 0])

"""Saliency maps: gradients of a unit with respect to the input itself.

The functions have the form of those in `cams`; their maps have the input's height and width.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from explainers.errors import InputError
from explainers.inspection import Exposed, as_inputs, ensure_exposed
from explainers.methods.signals import UNROLLED_UNITS, as_indices


def gradients(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Saliency: how strongly each pixel moves a unit's logit.

    $M_{ij} = \max_c \left| \partial y / \partial x_{ijc} \right|$ (Simonyan et al., "Deep Inside Convolutional
    Networks", 2013, Sec. 3, https://arxiv.org/abs/1312.6034). Needs no spatial signal: any differentiable model with
    one input will do. Cost: one forward and K backward passes through the whole model.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K), never negative, float32.
    """
    logits, derivatives = input_gradients(model, inputs, indices)
    magnitudes = tf.abs(derivatives)
    # A row of features has no channels: each feature keeps a value of its own.
    return logits, magnitudes if len(magnitudes.shape) == 3 else tf.reduce_max(magnitudes, axis=-2)


def input_gradients(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The units' logits (N, K), and dy/dx, signed, (N, H, W, C, K), both float32."""
    exposed = ensure_exposed(model, spatial=False)
    (images,) = _single_input(exposed, inputs)
    images = tf.cast(images, tf.float32)
    if indices is None:
        indices = tf.tile(tf.range(exposed.n_classes)[tf.newaxis], [tf.shape(images)[0], 1])
    indices = as_indices(indices)
    if indices.shape[1] is None or indices.shape[1] > UNROLLED_UNITS:
        return _one_unit_at_a_time(exposed, images, indices)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(images)
        scores = tf.gather(_logits(exposed, images), indices, batch_dims=1)
        columns = tf.unstack(scores, axis=1)
    derivatives = [tape.gradient(y, images, unconnected_gradients=tf.UnconnectedGradients.ZERO) for y in columns]
    return scores, tf.stack(derivatives, axis=-1)


def _one_unit_at_a_time(exposed: Exposed, images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    def differentiate(column: tf.Tensor) -> tf.Tensor:
        _, derivatives = input_gradients(exposed, images, column[:, tf.newaxis])
        return derivatives[..., 0]

    derivatives = tf.map_fn(differentiate, tf.transpose(indices), fn_output_signature=tf.float32)
    scores = tf.gather(_logits(exposed, images), indices, batch_dims=1)
    return scores, tf.transpose(derivatives, [*range(1, len(derivatives.shape)), 0])


def _logits(exposed: Exposed, images: tf.Tensor) -> tf.Tensor:
    return tf.cast(exposed.head(exposed.split(as_inputs(exposed, images))), tf.float32)


def _single_input(exposed: Exposed, inputs: tf.Tensor) -> list[tf.Tensor]:
    flat = keras.tree.flatten(inputs)
    if len(flat) != 1 or len(exposed.split.input_slots) != 1:
        raise InputError(
            f"gradients with respect to the input need a model with one, and this has {len(exposed.split.input_slots)}"
        )
    dtype = exposed.split.input_slots[0].dtype
    if not tf.as_dtype(dtype).is_floating:
        raise InputError(f"gradients with respect to the input need a floating-point one, and this model reads {dtype}")
    return flat

"""What methods of the CAM family share: one forward pass, and one gradient that is taken through the head alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from explainers.errors import InputError
from explainers.inspection import Exposed, as_inputs, ensure_exposed

# Up to so many units a gradient each is written out in the program; above, a loop keeps program and memory small.
UNROLLED_UNITS = 8


@dataclass(frozen=True)
class Signals:
    """What a CAM is computed from, for n images and k units of each."""

    activations: tf.Tensor  # A: (n, *positions, C) float32
    gradients: Any  # g = dy/dA: (n, k, *positions, C) float32; None for methods that do not need it
    weights: Any  # the classifier's kernel for each unit: (n, k, C) float32; None likewise

    @property
    def positions(self) -> list[int]:
        """The axes of `gradients` that hold positions."""
        return list(range(2, len(self.activations.shape)))

    @property
    def image_positions(self) -> list[int]:
        """The axes of `activations` that hold positions."""
        return list(range(1, len(self.activations.shape) - 1))


Combine = Callable[[Signals], tf.Tensor]  # -> raw maps (n, *positions, k)


def explain_signals(
    combine: Combine,
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None,
    *,
    gradients: bool,
    weights: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs the model once and combines its signals to maps.

    Args:
        combine: the method's algebra.
        model: exposed, or a model that can be exposed with nothing named.
        inputs: what the model reads.
        indices: (n, k) units to explain, one row an image; None for every unit.
        gradients: whether `combine` reads dy/dA.
        weights: whether `combine` reads the classifier's kernel.

    Returns:
        The logits of the units, (n, k), and their raw maps, (n, *positions, k), both float32.
    """
    exposed = ensure_exposed(model)
    signals = keras.tree.flatten(exposed.split(as_inputs(exposed, inputs)))
    if indices is None:
        units = tf.range(exposed.n_classes)[tf.newaxis]
        indices = tf.tile(units, [tf.shape(signals[0])[0], 1])
    indices = as_indices(indices)
    if gradients and (indices.shape[1] is None or indices.shape[1] > UNROLLED_UNITS):
        return _one_unit_at_a_time(combine, exposed, signals, indices)
    logits, gradient = differentiate_head(exposed, signals, lambda _: indices, needed=gradients)
    kernel = gather_weights(exposed, indices) if weights else None
    maps = combine(Signals(tf.cast(signals[0], tf.float32), gradient, kernel))
    return tf.gather(logits, indices, batch_dims=1), maps


def differentiate_head(
    exposed: Exposed,
    signals: list[tf.Tensor],
    choose: Callable[[tf.Tensor], tf.Tensor],
    *,
    needed: bool = True,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The logits, and the gradient of chosen ones with respect to the activations.

    Only the head is taped: the forward pass through the stem, nearly all of the work, stays as fast as prediction.

    Args:
        exposed: the model.
        signals: what the head reads, activations first.
        choose: maps the logits (n, L) to the units to differentiate, (n, k) with k known.
        needed: False skips the gradient.

    Returns:
        Logits (n, L) and dy/dA (n, k, *positions, C), float32; None in place of the gradient if it is not needed.
    """
    if not needed:
        return tf.cast(exposed.head(signals), tf.float32), None
    # Squares and sums of float16 activations overflow, so the gradient is taken in float32.
    activations = tf.cast(signals[0], tf.float32)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(activations)
        logits = tf.cast(exposed.head([tf.cast(activations, signals[0].dtype), *signals[1:]]), tf.float32)
        scores = tf.unstack(tf.gather(logits, choose(logits), batch_dims=1), axis=1)
    # The images of a batch do not see each other, so the gradient of a sum over them holds each image's own.
    columns = [tape.gradient(s, activations, unconnected_gradients=tf.UnconnectedGradients.ZERO) for s in scores]
    return logits, tf.stack(columns, axis=1)


def gather_weights(exposed: Exposed, indices: tf.Tensor) -> tf.Tensor:
    """The classifier's kernel for the units `indices` (n, k): (n, k, C) float32."""
    assert exposed.class_kernel is not None
    return tf.gather(tf.transpose(exposed.class_kernel()), indices)


def as_indices(indices: tf.Tensor) -> tf.Tensor:
    """Units as an int32 tensor (n, k).

    Raises:
        InputError: they are not integers, or not one row an image.
    """
    indices = tf.convert_to_tensor(indices)
    if not indices.dtype.is_integer:
        raise InputError(f"units are integers, and these are {indices.dtype.name}: cast the indices to int32")
    if len(indices.shape) != 2:
        raise InputError(
            f"units have the shape (N, K), one row an image, and these have {tuple(indices.shape)}: "
            "for one unit an image write y[:, np.newaxis]"
        )
    return tf.cast(indices, tf.int32)


def _one_unit_at_a_time(
    combine: Combine, exposed: Exposed, signals: list[tf.Tensor], indices: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    activations = tf.cast(signals[0], tf.float32)

    def explain_column(column: tf.Tensor) -> tf.Tensor:
        _, gradient = differentiate_head(exposed, signals, lambda _: column[:, tf.newaxis])
        return combine(Signals(activations, gradient, None))[..., 0]

    maps = tf.map_fn(explain_column, tf.transpose(indices), fn_output_signature=tf.float32)
    logits = tf.cast(exposed.head(signals), tf.float32)
    last = len(activations.shape) - 1
    return tf.gather(logits, indices, batch_dims=1), tf.transpose(maps, [*range(1, last + 1), 0])

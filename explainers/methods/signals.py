"""What methods of the CAM family share: one forward pass, and one gradient that is taken through the head alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from explainers.errors import InputError
from explainers.inspection import Exposed, as_inputs, ensure_exposed
from explainers.methods.chunks import sizes_of

# Up to so many units a gradient each is written out in the program; above, a loop keeps program and memory small.
UNROLLED_UNITS = 8


@dataclass(frozen=True)
class Signals:
    """What a CAM is computed from, for n images and k units of each."""

    activations: tf.Tensor  # A: (n, *positions, C) float32
    units: tf.Tensor  # (n, k) int32
    # g = dy/dA: (n, k, *positions, C) float32, or with one position where it is the same at all of them; None for
    # methods that do not need it.
    gradients: Any = None
    weights: Any = None  # the classifier's kernel for each unit: (n, k, C) float32; None likewise

    @property
    def positions(self) -> list[int]:
        """The axes of `gradients` that hold positions."""
        return list(range(2, len(self.activations.shape)))

    @property
    def image_positions(self) -> list[int]:
        """The axes of `activations` that hold positions."""
        return list(range(1, len(self.activations.shape) - 1))

    @property
    def n_positions(self) -> tf.Tensor:
        """Z, the number of positions, as a float32 scalar."""
        return count_positions(self.activations)

    def sum(self, values: tf.Tensor) -> tf.Tensor:
        """The sum over positions of something that is shaped like `gradients`: (n, k, C)."""
        if self._one_position(values):
            return self.n_positions * tf.reshape(values, [*sizes_of(values)[:2], sizes_of(values)[-1]])
        return tf.reduce_sum(values, axis=self.positions)

    def mean_product(self, factors: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """The mean over positions of `factors` (n, *positions, C) times a tensor shaped like `gradients`: (n, k, C)."""
        if self._one_position(values):
            mean = tf.reduce_mean(factors, axis=self.image_positions)[:, tf.newaxis]
            return mean * tf.reshape(values, [*sizes_of(values)[:2], sizes_of(values)[-1]])
        return tf.reduce_mean(factors[:, tf.newaxis] * values, axis=self.positions)

    def _one_position(self, values: tf.Tensor) -> bool:
        return all(values.shape[axis] == 1 for axis in self.positions)


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
    """Runs the model once and combines its signals to the maps of one method.

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
    indices = as_indices(exposed, indices, signals[0])
    logits, _, maps = combine_methods(
        {"": combine}, exposed, signals, lambda _: indices, indices.shape[1], gradients=gradients, weights=weights
    )
    return tf.gather(logits, indices, batch_dims=1), maps[""]


def combine_methods(
    combines: dict[str, Combine],
    exposed: Exposed,
    signals: list[tf.Tensor],
    choose: Callable[[tf.Tensor], tf.Tensor],
    n_units: int | None,
    *,
    gradients: bool,
    weights: bool,
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """The maps of several methods from the same signals, with one gradient through the head for all of them.

    Args:
        combines: the algebra of each method.
        exposed: the model.
        signals: what the head reads, activations first.
        choose: maps the logits (n, L) to the units to explain, (n, k).
        n_units: k, where it is known.
        gradients: whether any method reads dy/dA.
        weights: whether any method reads the classifier's kernel.

    Returns:
        Logits (n, L), the units (n, k), and each method's raw maps (n, *positions, k).
    """
    if gradients and must_loop(exposed, n_units):
        logits = tf.cast(exposed.head(signals), tf.float32)
        units = choose(logits)
        return logits, units, _one_unit_at_a_time(combines, exposed, signals, units, weights)
    logits, gradient = differentiate_head(exposed, signals, choose, needed=gradients)
    units = choose(logits)
    kernel = gather_weights(exposed, units) if weights else None
    shared = Signals(tf.cast(signals[0], tf.float32), units, gradient, kernel)
    return logits, units, {name: combine(shared) for name, combine in combines.items()}


def must_loop(exposed: Exposed, n_units: int | None) -> bool:
    """Whether the gradients of so many units would not fit in memory together, and are taken one after the other."""
    return not exposed.linear_head and (n_units is None or n_units > UNROLLED_UNITS)


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
        Logits (n, L) and dy/dA (n, k, *positions, C), float32; with one position if the head is linear, since the
        gradient is then the same at all of them; None in its place if it is not needed.
    """
    if not needed or exposed.linear_head:
        logits = tf.cast(exposed.head(signals), tf.float32)
        return logits, _closed_form(exposed, signals[0], choose(logits)) if needed else None
    # Squares and sums of float16 gradients overflow: the tape casts them to float32 on their way out of the head.
    activations = tf.cast(signals[0], tf.float32)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(activations)
        logits = tf.cast(exposed.head([tf.cast(activations, signals[0].dtype), *signals[1:]]), tf.float32)
        scores = tf.unstack(tf.gather(logits, choose(logits), batch_dims=1), axis=1)
    # The images of a batch do not see each other, so the gradient of a sum over them holds each image's own.
    columns = [tape.gradient(s, activations, unconnected_gradients=tf.UnconnectedGradients.ZERO) for s in scores]
    return logits, tf.stack(columns, axis=1)


def _closed_form(exposed: Exposed, activations: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
    """dy/dA behind a global average and a linear classifier: its kernel over the number of positions."""
    weights = gather_weights(exposed, units) / count_positions(activations)
    sizes = sizes_of(weights)
    return tf.reshape(weights, [*sizes[:2], *[1] * (len(activations.shape) - 2), sizes[2]])


def count_positions(activations: tf.Tensor) -> tf.Tensor:
    """Z of activations (n, *positions, C), a float32 scalar."""
    return tf.cast(tf.reduce_prod(tf.shape(activations)[1:-1]), tf.float32)


def gather_weights(exposed: Exposed, indices: tf.Tensor) -> tf.Tensor:
    """The classifier's kernel for the units `indices` (n, k): (n, k, C) float32."""
    assert exposed.class_kernel is not None
    # Few columns are gathered and then turned, not a thousand turned at each call.
    return tf.transpose(tf.gather(exposed.class_kernel(), indices, axis=1), [1, 2, 0])


def as_indices(exposed: Exposed, indices: tf.Tensor | None, images: tf.Tensor) -> tf.Tensor:
    """Units as an int32 tensor (n, k); None stands for all units of every image.

    Raises:
        InputError: they are not integers, not one row an image, or not among the model's.
    """
    if indices is None:
        return tf.tile(tf.range(exposed.n_classes)[tf.newaxis], [tf.shape(images)[0], 1])
    indices = tf.convert_to_tensor(indices)
    if not indices.dtype.is_integer:
        raise InputError(f"units are integers, and these are {indices.dtype.name}: cast the indices to int32")
    if len(indices.shape) != 2:
        raise InputError(
            f"units have the shape (N, K), one row an image, and these have {tuple(indices.shape)}: "
            "for one unit an image write y[:, np.newaxis]"
        )
    if not tf.is_symbolic_tensor(indices):  # a program cannot raise; outside of one, a GPU would return zeros
        wrong = indices.numpy()[(indices.numpy() < 0) | (indices.numpy() >= exposed.n_classes)]
        if wrong.size:
            raise InputError(f"the model has the units 0 to {exposed.n_classes - 1}, and one asked for is {wrong[0]}")
    return tf.cast(indices, tf.int32)


def _one_unit_at_a_time(
    combines: dict[str, Combine], exposed: Exposed, signals: list[tf.Tensor], units: tf.Tensor, weights: bool
) -> dict[str, tf.Tensor]:
    activations = tf.cast(signals[0], tf.float32)

    def explain_column(column: tf.Tensor) -> dict[str, tf.Tensor]:
        unit = column[:, tf.newaxis]
        _, gradient = differentiate_head(exposed, signals, lambda _: unit)
        shared = Signals(activations, unit, gradient, gather_weights(exposed, unit) if weights else None)
        return {name: combine(shared)[..., 0] for name, combine in combines.items()}

    maps = tf.map_fn(
        explain_column,
        tf.transpose(units),
        parallel_iterations=1,  # or the gradients of several units would be in memory at once
        fn_output_signature=dict.fromkeys(combines, tf.float32),
    )
    last = len(activations.shape) - 1
    return {name: tf.transpose(values, [*range(1, last + 1), 0]) for name, values in maps.items()}

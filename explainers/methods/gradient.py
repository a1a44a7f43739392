"""Maps of the input itself: gradients of a unit with respect to every pixel, taken once or at many points.

The functions have the form of those in `cams`; their maps have the input's height and width. They need no spatial
signal: any differentiable model with one input will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from explainers.errors import InputError
from explainers.inspection import Exposed, as_inputs, ensure_exposed
from explainers.methods.chunks import MAX_ROWS, as_rows, from_rows, in_groups, repeat, sum_variants
from explainers.methods.noise import as_seeds, normals
from explainers.methods.signals import UNROLLED_UNITS, as_indices

Forward = Callable[[tf.Tensor], tf.Tensor]  # images (n, *shape) -> logits (n, L) float32


def gradients(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Saliency: how strongly each pixel moves a unit's logit.

    $M_{ij} = \max_c \left| \partial y / \partial x_{ijc} \right|$ (Simonyan et al., "Deep Inside Convolutional
    Networks", 2013, Sec. 3, https://arxiv.org/abs/1312.6034). Cost: one forward and K backward passes through the whole
    model.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K), never negative, float32.
    """
    logits, derivatives = input_gradients(model, inputs, indices)
    return logits, largest_magnitude(derivatives)


def input_x_gradient(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Input x gradient: what each pixel contributes to a unit's logit, to first order.

    $M_{ij} = \sum_c x_{ijc} \, \partial y / \partial x_{ijc}$ (Shrikumar et al., "Not Just a Black Box", 2016,
    https://arxiv.org/abs/1605.01713). For a network of ReLUs without biases its sum is the logit. x is what the model
    reads, so a pixel of value 0 there (grey, for inputs in [-1, 1]) contributes nothing. Cost: as `gradients`.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K), signed, float32.
    """
    exposed, images, indices = as_single_input(model, inputs, indices)
    logits, derivatives = differentiate_input(forward_of(exposed), images, indices)
    return logits, sum_channels(images[..., tf.newaxis] * derivatives)


def integrated_gradients(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None = None,
    *,
    baseline: Any = 0.0,
    steps: int = 32,
    max_rows: int = MAX_ROWS,
    return_gap: bool = False,
) -> tuple[tf.Tensor, ...]:
    r"""Integrated gradients: the gradient, averaged over the way from a baseline to the image.

    $M_{ij} = \sum_c (x - x')_{ijc} \int_0^1 \frac{\partial y}{\partial x_{ijc}}(x' + t (x - x')) \, dt$
    (Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, Eq. 1,
    https://arxiv.org/abs/1703.01365), the integral by the midpoint rule. Its sum tends to y(x) - y(x'); how far it is
    off is the completeness gap. Cost: `steps` forward and backward passes for each unit.

    Args:
        model: a classifier with one floating-point input.
        inputs: (N, H, W, C), as the model reads them.
        indices: (N, K) units; None for all.
        baseline: x': a number, or an array that broadcasts to one image, in the model's own units.
        steps: points of the integral.
        max_rows: rows of one pass.
        return_gap: whether to return the gap as a third value.

    Returns:
        The units' logits (N, K), maps (N, H, W, K), signed, and on demand the gaps (N, K): sum of the map minus
        (y(x) - y(x')). All float32.
    """
    check_count("steps", steps)
    exposed, images, indices = as_single_input(model, inputs, indices)
    check_size(images)
    start = _as_baseline(baseline, images.shape[1:])
    forward = forward_of(exposed)

    def explain(images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        way = images - start

        def differentiate(j: tf.Tensor) -> tf.Tensor:
            places = (tf.cast(j, tf.float32) + 0.5) / steps
            rows = as_rows(start + tf.reshape(places, [-1, *[1] * len(way.shape)]) * way)
            _, derivatives = differentiate_input(forward, rows, repeat(indices, j.shape[0]))
            return from_rows(derivatives, j.shape[0])

        mean = sum_variants(differentiate, steps, images.shape[0], max_rows) / steps
        maps = sum_channels(way[..., tf.newaxis] * mean)
        scores = tf.gather(forward(images), indices, batch_dims=1)
        base = tf.gather(tf.repeat(forward(start[tf.newaxis]), tf.shape(images)[0], 0), indices, batch_dims=1)
        total = tf.reduce_sum(maps, axis=list(range(1, len(maps.shape) - 1)))
        return scores, maps, total - (scores - base)

    results = in_groups(explain, max_rows, images, indices)
    return tuple(results) if return_gap else tuple(results)[:2]


def smoothgrad(
    model: keras.Model,
    inputs: tf.Tensor,
    indices: tf.Tensor | None = None,
    *,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    seeds: tf.Tensor | None = None,
    max_rows: int = MAX_ROWS,
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""SmoothGrad: the gradient, averaged over noisy copies of the image.

    $M_{ij} = \max_c \left| \frac{1}{n} \sum_{s=1}^n \frac{\partial y}{\partial x_{ijc}}(x + \epsilon_s) \right|, \quad
    \epsilon_s \sim N(0, \sigma^2)$ (Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, Sec. 3.1,
    https://arxiv.org/abs/1706.03825). Gradients are averaged with their signs. Cost: `samples` forward and backward
    passes for each unit.

    Args:
        model: a classifier with one floating-point input.
        inputs: (N, H, W, C), as the model reads them.
        indices: (N, K) units; None for all.
        samples: n.
        noise: sigma, as a fraction of the image's own range, max x - min x.
        seed: another one gives other noise.
        seeds: (N, 2) int, one pair an image, in place of those that follow from its content and from `seed`.
        max_rows: rows of one pass.

    Returns:
        The units' logits at the clean image (N, K), and maps (N, H, W, K), never negative, float32.
    """
    check_count("samples", samples)
    check_noise(noise)
    exposed, images, indices = as_single_input(model, inputs, indices)
    forward = forward_of(exposed)

    def explain(images: tf.Tensor, indices: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def differentiate(j: tf.Tensor) -> tf.Tensor:
            rows = as_rows(tf.stack([add_noise(images, noise, seeds, number) for number in tf.unstack(j)]))
            _, derivatives = differentiate_input(forward, rows, repeat(indices, j.shape[0]))
            return from_rows(derivatives, j.shape[0])

        mean = sum_variants(differentiate, samples, images.shape[0], max_rows) / samples
        return tf.gather(forward(images), indices, batch_dims=1), largest_magnitude(mean)

    return in_groups(explain, max_rows, images, indices, as_seeds(seeds, images, seed))


def input_gradients(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The units' logits (N, K), and dy/dx, signed, (N, H, W, C, K), both float32."""
    exposed, images, indices = as_single_input(model, inputs, indices)
    return differentiate_input(forward_of(exposed), images, indices)


def differentiate_input(forward: Forward, images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The units' logits (n, k), and their gradients with respect to the images, (n, *shape, k), both float32."""
    if indices.shape[1] is None or indices.shape[1] > UNROLLED_UNITS:
        return _one_unit_at_a_time(forward, images, indices)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(images)
        scores = tf.gather(forward(images), indices, batch_dims=1)
        columns = tf.unstack(scores, axis=1)
    derivatives = [tape.gradient(y, images, unconnected_gradients=tf.UnconnectedGradients.ZERO) for y in columns]
    return scores, tf.stack(derivatives, axis=-1)


def forward_of(exposed: Exposed) -> Forward:
    """The model from its input to its logits."""
    return lambda images: tf.cast(exposed.head(exposed.split(as_inputs(exposed, images))), tf.float32)


def as_single_input(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None, *, differentiable: bool = True
) -> tuple[Exposed, tf.Tensor, tf.Tensor]:
    """The model exposed, its one input as float32, and the units as int32.

    Raises:
        InputError: the model has several inputs, or one that has no gradient where one is needed.
    """
    exposed = ensure_exposed(model, spatial=False)
    flat = keras.tree.flatten(inputs)
    if differentiable:
        check_input(exposed)
    if len(flat) != 1 or len(exposed.split.input_slots) != 1:
        raise InputError(f"maps of the input need a model with one, and this has {len(exposed.split.input_slots)}")
    images = tf.cast(flat[0], tf.float32)
    return exposed, images, as_indices(exposed, indices, images)


def largest_magnitude(derivatives: tf.Tensor) -> tf.Tensor:
    """max_c |dy/dx_c| of (n, *positions, C, k); a row of features has no channels: each keeps a value of its own."""
    magnitudes = tf.abs(derivatives)
    return magnitudes if len(magnitudes.shape) == 3 else tf.reduce_max(magnitudes, axis=-2)


def sum_channels(values: tf.Tensor) -> tf.Tensor:
    """The sum over channels of (n, *positions, C, k); a row of features has none."""
    return values if len(values.shape) == 3 else tf.reduce_sum(values, axis=-2)


def add_noise(images: tf.Tensor, noise: float, seeds: tf.Tensor, j: tf.Tensor | int) -> tf.Tensor:
    """Noisy copy number `j` of each image: normal, with `noise` times the image's own range as deviation."""
    axes = list(range(1, len(images.shape)))
    check_size(images)
    extent = tf.reduce_max(images, axes, keepdims=True) - tf.reduce_min(images, axes, keepdims=True)
    return images + noise * extent * normals(seeds, j, images.shape[1:])


def check_input(exposed: Exposed) -> None:
    """Refuses models without a single floating-point input.

    Raises:
        InputError: with the reason.
    """
    slots = exposed.split.input_slots
    if len(slots) != 1:
        raise InputError(f"maps of the input need a model with one, and this has {len(slots)}")
    if not tf.as_dtype(slots[0].dtype).is_floating:
        raise InputError(
            f"gradients with respect to the input need a floating-point one, and this model reads {slots[0].dtype}"
        )


def check_size(images: tf.Tensor) -> None:
    """Refuses images whose size is open when a program is traced."""
    if None in images.shape[1:]:
        raise InputError(f"this method needs images of a known size, and these have the shape {images.shape}")


def check_count(name: str, value: int) -> None:
    """Refuses a number of steps, samples or masks that is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is an integer of at least 1, not {value!r}")


def check_noise(noise: float) -> None:
    """Refuses a deviation that is none."""
    if not isinstance(noise, (int, float)) or not 0 <= noise < float("inf"):
        raise InputError(f"noise is a fraction of the image's range, at least 0, not {noise!r}")


def _as_baseline(baseline: Any, shape: tf.TensorShape) -> tf.Tensor:
    start = tf.cast(tf.convert_to_tensor(baseline), tf.float32)
    fits = len(start.shape) <= len(shape) and all(
        own in (1, size) for own, size in zip(reversed(start.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise InputError(f"a baseline broadcasts to one image, {tuple(shape)}, and this one is {tuple(start.shape)}")
    return tf.broadcast_to(start, shape)


def _one_unit_at_a_time(forward: Forward, images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    def differentiate(column: tf.Tensor) -> tf.Tensor:
        _, derivatives = differentiate_input(forward, images, column[:, tf.newaxis])
        return derivatives[..., 0]

    derivatives = tf.map_fn(
        differentiate,
        tf.transpose(indices),
        parallel_iterations=1,  # or the backward passes of several units would be in memory at once
        fn_output_signature=tf.float32,
    )
    scores = tf.gather(forward(images), indices, batch_dims=1)
    return scores, tf.transpose(derivatives, [*range(1, len(derivatives.shape)), 0])

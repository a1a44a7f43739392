"""Methods made of other methods: averages over noisy, mirrored and resized copies of the image."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from explainers.errors import InputError, MethodError
from explainers.filters import resize_maps
from explainers.inspection import Exposed, as_inputs
from explainers.methods.gradient import add_noise, as_single_input, check_count, check_noise, check_size
from explainers.methods.noise import as_seeds

Function = Callable[..., tuple[tf.Tensor, tf.Tensor]]


def smooth(method: Function, repetitions: int = 20, noise: float = 0.1, seed: int = 0) -> Function:
    r"""A method, averaged over noisy copies of the image.

    $M = \frac{1}{n} \left( m(x) + \sum_{s=1}^{n-1} m(x + \epsilon_s) \right), \epsilon_s \sim N(0, \sigma^2)$, after
    SmoothGrad (Smilkov et al. 2017, https://arxiv.org/abs/1706.03825), for raw maps of any method. One pass is clean:
    one repetition is the method itself. Cost: `repetitions` times the method's.

    Args:
        method: a method's function, such as `cams.gradcam`.
        repetitions: n.
        noise: sigma, as a fraction of the image's own range.
        seed: another one gives other noise, which else depends on nothing but the image's content.

    Returns:
        A method of the same form; its logits are those of the clean image. It takes the method's own parameters, and
        `seeds` (N, 2) int in place of those of the images.
    """
    _check_function(method)
    check_count("repetitions", repetitions)
    check_noise(noise)

    @functools.wraps(method)
    def smoothed(
        model: keras.Model,
        inputs: tf.Tensor,
        indices: tf.Tensor | None = None,
        *,
        seeds: tf.Tensor | None = None,
        **params: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        exposed, images, indices = as_single_input(model, inputs, indices, differentiable=False)
        own_seeds = as_seeds(seeds, images, seed)
        logits, maps = method(exposed, inputs, indices, **_pass_on(method, own_seeds, 0), **params)

        def add(total: tf.Tensor, j: tf.Tensor) -> tf.Tensor:
            noisy = add_noise(images, noise, own_seeds, j)
            return total + method(exposed, noisy, indices, **_pass_on(method, own_seeds, j), **params)[1]

        total = tf.foldl(add, tf.range(1, repetitions), maps, parallel_iterations=1) if repetitions > 1 else maps
        return logits, total / repetitions

    smoothed.__name__ = f"smooth_{method.__name__}"
    return smoothed


def tta(method: Function, scales: Sequence[float] = (0.5, 1.5, 2.0), hflip: bool = True) -> Function:
    """A method, averaged over resized and mirrored copies of the image (test-time augmentation).

    Every copy counts once: the image itself, each scale, and the mirror image of each where `hflip` is set. Maps are
    mirrored back and resized (bilinear) to the first one's size. Cost: (1 + scales) passes, twice with `hflip`;
    those of larger scales cost more.

    Args:
        method: a method's function, such as `cams.gradcam`.
        scales: factors of the image's height and width; () for a model that reads one size only.
        hflip: whether to add mirror images.

    Returns:
        A method of the same form and with the same parameters; its logits are those of the image itself.
    """
    _check_function(method)
    numbers = isinstance(scales, (tuple, list)) and all(isinstance(scale, (int, float)) for scale in scales)
    if not numbers or any(not scale > 0 for scale in scales):
        raise InputError(f"scales are factors above 0, such as (0.5,) or (), not {scales!r}")

    @functools.wraps(method)
    def augmented(
        model: keras.Model,
        inputs: tf.Tensor,
        indices: tf.Tensor | None = None,
        *,
        seeds: tf.Tensor | None = None,
        **params: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        exposed, images, indices = as_single_input(model, inputs, indices, differentiable=False)
        if len(images.shape) < 3:
            raise InputError(f"tta mirrors and resizes images, and this model reads rows of {images.shape[1]} features")
        check_size(images)
        params |= _pass_on(method, as_seeds(seeds, images, 0), 0)

        def explain(copy: tf.Tensor, mirrored: bool) -> tuple[tf.Tensor, tf.Tensor]:
            logits, maps = method(exposed, tf.reverse(copy, axis=[-2]) if mirrored else copy, indices, **params)
            return logits, tf.reverse(maps, axis=[-2]) if mirrored else maps

        mirrors = (False, True) if hflip else (False,)
        logits, maps = explain(images, False)
        size = tuple(maps.shape[1:-1])
        copies = [images, *(_rescale(images, scale) for scale in scales)]
        for copy in copies[1:]:
            _check_size(exposed, copy)
        passes = [
            explain(copy, mirrored)[1] for copy in copies for mirrored in mirrors if copy is not images or mirrored
        ]
        total = tf.add_n([maps, *(resize_maps(other, size) for other in passes)])
        return logits, total / (len(passes) + 1)

    augmented.__name__ = f"tta_{method.__name__}"
    return augmented


def _rescale(images: tf.Tensor, scale: float) -> tf.Tensor:
    return resize_maps(images, tuple(max(1, round(scale * side)) for side in images.shape[1:-1]))


def _check_size(exposed: Exposed, images: tf.Tensor) -> None:
    """Refuses models that cannot read images of another size, such as those that flatten their signal."""
    try:
        exposed.head(exposed.split(as_inputs(exposed, images)))
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise MethodError(
            f"tta resizes the image, and this model does not read {tuple(images.shape[1:-1])}: give scales=(), so that "
            "only mirror images are added"
        ) from error


def _check_function(method: Function) -> None:
    if not callable(method):
        raise InputError(f"a meta method is made of a method's function, such as cams.gradcam, not of {method!r}")


def _pass_on(method: Function, seeds: tf.Tensor, j: tf.Tensor | int) -> dict[str, tf.Tensor]:
    """Seeds for pass number `j` of a method that draws random numbers itself; else nothing."""
    if "seeds" not in inspect.signature(method, follow_wrapped=False).parameters:
        return {}
    # Not left to the method, which would hash the copy: its last bits differ between eager, graph and XLA.
    return {"seeds": seeds + tf.stack([0, tf.cast(j, tf.int32)])}

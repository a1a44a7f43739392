"""Guided backpropagation: a gradient that follows positive evidence only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from explainers import filters, heads
from explainers.errors import MethodError
from explainers.graph import Graph, run_steps
from explainers.inspection import Exposed, as_inputs, ensure_exposed
from explainers.methods.cams import gradcam
from explainers.methods.gradient import (
    Forward,
    as_single_input,
    check_input,
    check_size,
    differentiate_input,
    largest_magnitude,
)


def guided_backprop(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Guided backpropagation: the saliency map, with negative gradients stopped at every ReLU.

    A ReLU with input z passes the gradient R back as $1[z > 0] \, 1[R > 0] \, R$ (Springenberg et al., "Striving for
    Simplicity: The All Convolutional Net", 2014, Sec. 3.4, https://arxiv.org/abs/1412.6806); then, as in saliency,
    $M_{ij} = \max_c |\cdot|$. ReLU6 closes its gate above 6 too. The maps are sharp, and depend little on the unit and
    on the upper layers (Adebayo et al. 2018, https://arxiv.org/abs/1810.03292). Cost: as `gradients`.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K), never negative, float32.

    Raises:
        MethodError: the model has no ReLU.
    """
    exposed, images, indices = as_single_input(model, inputs, indices)
    check_guided(exposed)
    logits, derivatives = differentiate_input(_guided_forward(exposed), images, indices)
    return logits, largest_magnitude(derivatives)


def guided_gradcam(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Guided Grad-CAM: guided backpropagation where Grad-CAM sees evidence.

    $M = \mathrm{upsample}(\mathrm{relu}(L_{\mathrm{GradCAM}})) \odot M_{\mathrm{guided}}$ (Selvaraju et al. 2017,
    Sec. 3.2, https://arxiv.org/abs/1610.02391), bilinear. Cost: `guided_backprop` and `gradcam`.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K), never negative, float32.

    Raises:
        MethodError: the model has no ReLU.
    """
    exposed = ensure_exposed(model)
    check_size(tf.convert_to_tensor(keras.tree.flatten(inputs)[0]))
    logits, fine = guided_backprop(exposed, inputs, indices)
    _, coarse = gradcam(exposed, inputs, indices)
    return logits, filters.resize_maps(tf.nn.relu(coarse), tuple(fine.shape[1:-1])) * fine


def check_guided(exposed: Exposed) -> None:
    """Refuses models without a ReLU, where guided backpropagation is the plain gradient.

    Raises:
        InputError: there is no single floating-point input.
        MethodError: with the reason, and the methods that do fit.
    """
    check_input(exposed)
    if not any(heads.is_rectifier(step) for step in exposed.graph.steps):
        raise MethodError(
            "guided_backprop and guided_gradcam gate the gradient at ReLUs, and this model has none: use gradients, "
            "smoothgrad or integrated_gradients"
        )


class Guided:
    """A step that ends in a ReLU, with the second gate on its way back."""

    def __init__(self, operation: Callable[..., Any]):
        self.operation = operation

    def __call__(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        """What the step computes; the ReLU's own derivative is the first gate."""
        return _pass_positive_gradients(self.operation(*args, **kwargs))


@tf.custom_gradient
def _pass_positive_gradients(signal: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    return tf.identity(signal), tf.nn.relu


def _guided_forward(exposed: Exposed) -> Forward:
    graph = _guide(exposed.graph)
    logits = exposed.head.output_slots[0]
    steps = graph.ancestors([logits])

    def forward(images: tf.Tensor) -> tf.Tensor:
        inputs = as_inputs(exposed, images)
        values = {slot.index: tensor for slot, tensor in zip(graph.inputs, inputs, strict=True)}
        run_steps(steps, values)
        return tf.cast(values[logits.index], tf.float32)

    return forward


def _guide(graph: Graph) -> Graph:
    steps = (
        dataclasses.replace(step, operation=Guided(step.operation)) if heads.is_rectifier(step) else step
        for step in graph.steps
    )
    return dataclasses.replace(graph, steps=tuple(steps))

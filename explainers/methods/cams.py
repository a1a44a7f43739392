"""Class activation maps: sums of the channels of one activation, each method with its own weights.

Throughout, A is the activation (N, h, w, C), y a unit's logit (before any softmax), g = dy/dA its gradient, and
Z = h * w the number of positions. Every function here has the form

    logits, maps = method(model, inputs, indices=None)

with `model` exposed (or such that it can be exposed with nothing named), `inputs` as the model reads them, and
`indices` (N, K) int units to explain, one row an image (None: all of them). It returns the units' logits (N, K) and
their raw, signed maps (N, h, w, K), both float32, and can be traced by `tf.function`.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from explainers.errors import MethodError
from explainers.inspection import Exposed, ensure_exposed
from explainers.methods.signals import Signals, explain_signals


def cam(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""CAM: the channels, weighted by the classifier's own kernel.

    $M_c = \sum_k w_k^c A_k$, with neither bias nor ReLU (Zhou et al., "Learning Deep Features for Discriminative
    Localization", CVPR 2016, Eq. 2, https://arxiv.org/abs/1512.04150).

    The head must be a global average and one dense layer or 1x1 convolution, in either order. Then the mean of a map
    plus the classifier's bias is the logit. Cost: one forward pass.

    Raises:
        MethodError: the head has no such weights.
    """
    exposed = ensure_exposed(model)
    check_cam(exposed)
    return explain_signals(combine_cam, exposed, inputs, indices, gradients=False, weights=True)


def combine_cam(signals: Signals) -> tf.Tensor:
    """Eq. 2 of Zhou et al."""
    return weighted_sum(signals.activations, signals.weights)


def check_cam(exposed: Exposed) -> None:
    """Refuses models on which CAM is not defined.

    Raises:
        MethodError: with the reason, and the methods that do fit.
    """
    if exposed.class_kernel is None:
        raise MethodError(
            "cam needs a head of one global average pooling and one dense layer or 1x1 convolution, and this head "
            f"{exposed.why_no_cam}: use gradcam, which fits every head, and is CAM over Z where CAM exists"
        )


def gradcam(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Grad-CAM: the channels, weighted by the mean of their gradients.

    $M_c = \sum_k \alpha_k^c A_k, \quad \alpha_k^c = \frac{1}{Z} \sum_{ij} \frac{\partial y^c}{\partial A_{ijk}}$
    (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
    Eq. 1 and 2, https://arxiv.org/abs/1610.02391). The paper's ReLU is post-processing here, so that maps stay signed.

    On a head of global average and dense layer it is CAM / Z. Cost: one forward pass, and one backward pass through
    the head.
    """
    return explain_signals(combine_gradcam, model, inputs, indices, gradients=True)


def combine_gradcam(signals: Signals) -> tf.Tensor:
    """Eq. 1 and 2 of Selvaraju et al., before the ReLU."""
    return weighted_sum(signals.activations, tf.reduce_mean(signals.gradients, axis=signals.positions))


def weighted_sum(activations: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """sum_k weights_k A_k: activations (n, *positions, C) and weights (n, k, C) to maps (n, *positions, k)."""
    return tf.einsum("n...c,nkc->n...k", activations, weights)

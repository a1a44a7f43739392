"""Class activation maps: sums of the channels of one activation, each method with its own weights.

Throughout, A is the activation (N, h, w, C), y a unit's logit (before any softmax), g = dy/dA its gradient, and
Z = h * w the number of positions. Every function here has the form

    logits, maps = method(model, inputs, indices=None)

with `model` exposed (or such that it can be exposed with nothing named), `inputs` as the model reads them, and
`indices` (N, K) int units to explain, one row an image (None: all of them). It returns the units' logits (N, K) and
their raw, signed maps (N, h, w, K), both float32, and can be traced by `tf.function`.
"""

from __future__ import annotations

import math

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


def gradcampp(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Grad-CAM++: positive gradients, each position with a weight of its own.

    $M_c = \sum_k w_k^c A_k, \quad w_k^c = \sum_{ij} \alpha_{ijk} \, \mathrm{relu}(g_{ijk}), \quad
    \alpha_{ijk} = \frac{g_{ijk}^2}{2 g_{ijk}^2 + \sum_{ab} A_{abk} \, g_{ijk}^3}$
    (Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional Networks",
    WACV 2018, Eq. 11 and 19, https://arxiv.org/abs/1710.11063). The paper's factor exp(y) stands in every term and is
    left out: it scales the map, and overflows above y = 88. Cost: as Grad-CAM.
    """
    return explain_signals(combine_gradcampp, model, inputs, indices, gradients=True)


def combine_gradcampp(signals: Signals) -> tf.Tensor:
    """Eq. 11 and 19 of Chattopadhay et al., before the ReLU."""
    alpha = gradcampp_alpha(signals)
    return weighted_sum(signals.activations, signals.sum(alpha * tf.nn.relu(signals.gradients)))


def gradcampp_alpha(signals: Signals) -> tf.Tensor:
    """The alphas of Eq. 19, shaped like the gradients; 0 where the gradient is."""
    total = tf.reduce_sum(signals.activations, axis=signals.image_positions, keepdims=True)[:, tf.newaxis]
    # One factor g^2 less above and below, which would underflow for small gradients.
    return tf.where(signals.gradients != 0, tf.math.divide_no_nan(1.0, 2 + total * signals.gradients), 0)


def gradcampp_official(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Grad-CAM++ as its authors' program computes it, for comparison with results of theirs.

    The alphas of each channel are divided by their sum over the positions whose gradient is positive, as in the code
    that came with Chattopadhay et al. 2018 (arXiv:1710.11063), whose Eq. 19 has no such step. Cost: as Grad-CAM.
    """
    return explain_signals(combine_gradcampp_official, model, inputs, indices, gradients=True)


def combine_gradcampp_official(signals: Signals) -> tf.Tensor:
    """Eq. 19 of Chattopadhay et al. with alphas that add up to one where the gradient is positive."""
    alpha = gradcampp_alpha(signals)
    total = signals.sum(tf.where(signals.gradients > 0, alpha, 0))
    weights = signals.sum(alpha * tf.nn.relu(signals.gradients))
    return weighted_sum(signals.activations, tf.math.divide_no_nan(weights, total))


def hirescam(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""HiResCAM: every position with its own gradient.

    $M_c = \sum_k \frac{\partial y^c}{\partial A_k} \odot A_k$, without ReLU (Draelos & Carin, "Use HiResCAM instead of
    Grad-CAM for faithful explanations of convolutional neural networks", 2020, Eq. 4, https://arxiv.org/abs/2011.08891).

    Behind Flatten and one dense layer its sum plus the bias is the logit. Cost: as Grad-CAM.
    """
    return explain_signals(combine_hirescam, model, inputs, indices, gradients=True)


def combine_hirescam(signals: Signals) -> tf.Tensor:
    """Eq. 4 of Draelos & Carin."""
    return positional_sum(signals.activations, signals.gradients)


def xgradcam(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""XGrad-CAM: the channels, weighted by their gradients' mean over their own activation.

    $M_c = \sum_k w_k^c A_k, \quad w_k^c = \sum_{ij} \frac{A_{ijk}}{\sum_{ab} A_{abk}} g_{ijk}$
    (Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020, Eq. 8,
    https://arxiv.org/abs/2008.02312). A channel that adds up to zero weighs nothing. Cost: as Grad-CAM.
    """
    return explain_signals(combine_xgradcam, model, inputs, indices, gradients=True)


def combine_xgradcam(signals: Signals) -> tf.Tensor:
    """Eq. 8 of Fu et al., before the ReLU."""
    mean = tf.reduce_mean(signals.activations, axis=signals.image_positions)[:, tf.newaxis]
    size = tf.reduce_mean(tf.abs(signals.activations), axis=signals.image_positions)[:, tf.newaxis]
    weighted = signals.mean_product(signals.activations, signals.gradients)
    # Positive and negative activations may cancel: what is left is rounding, and dividing by it would explode.
    weights = tf.where(tf.abs(mean) > 1e-6 * size, tf.math.divide_no_nan(weighted, mean), 0)
    return weighted_sum(signals.activations, weights)


def layercam(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""LayerCAM: every position with its own positive gradient.

    $M_c = \sum_k \mathrm{relu}(g_k) \odot A_k$ (Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps
    for Localization", IEEE TIP 2021, Eq. 6 and 7, doi:10.1109/TIP.2021.3089943). Made for signals of earlier layers
    too. Cost: as Grad-CAM.
    """
    return explain_signals(combine_layercam, model, inputs, indices, gradients=True)


def combine_layercam(signals: Signals) -> tf.Tensor:
    """Eq. 6 and 7 of Jiang et al., before the ReLU."""
    return positional_sum(signals.activations, tf.nn.relu(signals.gradients))


def eigencam(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Eigen-CAM: the activations, projected on their first principal direction.

    $M = A v_1, \quad A = U \Sigma V^T$ with A as a matrix of positions by channels, not centred (Muhammad & Yeasin,
    "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020, Eq. 2 and 3,
    https://arxiv.org/abs/2008.00299). The sign of v_1 is free; here the map's sum is positive. No unit takes part: the
    map shows what the signal responds to, and is the same for all units. Cost: one forward pass.
    """
    return explain_signals(combine_eigencam, model, inputs, indices, gradients=False)


def combine_eigencam(signals: Signals) -> tf.Tensor:
    """Eq. 3 of Muhammad & Yeasin, once for each unit."""
    A = signals.activations
    n, C = tf.shape(A)[0], A.shape[-1]
    known = all(size is not None for size in A.shape[1:-1])
    matrix = tf.reshape(A, [n, math.prod(A.shape[1:-1]) if known else -1, C])
    largest = tf.reduce_max(tf.abs(matrix), axis=(1, 2), keepdims=True)
    matrix = tf.math.divide_no_nan(matrix, largest)  # squares of large activations would overflow
    if known and matrix.shape[1] < C:
        # The map is the first left singular vector times its singular value, and the smaller matrix tells both.
        values, vectors = tf.linalg.eigh(tf.matmul(matrix, matrix, transpose_b=True))
        flat = vectors[..., -1] * tf.sqrt(tf.nn.relu(values[:, -1:]))
    else:
        _, vectors = tf.linalg.eigh(tf.matmul(matrix, matrix, transpose_a=True))
        flat = tf.linalg.matvec(matrix, vectors[..., -1])
    flat *= tf.where(tf.reduce_sum(flat, axis=1, keepdims=True) < 0, -largest[..., 0], largest[..., 0])
    maps = tf.reshape(flat, tf.shape(A)[:-1])[..., tf.newaxis]
    return tf.repeat(maps, tf.shape(signals.units)[1], axis=-1)


def gradcam_guided(
    model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Grad-CAM with gated gradients, for comparison with tools that do so.

    $M_c = \sum_k A_k \frac{1}{Z} \sum_{ij} 1[A_{ijk} > 0] \, 1[g_{ijk} > 0] \, g_{ijk}$. Selvaraju et al.
    (arXiv:1610.02391) have no such gates, and with them classes are told apart less. Cost: as Grad-CAM.
    """
    return explain_signals(combine_gradcam_guided, model, inputs, indices, gradients=True)


def combine_gradcam_guided(signals: Signals) -> tf.Tensor:
    """Grad-CAM's sum over gradients that pass both gates."""
    open_gates = tf.cast(signals.activations > 0, tf.float32)
    return weighted_sum(signals.activations, signals.mean_product(open_gates, tf.nn.relu(signals.gradients)))


def weighted_sum(activations: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """sum_k weights_k A_k: activations (n, *positions, C) and weights (n, k, C) to maps (n, *positions, k)."""
    return tf.einsum("n...c,nkc->n...k", activations, weights)


def positional_sum(activations: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """sum_k weights_k * A_k: weights (n, k, *positions, C), one a position, to maps (n, *positions, k).

    Weights with one position stand for all of them.
    """
    if all(size == 1 for size in weights.shape[2:-1]):
        return weighted_sum(activations, tf.squeeze(weights, axis=list(range(2, len(weights.shape) - 1))))
    maps = tf.reduce_sum(activations[:, tf.newaxis] * weights, axis=-1)
    return tf.transpose(maps, [0, *range(2, len(maps.shape)), 1])

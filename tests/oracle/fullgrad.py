"""FullGrad: every bias of a network, explicit or implicit, and what it contributes to a score."""

from __future__ import annotations

import numpy as np

from tests.oracle.layers import BatchNorm, Conv, Dense, Relu6, Scale, Swish, backward
from tests.oracle.perturbation import resize


def full_gradient_terms(layers, x, unit):
    """Srinivas & Fleuret 2019, Sec. 3: f(x) = grad_x f . x + sum_l grad_b f . b, term by term, the input's first."""
    signals = [x]
    for layer in layers:
        signals.append(layer.forward(signals[-1]))
    one_hot = np.zeros_like(signals[-1])
    one_hot.reshape(-1)[unit] = 1
    terms = [x * backward(layers, x, one_hot)]
    for i, layer in enumerate(layers):
        bias = _bias(layer, signals[i])
        if bias is not None:
            rest = layers[i + 1 :]
            terms.append(bias * (backward(rest, signals[i + 1], one_hot) if rest else one_hot))
    return terms


def full_gradients(layers, x, unit):
    """Sec. 4 of the paper: the sum of psi(term), channel by channel; psi = bilinearUpsample(rescale(abs(.)))."""
    out = np.zeros(x.shape[:2])
    for term in full_gradient_terms(layers, x, unit):
        if term.ndim == 3:  # a dense layer's bias has no place in the image
            for c in range(term.shape[2]):
                out += _psi(term[:, :, c], x.shape[:2])
    return out


def _psi(term, size):
    term = np.abs(term)
    span = term.max() - term.min()
    if span <= 1e-9 * term.max():  # the same everywhere, up to rounding
        return np.zeros(size)
    return resize((term - term.min()) / span, size)


def _bias(layer, x):
    if isinstance(layer, (Conv, Dense)):
        return np.broadcast_to(layer.bias, layer.forward(x).shape)
    if isinstance(layer, BatchNorm):
        slope = layer.gamma / np.sqrt(layer.variance + layer.epsilon)
        return np.broadcast_to(layer.beta - layer.mean * slope, x.shape)
    if isinstance(layer, Scale):
        return np.full(x.shape, layer.offset)
    if isinstance(layer, (Swish, Relu6)):  # implicit: what the tangent at x leaves over
        return layer.forward(x) - layer.backward(x, np.ones_like(x)) * x
    return None

"""The maps of one image and one unit, equation by equation; `stem` and `head` are lists of layers."""

from __future__ import annotations

import numpy as np

from tests.oracle.layers import Dense, GlobalAverage, backward, forward


def cam(stem, head, x, unit):
    """Zhou et al. 2016, Eq. 2: M_c(i, j) = sum_k w_k^c A_k(i, j)."""
    (dense,) = [layer for layer in head if isinstance(layer, Dense)]
    assert sum(isinstance(layer, GlobalAverage) for layer in head) == 1
    A = forward(stem, x)
    out = np.zeros(A.shape[:2])
    for i, j, k in np.ndindex(A.shape):
        out[i, j] += dense.kernel[k, unit] * A[i, j, k]
    return out


def gradcam(stem, head, x, unit):
    """Selvaraju et al. 2017, Eq. 1: alpha_k = 1/Z sum_ij dy/dA_ijk; Eq. 2 before its ReLU: sum_k alpha_k A_k."""
    A = forward(stem, x)
    g = backward(head, A, _one_hot(head, A, unit))
    alpha = [g[:, :, k].sum() / (A.shape[0] * A.shape[1]) for k in range(A.shape[2])]
    return sum(alpha[k] * A[:, :, k] for k in range(A.shape[2]))


def saliency(layers, x, unit):
    """Simonyan et al. 2013, Sec. 3.1: M_ij = max_c |dy/dx_ijc|."""
    return np.abs(backward(layers, x, _one_hot(layers, x, unit))).max(axis=2)


def numeric_gradient(function, x, step=1e-6):
    """Central differences of a scalar function of an array."""
    x = np.array(x, np.float64)
    g = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        above = function(x)
        x[index] = kept - step
        g[index] = (above - function(x)) / (2 * step)
        x[index] = kept
    return g


def _one_hot(layers, x, unit):
    out = np.zeros_like(forward(layers, x))
    out[unit] = 1
    return out

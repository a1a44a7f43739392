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


def gradcampp(stem, head, x, unit):
    """Chattopadhay et al. 2018, Eq. 19 for alpha, Eq. 11 for w_k; exp(y), common to all terms, left out."""
    A = forward(stem, x)
    g = backward(head, A, _one_hot(head, A, unit))
    out = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        w = 0.0
        for i, j in np.ndindex(A.shape[:2]):
            if g[i, j, k] > 0:
                w += g[i, j, k] * g[i, j, k] ** 2 / (2 * g[i, j, k] ** 2 + A[:, :, k].sum() * g[i, j, k] ** 3)
        out += w * A[:, :, k]
    return out


def gradcampp_official(stem, head, x, unit):
    """The authors' program: alphas over their sum where relu(g) > 0, then Eq. 11."""
    A = forward(stem, x)
    g = backward(head, A, _one_hot(head, A, unit))
    out = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        places = [(i, j) for i, j in np.ndindex(A.shape[:2]) if g[i, j, k] > 0]
        alpha = {p: g[p][k] ** 2 / (2 * g[p][k] ** 2 + A[:, :, k].sum() * g[p][k] ** 3) for p in places}
        if places:
            out += sum(alpha[p] / sum(alpha.values()) * g[p][k] for p in places) * A[:, :, k]
    return out


def hirescam(stem, head, x, unit):
    """Draelos & Carin 2020, Eq. 4: sum_k dy/dA_k * A_k, position by position."""
    A = forward(stem, x)
    g = backward(head, A, _one_hot(head, A, unit))
    out = np.zeros(A.shape[:2])
    for i, j, k in np.ndindex(A.shape):
        out[i, j] += g[i, j, k] * A[i, j, k]
    return out


def xgradcam(stem, head, x, unit):
    """Fu et al. 2020, Eq. 8: w_k = sum_ij A_ijk / (sum_ab A_abk) g_ijk; channels that are all zero weigh nothing."""
    A = forward(stem, x)
    g = backward(head, A, _one_hot(head, A, unit))
    out = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        if np.abs(A[:, :, k]).sum() > 0:
            out += sum(A[i, j, k] / A[:, :, k].sum() * g[i, j, k] for i, j in np.ndindex(A.shape[:2])) * A[:, :, k]
    return out


def layercam(stem, head, x, unit):
    """Jiang et al. 2021, Eq. 6 and 7: sum_k relu(g_ijk) A_ijk."""
    A = forward(stem, x)
    g = backward(head, A, _one_hot(head, A, unit))
    out = np.zeros(A.shape[:2])
    for i, j, k in np.ndindex(A.shape):
        out[i, j] += max(g[i, j, k], 0) * A[i, j, k]
    return out


def gradcam_guided(stem, head, x, unit):
    """Grad-CAM with gradients that count only where they and their activation are positive."""
    A = forward(stem, x)
    g = backward(head, A, _one_hot(head, A, unit))
    out = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        open_gates = [(i, j) for i, j in np.ndindex(A.shape[:2]) if A[i, j, k] > 0 and g[i, j, k] > 0]
        out += sum(g[p][k] for p in open_gates) / (A.shape[0] * A.shape[1]) * A[:, :, k]
    return out


def eigencam(stem, head, x, unit):
    """Muhammad & Yeasin 2020: A v_1, v_1 the first right singular vector of A as (h w, C); sum positive."""
    A = forward(stem, x)
    _, _, V = np.linalg.svd(A.reshape(-1, A.shape[2]))
    out = np.array([[A[i, j] @ V[0] for j in range(A.shape[1])] for i in range(A.shape[0])])
    return out * np.sign(out.sum())


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

"""Methods made of the gradient at the input: one image, one unit, `layers` the whole network."""

from __future__ import annotations

import numpy as np

from tests.oracle.layers import backward, forward
from tests.oracle.maps import gradcam
from tests.oracle.perturbation import resize


def gradient(layers, x, unit, guided=False):
    """dy/dx, signed, (H, W, C)."""
    one_hot = np.zeros_like(forward(layers, x))
    one_hot.reshape(-1)[unit] = 1
    return backward(layers, x, one_hot, guided)


def input_x_gradient(layers, x, unit):
    """Shrikumar et al. 2016: x * dy/dx, added up over the channels."""
    return (x * gradient(layers, x, unit)).sum(axis=2)


def integrated_gradients(layers, x, unit, baseline, steps):
    """Sundararajan et al. 2017, Eq. 1, the integral from 0 to 1 by the midpoint rule, added up over the channels."""
    total = np.zeros_like(x)
    for s in range(steps):
        total += gradient(layers, baseline + (s + 0.5) / steps * (x - baseline), unit)
    return ((x - baseline) * total / steps).sum(axis=2)


def smoothgrad(layers, x, unit, normals, noise):
    """Smilkov et al. 2017: the mean gradient at x + N(0, sigma^2), sigma = noise * (x_max - x_min)."""
    sigma = noise * (x.max() - x.min())
    mean = sum(gradient(layers, x + sigma * normal, unit) for normal in normals) / len(normals)
    return np.abs(mean).max(axis=2)


def guided_backprop(layers, x, unit):
    """Springenberg et al. 2014, Fig. 1: both gates at every ReLU; shown as a saliency map, max_c |.|."""
    return np.abs(gradient(layers, x, unit, guided=True)).max(axis=2)


def guided_gradcam(stem, head, x, unit):
    """Selvaraju et al. 2017, Sec. 3.2: guided backpropagation times the upsampled relu(Grad-CAM)."""
    coarse = np.maximum(gradcam(stem, head, x, unit), 0)
    return guided_backprop(stem + head, x, unit) * resize(coarse, x.shape[:2])

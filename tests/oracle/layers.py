"""Layers of one image: `forward(x)`, and `backward(x, g)`, which takes a gradient from the output to the input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Conv:
    """Cross-correlation of (h, w, c) with a kernel (kh, kw, c, k), as every network library has it."""

    kernel: np.ndarray
    bias: np.ndarray
    strides: tuple[int, int] = (1, 1)
    padding: str = "valid"

    def forward(self, x):
        out = np.zeros((*self._size(x.shape), self.kernel.shape[-1]))
        padded = self._pad(x)
        for i, j, window in self._windows(out.shape):
            out[i, j] = np.tensordot(padded[window], self.kernel, axes=3) + self.bias
        return out

    def backward(self, x, g):
        padded = np.zeros_like(self._pad(x))
        for i, j, window in self._windows(g.shape):
            padded[window] += self.kernel @ g[i, j]
        (top, _), (left, _) = self._margins(x.shape)
        return padded[top : top + x.shape[0], left : left + x.shape[1]]

    def _size(self, shape):
        if self.padding == "same":
            return [math.ceil(n / s) for n, s in zip(shape[:2], self.strides, strict=True)]
        sizes = zip(shape[:2], self.kernel.shape[:2], self.strides, strict=True)
        return [(n - k) // s + 1 for n, k, s in sizes]

    def _margins(self, shape):
        if self.padding == "valid":
            return (0, 0), (0, 0)
        margins = []
        for n, k, s in zip(shape[:2], self.kernel.shape[:2], self.strides, strict=True):
            total = max((math.ceil(n / s) - 1) * s + k - n, 0)
            margins.append((total // 2, total - total // 2))  # the odd pixel goes below and to the right
        return tuple(margins)

    def _pad(self, x):
        return np.pad(x, (*self._margins(x.shape), (0, 0)))

    def _windows(self, shape):
        for i in range(shape[0]):
            for j in range(shape[1]):
                top, left = i * self.strides[0], j * self.strides[1]
                yield i, j, np.s_[top : top + self.kernel.shape[0], left : left + self.kernel.shape[1]]


def depthwise(kernel, bias, strides=(1, 1), padding="valid"):
    """A convolution of every channel by itself: one whose kernel is zero between channels; (kh, kw, c, m) as Keras."""
    kh, kw, channels, multiplier = kernel.shape
    full = np.zeros((kh, kw, channels, channels * multiplier))
    for c, m in np.ndindex(channels, multiplier):
        full[:, :, c, c * multiplier + m] = kernel[:, :, c, m]
    return Conv(full, bias, strides, padding)


@dataclass
class BatchNorm:
    """Normalisation by the moving statistics."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float

    def forward(self, x):
        return self.gamma * (x - self.mean) / np.sqrt(self.variance + self.epsilon) + self.beta

    def backward(self, x, g):
        return g * self.gamma / np.sqrt(self.variance + self.epsilon)


@dataclass
class Relu:
    """max(x, 0)."""

    def forward(self, x):
        return np.maximum(x, 0)

    def backward(self, x, g):
        return g * (x > 0)


@dataclass
class Relu6:
    """min(max(x, 0), 6)."""

    def forward(self, x):
        return np.clip(x, 0, 6)

    def backward(self, x, g):
        return g * ((x > 0) & (x < 6))


@dataclass
class Swish:
    """x / (1 + exp(-x))."""

    def forward(self, x):
        return x / (1 + np.exp(-x))

    def backward(self, x, g):
        s = 1 / (1 + np.exp(-x))
        return g * (s + x * s * (1 - s))


@dataclass
class Scale:
    """Keras' Rescaling."""

    factor: float
    offset: float

    def forward(self, x):
        return x * self.factor + self.offset

    def backward(self, x, g):
        return g * self.factor


@dataclass
class MaxPool:
    """The maximum of windows that do not overlap; what does not fill a window is dropped."""

    size: int = 2

    def forward(self, x):
        out = np.zeros((x.shape[0] // self.size, x.shape[1] // self.size, x.shape[2]))
        for i, j, c in np.ndindex(out.shape):
            out[i, j, c] = x[self._window(i, j, c)].max()
        return out

    def backward(self, x, g):
        out = np.zeros_like(x)
        for i, j, c in np.ndindex(g.shape):
            window = self._window(i, j, c)
            out[window][np.unravel_index(x[window].argmax(), (self.size, self.size))] = g[i, j, c]
        return out

    def _window(self, i, j, c):
        return np.s_[i * self.size : (i + 1) * self.size, j * self.size : (j + 1) * self.size, c]


@dataclass
class AveragePool:
    """The mean of windows that do not overlap; what does not fill a window is dropped."""

    size: int = 2

    def forward(self, x):
        out = np.zeros((x.shape[0] // self.size, x.shape[1] // self.size, x.shape[2]))
        for i, j in np.ndindex(out.shape[:2]):
            out[i, j] = x[self._window(i, j)].mean(axis=(0, 1))
        return out

    def backward(self, x, g):
        out = np.zeros_like(x)
        for i, j in np.ndindex(g.shape[:2]):
            out[self._window(i, j)] = g[i, j] / self.size**2
        return out

    def _window(self, i, j):
        return np.s_[i * self.size : (i + 1) * self.size, j * self.size : (j + 1) * self.size]


@dataclass
class GlobalAverage:
    """The mean of all positions."""

    def forward(self, x):
        return x.mean(axis=(0, 1))

    def backward(self, x, g):
        return np.broadcast_to(g / (x.shape[0] * x.shape[1]), x.shape).copy()


@dataclass
class Flatten:
    """One row, the last axis fastest."""

    def forward(self, x):
        return x.reshape(-1)

    def backward(self, x, g):
        return g.reshape(x.shape)


@dataclass
class Dense:
    """x W + b; on positions, a 1x1 convolution."""

    kernel: np.ndarray
    bias: np.ndarray

    def forward(self, x):
        return x @ self.kernel + self.bias

    def backward(self, x, g):
        return g @ self.kernel.T


def forward(layers, x):
    """The signal behind `layers`."""
    for layer in layers:
        x = layer.forward(x)
    return x


def backward(layers, x, g, guided=False):
    """The gradient with respect to `x`, from `g` at the end of `layers`.

    With `guided`, what reaches the output of a ReLU passes it only where it is positive (Springenberg et al. 2014).
    """
    inputs = [x]
    for layer in layers[:-1]:
        inputs.append(layer.forward(inputs[-1]))
    for layer, signal in zip(reversed(layers), reversed(inputs), strict=True):
        if guided and isinstance(layer, (Relu, Relu6)):
            g = np.maximum(g, 0)
        g = layer.backward(signal, g)
    return g

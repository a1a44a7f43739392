"""The weights of a chain of Keras layers, taken over into the oracle's own layers."""

from __future__ import annotations

import numpy as np

from tests.oracle.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAverage,
    MaxPool,
    Relu,
    Relu6,
    Scale,
    Swish,
    depthwise,
)

ACTIVATIONS = {"relu": [Relu()], "relu6": [Relu6()], "silu": [Swish()], "linear": [], "softmax": [], "sigmoid": []}


def read_chain(model, cut):
    """Splits a chain of layers behind the layer named `cut`: (stem, head), the final softmax or sigmoid left out."""
    stem, head, target = [], [], None
    target = stem
    for layer in model.layers:
        target.extend(_read(layer))
        if layer.name == cut:
            target = head
    return stem, head


def _read(layer):
    kind = type(layer).__name__
    readers = {
        "Conv2D": _conv, "BatchNormalization": _batch_norm, "Dense": _dense,
        "DepthwiseConv2D": _depthwise, "AveragePooling2D": lambda a: [AveragePool(a.pool_size[0])],
        "ReLU": lambda r: [Relu6() if r.max_value == 6 else Relu()],
        "Activation": lambda a: ACTIVATIONS[a.activation.__name__],
        "MaxPooling2D": lambda m: [MaxPool(m.pool_size[0])], "GlobalAveragePooling2D": lambda _: [GlobalAverage()],
        "Flatten": lambda _: [Flatten()], "Rescaling": lambda r: [Scale(r.scale, r.offset)],
        "InputLayer": lambda _: [], "Dropout": lambda _: [], "SpatialDropout2D": lambda _: [], "Reshape": lambda _: [],
    }  # fmt: skip
    return readers[kind](layer)


def _conv(layer):
    kernel, *bias = _weights(layer)
    bias = bias[0] if bias else np.zeros(kernel.shape[-1])
    after = ACTIVATIONS[layer.activation.__name__]
    if kernel.shape[:2] == (1, 1):
        return [Dense(kernel[0, 0], bias), *after]
    return [Conv(kernel, bias, layer.strides, layer.padding), *after]


def _depthwise(layer):
    kernel, *bias = _weights(layer)
    bias = bias[0] if bias else np.zeros(kernel.shape[2] * kernel.shape[3])
    return [depthwise(kernel, bias, layer.strides, layer.padding), *ACTIVATIONS[layer.activation.__name__]]


def _batch_norm(layer):
    weights = iter(_weights(layer))
    gamma = next(weights) if layer.scale else 1.0
    beta = next(weights) if layer.center else 0.0
    return [BatchNorm(gamma, beta, *weights, layer.epsilon)]


def _dense(layer):
    kernel, *bias = _weights(layer)
    return [Dense(kernel, bias[0] if bias else np.zeros(kernel.shape[-1])), *ACTIVATIONS[layer.activation.__name__]]


def _weights(layer):
    return [np.asarray(values, np.float64) for values in layer.get_weights()]

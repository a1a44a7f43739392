"""The methods again, slow and simple: float64 NumPy, loops over positions, written from the papers."""

from tests.oracle.layers import (
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAverage,
    MaxPool,
    Relu,
    Swish,
    backward,
    forward,
)
from tests.oracle.maps import cam, gradcam, numeric_gradient, saliency
from tests.oracle.reading import read_chain

__all__ = [
    "BatchNorm",
    "Conv",
    "Dense",
    "Flatten",
    "GlobalAverage",
    "MaxPool",
    "Relu",
    "Swish",
    "backward",
    "cam",
    "forward",
    "gradcam",
    "numeric_gradient",
    "read_chain",
    "saliency",
]

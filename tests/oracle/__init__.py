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
from tests.oracle.maps import (
    cam,
    gradcam,
    gradcam_guided,
    gradcampp,
    gradcampp_official,
    hirescam,
    layercam,
    numeric_gradient,
    saliency,
    xgradcam,
)
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
    "gradcam_guided",
    "gradcampp",
    "gradcampp_official",
    "hirescam",
    "layercam",
    "numeric_gradient",
    "read_chain",
    "saliency",
    "xgradcam",
]

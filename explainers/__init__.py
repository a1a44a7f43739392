"""Explain the predictions of any Keras classifier: class activation maps and gradients, `import explainers as ex`."""

from explainers import errors, filters, inspection, methods
from explainers.compiled import Explainer, Explanation
from explainers.explaining import explain, shortcut
from explainers.inspection import Exposed, expose
from explainers.methods import METHODS
from explainers.visualization import Picture, visualize

cam = shortcut(METHODS["cam"])
gradcam = shortcut(METHODS["gradcam"])
gradients = shortcut(METHODS["gradients"])

__all__ = [
    "METHODS",
    "Explainer",
    "Explanation",
    "Exposed",
    "Picture",
    "cam",
    "errors",
    "explain",
    "expose",
    "filters",
    "gradcam",
    "gradients",
    "inspection",
    "methods",
    "visualize",
]

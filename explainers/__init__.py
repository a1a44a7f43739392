"""Explain the predictions of any Keras classifier: class activation maps and gradients, `import explainers as ex`."""

from explainers import errors, filters, inspection, methods
from explainers.compiled import Explainer, Explanation
from explainers.explaining import explain, shortcut
from explainers.inspection import Exposed, expose
from explainers.methods import METHODS
from explainers.visualization import Picture, visualize

cam = shortcut(METHODS["cam"])
gradcam = shortcut(METHODS["gradcam"])
gradcam_guided = shortcut(METHODS["gradcam_guided"])
gradcampp = shortcut(METHODS["gradcampp"])
gradcampp_official = shortcut(METHODS["gradcampp_official"])
gradients = shortcut(METHODS["gradients"])
hirescam = shortcut(METHODS["hirescam"])
layercam = shortcut(METHODS["layercam"])
xgradcam = shortcut(METHODS["xgradcam"])

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
    "gradcam_guided",
    "gradcampp",
    "gradcampp_official",
    "gradients",
    "hirescam",
    "inspection",
    "layercam",
    "methods",
    "visualize",
    "xgradcam",
]

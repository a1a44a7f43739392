"""Explain the predictions of any Keras classifier: class activation maps and gradients, `import explainers as ex`."""

from explainers import errors, filters, inspection, methods, metrics
from explainers.compiled import Explainer, Explanation
from explainers.explaining import explain, shortcut
from explainers.inspection import Exposed, expose
from explainers.methods import METHODS
from explainers.visualization import Picture, activations, visualize

ablationcam = shortcut(METHODS["ablationcam"])
cam = shortcut(METHODS["cam"])
eigencam = shortcut(METHODS["eigencam"])
fixations = shortcut(METHODS["fixations"])
full_gradients = shortcut(METHODS["full_gradients"])
gradcam = shortcut(METHODS["gradcam"])
gradcam_guided = shortcut(METHODS["gradcam_guided"])
gradcampp = shortcut(METHODS["gradcampp"])
gradcampp_official = shortcut(METHODS["gradcampp_official"])
gradients = shortcut(METHODS["gradients"])
guided_backprop = shortcut(METHODS["guided_backprop"])
guided_gradcam = shortcut(METHODS["guided_gradcam"])
hirescam = shortcut(METHODS["hirescam"])
input_x_gradient = shortcut(METHODS["input_x_gradient"])
integrated_gradients = shortcut(METHODS["integrated_gradients"])
layercam = shortcut(METHODS["layercam"])
occlusion = shortcut(METHODS["occlusion"])
rise = shortcut(METHODS["rise"])
scorecam = shortcut(METHODS["scorecam"])
scorecam_official = shortcut(METHODS["scorecam_official"])
smoothgrad = shortcut(METHODS["smoothgrad"])
xgradcam = shortcut(METHODS["xgradcam"])

__all__ = [
    "METHODS",
    "Explainer",
    "Explanation",
    "Exposed",
    "Picture",
    "ablationcam",
    "activations",
    "cam",
    "eigencam",
    "errors",
    "explain",
    "expose",
    "filters",
    "fixations",
    "full_gradients",
    "gradcam",
    "gradcam_guided",
    "gradcampp",
    "gradcampp_official",
    "gradients",
    "guided_backprop",
    "guided_gradcam",
    "hirescam",
    "input_x_gradient",
    "inspection",
    "integrated_gradients",
    "layercam",
    "methods",
    "metrics",
    "occlusion",
    "rise",
    "scorecam",
    "scorecam_official",
    "smoothgrad",
    "visualize",
    "xgradcam",
]
